"""Stages in the host's own executor: each is kept by itself, and a person watching sees one run."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.host.support_comfy.executor import Executor
from tests.host.support_comfy.pictures import VAE_NAME, write_picture, write_vae_files
from tests.host.support_comfy.sampling import Graph, run_node
from tests.host.support_comfy.server import TEST_NODE

CLEAR, UPSCALE, SAVE = "2", "6", "7"
FIRST, SECOND = f"{UPSCALE}.0.0.1", f"{UPSCALE}.0.0.2"

WORKFLOW: Graph = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    CLEAR: {"class_type": "CLEARAttention", "inputs": {"model": ["1", 0], "weights_name": "none", "radius": 3}},
    "3": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 7, "guidance": 3.5}},
    "4": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "small.png"}},
    UPSCALE: {
        "class_type": "CLEARUpscale",
        "inputs": {
            "image": ["5", 0],
            "model": [CLEAR, 0],
            "positive": ["3", 0],
            "vae": ["4", 0],
            "upscale_by": 4.0,
            "seed": 7,
            "steps": 2,
            "denoise": 0.5,
            "stage_denoise": "0.7, 0.5",
        },
    },
    SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [UPSCALE, 1], "filename_prefix": "latents/upscale"}},
}


def with_widgets(**values: Any) -> Graph:
    graph = copy.deepcopy(WORKFLOW)
    graph[UPSCALE]["inputs"].update(values)
    return graph


@pytest.fixture(scope="module")
def files(host, pack) -> None:
    write_vae_files(host.base / "models" / "vae_approx")
    write_picture(host.base / "input" / "small.png", 32, 48)
    if "ClearTestConditioning" not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(TEST_NODE)


@pytest.fixture(params=["CLASSIC", "RAM_PRESSURE"])
def executor(request, files) -> Executor:
    return Executor(request.param)


@pytest.fixture
def one_cache(files) -> Executor:
    return Executor()


@pytest.fixture
def stage_module(pack):
    return importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage")


@pytest.fixture
def at_second_stage(stage_module, monkeypatch) -> Callable[[str, Callable[[], None]], None]:
    """``at_second_stage(phase, act)`` calls ``act`` when that phase of the second stage begins."""

    def arrange(phase: str, act: Callable[[], None]) -> None:
        original, calls = getattr(stage_module, phase), []

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(phase)
            if len(calls) == 2:
                act()
            return original(*args, **kwargs)

        monkeypatch.setattr(stage_module, phase, watched)

    return arrange


def saved_latent(host: Any) -> torch.Tensor:
    newest = max((host.base / "output" / "latents").glob("upscale_*.latent"), key=lambda path: path.name)
    return load_file(newest)["latent_tensor"]


def test_stages_run_as_nodes_and_give_what_the_node_gives_alone(host, executor):
    assert executor.run(WORKFLOW, [SAVE])
    assert [node for node in executor.executed if node.startswith(UPSCALE + ".")] == [FIRST, SECOND]
    graph = WORKFLOW
    with torch.inference_mode():
        inputs = {name: value for name, value in graph[UPSCALE]["inputs"].items() if not isinstance(value, list)}
        (model,) = run_node(host.stock("UNETLoader"), **graph["1"]["inputs"])
        (model,) = run_node(host.stock("CLEARAttention"), model=model, weights_name="none", radius=3)
        (positive,) = run_node(host.stock("ClearTestConditioning"), **graph["3"]["inputs"])
        (vae,) = run_node(host.stock("VAELoader"), vae_name=VAE_NAME)
        image, _ = run_node(host.stock("LoadImage"), image="small.png")
        _, latent, _ = run_node(
            host.stock("CLEARUpscale"), image=image, model=model, positive=positive, vae=vae, **inputs
        )
    assert torch.equal(saved_latent(host), latent["samples"])


def test_a_list_of_pictures_is_enlarged_one_by_one(host, executor):
    """Each item has stages of its own, which share their links with those of the other items."""
    host.load_file(Path(host.nodes.__file__).parent / "comfy_extras" / "nodes_rebatch.py")

    def with_images(link: list[Any]) -> Graph:
        inverted = {"class_type": "ImageInvert", "inputs": {"image": ["5", 0]}}
        both = {"class_type": "ImageBatch", "inputs": {"image1": ["5", 0], "image2": ["8", 0]}}
        one_by_one = {"class_type": "RebatchImages", "inputs": {"images": ["9", 0], "batch_size": 1}}
        return with_widgets(image=link) | {"8": inverted, "9": both, "10": one_by_one}

    alone = []
    for link in (["5", 0], ["8", 0]):
        assert executor.run(with_images(link), [SAVE])
        alone.append(saved_latent(host))
    assert executor.run(with_images(["10", 0]), [SAVE]), executor.told
    stages = [FIRST, SECOND, f"{UPSCALE}.1.0.1", f"{UPSCALE}.1.0.2"]
    assert sorted(node for node in executor.executed if "." in node) == stages
    saved = sorted((host.base / "output" / "latents").glob("upscale_*.latent"), key=lambda path: path.name)[-2:]
    for path, expected in zip(saved, alone, strict=True):
        assert torch.equal(load_file(path)["latent_tensor"], expected)


def test_only_what_changed_runs_again(executor):
    assert executor.run(WORKFLOW, [SAVE])
    assert executor.run(with_widgets(stage_denoise="0.7, 0.4"), [SAVE])
    assert FIRST not in executor.executed and SECOND in executor.executed
    assert executor.run(with_widgets(stage_denoise="0.7, 0.4"), [SAVE])
    assert executor.executed == []
    assert executor.run(with_widgets(stage_denoise="0.6, 0.4"), [SAVE])
    assert FIRST in executor.executed and SECOND in executor.executed


@pytest.mark.parametrize("phase", ["enlarge", "encode", "denoise", "decode"])
def test_out_of_memory_says_what_to_set_and_keeps_finished_stages(host, executor, at_second_stage, monkeypatch, phase):
    import comfy.model_management

    def run_out() -> None:
        raise comfy.model_management.OOM_EXCEPTION("tried to allocate 99 GiB")

    with monkeypatch.context():
        at_second_stage(phase, run_out)
        assert not executor.run(WORKFLOW, [SAVE])
        sentence = executor.told.splitlines()[0]
        assert sentence.startswith("Out of memory while") and "stage 2 (192 x 128 px)" in sentence
        advised = {"enlarge": "upscale_model", "denoise": "set tile_width"}.get(phase, "set vae_tile_size to 64,")
        assert advised in sentence and sentence.endswith(".")
        assert "99 GiB" not in executor.told
    monkeypatch.undo()
    assert executor.run(WORKFLOW, [SAVE])
    assert FIRST not in executor.executed and SECOND in executor.executed


@pytest.mark.parametrize("phase", ["enlarge", "encode", "denoise", "decode"])
def test_an_interrupt_ends_the_phase_and_keeps_finished_stages(
    host, one_cache, at_second_stage, stage_module, monkeypatch, phase
):
    import comfy.model_management

    order = ["enlarge", "encode", "denoise", "decode"]
    begun = []
    for name in order[order.index(phase) + 1 :]:
        at_second_stage(name, lambda name=name: begun.append(name))
    at_second_stage(phase, comfy.model_management.interrupt_current_processing)
    assert not one_cache.run(WORKFLOW, [SAVE])
    assert one_cache.interrupted and begun == []
    monkeypatch.undo()
    assert one_cache.run(WORKFLOW, [SAVE])
    assert FIRST not in one_cache.executed and SECOND in one_cache.executed


def test_one_bar_over_all_stages_steps_and_tiles(one_cache, host):
    """The hook is the one that the host's main.py installs."""
    import comfy.utils
    import main

    graph = with_widgets(tile_width=128, tile_height=96, tile_overlap=32)
    before = comfy.utils.PROGRESS_BAR_HOOK
    main.hijack_progress(one_cache._server)
    try:
        assert one_cache.run(graph, [SAVE])
    finally:
        comfy.utils.PROGRESS_BAR_HOOK = before
    moves = one_cache.progress
    values = [value for _, value, _ in moves]
    assert values == sorted(values) and len({most for _, _, most in moves}) == 1
    assert values[-1] == moves[-1][2] and {node for node, _, _ in moves} == {FIRST, SECOND}
    # The second stage has four times the tokens, and says so.
    last_of_first = max(value for node, value, _ in moves if node == FIRST)
    assert last_of_first == pytest.approx(moves[-1][2] / 5, rel=0.01)
    assert one_cache.previews == 2 * 2
    # Tiles move it within a step: more moves than phases and steps.
    assert len({value for node, value, _ in moves if node == SECOND}) > 3 + 2


