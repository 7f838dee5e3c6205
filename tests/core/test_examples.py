"""The files in example_workflows and subgraphs: as the builder writes them, tidy, and complete in their notes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.example_workflows.__main__ import files
from tools.example_workflows.graph import Graph

PROJECT = Path(__file__).parents[2]
EXAMPLES = sorted((PROJECT / "example_workflows").glob("*.json"))
TITLE_BAR = 30

Box = tuple[int, int, int, int]


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text(encoding="utf-8"))


def box_of(node: dict[str, Any]) -> Box:
    """Left, top, right, bottom, with the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + width, y + height


def box_of_group(group: dict[str, Any]) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def within(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


@pytest.mark.parametrize(("path", "text"), files().items(), ids=lambda value: getattr(value, "stem", ""))
def test_what_ships_is_what_the_builder_writes(path, text):
    assert path.read_text(encoding="utf-8") == text, "run python -m tools.example_workflows"


def test_nothing_else_ships():
    shipped = {path for folder in ("example_workflows", "subgraphs") for path in (PROJECT / folder).glob("*.json")}
    assert shipped == files().keys()


def test_every_example_has_its_picture():
    """The template browser shows PICTURE.jpg for PICTURE.json."""
    pictures = sorted((PROJECT / "example_workflows").glob("*.jpg"))
    assert [path.stem for path in pictures] == [path.stem for path in EXAMPLES]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (512, 512) and picture.format == "JPEG", path.name
        assert path.stat().st_size < 150_000, path.name


def test_nodes_lie_apart_and_each_in_one_group(example):
    boxes = [box_of(node) for node in example["nodes"]]
    assert all(apart(one, other) for one, other in itertools.combinations(boxes, 2))
    groups = [box_of_group(group) for group in example["groups"]]
    assert all(apart(one, other) for one, other in itertools.combinations(groups, 2))
    for node, box in zip(example["nodes"], boxes, strict=True):
        assert sum(within(box, group) for group in groups) == 1, node["type"]


def test_files_that_widgets_name_come_with_their_address(example):
    """The address of a file is on its loader, for ComfyUI, and in the note, for people."""
    (note,) = [node for node in example["nodes"] if node["type"] == "MarkdownNote"]
    for node in example["nodes"]:
        named = {value for value in node["widgets_values"] if str(value).endswith(".safetensors")}
        models = node["properties"].get("models", [])
        assert named == {model["name"] for model in models}, node["type"]
        for model in models:
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
            assert f"{model['directory']}: [{model['name']}]({model['url']})" in note["widgets_values"][0]


def test_nodes_say_which_pack_they_are_from(example):
    project = dict(
        line.split(" = ")
        for line in (PROJECT / "pyproject.toml").read_text().splitlines()
        if line.startswith(("name", "version"))
    )
    for node in example["nodes"]:
        if node["type"].startswith("CLEAR"):
            saved = json.dumps(node["properties"]["cnr_id"]), json.dumps(node["properties"]["ver"])
            assert saved == (project["name"], project["version"])
        elif node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] == "comfy-core"


def test_the_builder_refuses_a_widget_that_the_node_has_not():
    with pytest.raises(ValueError, match="VAELoader has no vae; expected some of vae_name"):
        Graph("wrong").add("VAELoader", vae="ae.safetensors")
