"""The texts of the app as the host sends them to the browser: tooltips, names, search words, help pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.host.support_comfy import boot
from tests.host.support_comfy.locales import described_inputs, english_locale

LOCALES = boot.PROJECT / "locales"
PAGES = boot.PROJECT / "web" / "docs"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
NODES = sorted(json.loads((LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8")))
NOT_IN_THE_MENUS = {"CLEARUpscaleStage"}


@pytest.fixture(scope="module")
def infos(host, pack):
    """/object_info of our nodes."""
    return {
        name: node.GET_NODE_INFO_V1()
        for name, node in host.nodes.NODE_CLASS_MAPPINGS.items()
        if node.__module__.startswith(pack.__name__)
    }


def test_every_node_has_its_locale_entry_and_its_page(infos):
    assert sorted(infos) == NODES
    assert sorted(path.stem for path in PAGES.glob("*.md")) == NODES


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_has_a_tooltip(node, infos):
    info = infos[node]
    silent = [name for name, options in described_inputs(info).items() if not options.get("tooltip")]
    silent += [
        f"output {name}"
        for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True)
        if not tooltip
    ]
    assert silent == []
    assert info["description"]


def test_the_english_locale_says_what_the_nodes_say(infos):
    """It is written by what tools/schemas.py reads without a host; here that is compared with the host's own answer."""
    file = LOCALES / "en" / "nodeDefs.json"
    remedy = "run python3 dev.py sync; if that changes nothing, tools/schemas.py reads what the host does not"
    assert json.loads(file.read_text(encoding="utf-8")) == english_locale(infos), remedy


@pytest.mark.parametrize("node", ["CLEARAttention"])
def test_the_page_sends_the_widgets_that_the_host_shows(node, infos):
    script = (boot.PROJECT / "web" / "js" / "settings.js").read_text(encoding="utf-8")
    sockets = {"MODEL"}
    groups = infos[node]["input"]
    shown = [name for group in groups.values() for name, spec in group.items() if spec[0] not in sockets]
    assert re.findall(r'^  "(\w+)",$', script, re.MULTILINE) == shown


@pytest.mark.parametrize("node", NODES)
def test_the_search_finds_it_by_other_words_where_the_host_can(node, infos):
    from comfy_api.latest import io

    if node in NOT_IN_THE_MENUS:
        assert infos[node]["deprecated"]
        return
    aliases = infos[node].get("search_aliases") or []
    if "search_aliases" not in io.Schema.__dataclass_fields__:
        assert aliases == []
        return
    assert len(aliases) >= 3 and len({alias.lower() for alias in aliases}) == len(aliases)


@pytest.mark.parametrize(
    ("node", "shown"),
    [
        ("CLEARAttention", {"model", "weights_name", "strength"}),
        (
            "CLEARUpscale",
            {
                "image",
                "model",
                "positive",
                "vae",
                "negative",
                "upscale_model",
                "mask",
                "later_model",
                "upscale_by",
                "seed",
                "steps",
                "cfg",
                "sampler_name",
                "scheduler",
                "denoise",
            },
        ),
    ],
)
def test_what_a_beginner_needs_is_shown_and_the_rest_folded(node, shown, infos):
    assert {name for name, options in described_inputs(infos[node]).items() if not options.get("advanced")} == shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_serves_the_locale(language, running_server):
    served = running_server.get("/i18n")[language]["nodeDefs"]
    ours = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert {name: served.get(name) for name in ours} == ours


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda path: path.relative_to(PAGES).as_posix())
def test_the_host_serves_the_page(page: Path, running_server):
    """The front end asks for docs/<node>/<language>.md, then docs/<node>.md, and takes nothing that is sent as HTML."""
    address = f"{running_server.url}/extensions/{boot.PACK_FOLDER}/docs/{page.relative_to(PAGES).as_posix()}"
    with urlopen(address, timeout=30) as answer:
        assert "text/html" not in answer.headers.get("Content-Type", "")
        assert answer.read().decode("utf-8") == page.read_text(encoding="utf-8")