def test_an_empty_mask_runs_no_step_and_fills_the_bar(one_cache, host):
    """The mask that Load Image gives for a picture without transparency."""
    import comfy.utils
    import main

    before = comfy.utils.PROGRESS_BAR_HOOK
    main.hijack_progress(one_cache._server)
    try:
        assert one_cache.run(with_widgets(mask=["5", 1]), [SAVE]), one_cache.told
    finally:
        comfy.utils.PROGRESS_BAR_HOOK = before
    values = [value for _, value, _ in one_cache.progress]
    assert values == sorted(values) and values[-1] == one_cache.progress[-1][2]
    assert one_cache.previews == 0 and [node for node in one_cache.executed if "." in node] == [FIRST, SECOND]
    assert "mask: empty" in one_cache.texts[0][1] and "time: nothing is sampled" in one_cache.texts[0][1]
    assert len(one_cache.texts) == 1
    assert saved_latent(host).shape == (1, 16, 16, 24)


def test_the_plan_is_written_on_the_node_at_the_start(one_cache):
    assert one_cache.run(WORKFLOW, [SAVE])
    node, text = one_cache.texts[0]
    assert node == UPSCALE
    for words in (
        "stage 1: 48 x 32 to 96 x 64 px, 24 tokens",
        "stage 2: 96 x 64 to 192 x 128 px, 96 tokens",
        "2 steps at denoise 0.7",
        "GiB",
        "time: ",
    ):
        assert words in text
    later = [line for node, line in one_cache.texts[1:] if node == UPSCALE]
    assert any("Stage 2 of 2: 192 x 128 px, step 1 of 2" in line and "left" in line for line in later)
