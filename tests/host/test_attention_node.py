"""CLEARAttention in a real ComfyUI: its effect on a model, and the parts it leaves unchanged."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import CLEAR_WIDGETS, noise, prompt
from tests.host.support_comfy.oracle import window_mask, with_oracle_attention
from tests.host.support_comfy.sampling import conditioning, relative_error

TEXT = 7

SIGMA = 0.6


def weights_of(patcher: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}


def identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_widgets_are_optional_and_in_their_frozen_order(host, pack):
    inputs = host.stock("CLEARAttention").INPUT_TYPES()
    assert list(inputs["required"]) == ["model"]
    assert list(inputs["optional"]) == CLEAR_WIDGETS
    assert all(options.get("tooltip") for _, options in inputs["optional"].values())


@pytest.mark.parametrize(
    "height, width, text, radius",
    [(20, 26, 7, 3), (19, 27, 7, 4), (8, 40, 1, 2), (14, 14, 300, 1), (2, 30, 5, 6)],
    ids=lambda value: str(value),
)
def test_the_window_is_the_methods(tiny_flux, clear_node, predict, height, width, text, radius):
    model, x, positive = tiny_flux(), noise(height, width), prompt(text)
    mask = window_mask(text, (math.ceil(height / 2), math.ceil(width / 2)), 0, radius)
    expected = predict(with_oracle_attention(model, mask), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=radius), x, SIGMA, positive), expected) < 1e-5
    # The window must matter here, or the comparison says nothing.
    assert relative_error(predict(model, x, SIGMA, positive), expected) > 1e-3


@pytest.mark.parametrize(
    "widgets, said",
    [
        ({"down_factor": 0}, "radius 16, overview 4 x 4, radius 32 above 16,384 tokens"),
        ({"down_factor": 0, "radius": 5}, "radius 5, overview 4 x 4"),
        ({"down_factor": 2}, "radius 16, overview 2 x 2, radius 32 above 16,384 tokens"),
        ({"down_factor": 1, "radius": 5}, "radius 5"),
    ],
    ids=["nothing set", "radius", "cells", "plain"],
)
def test_without_weights_it_is_a_hybrid(pack, tiny_flux, clear_node, widgets, said):
    clear_of = import_module(f"{pack.__name__}.nodes.host.model.read").clear_of
    assert clear_of(clear_node(tiny_flux(), **widgets)).settings.windows == said


def test_reference_latents_are_seen_by_all_and_see_all(tiny_flux, clear_node, predict):
    model, x = tiny_flux(), noise(12, 14)
    positive = prompt(reference_latents=[noise(6, 9, seed=3), noise(5, 4, seed=4)])
    references = 3 * 5 + 3 * 2
    mask = window_mask(TEXT, (6, 7), references, 3)
    expected = predict(with_oracle_attention(model, mask), x, SIGMA, positive)
    assert relative_error(predict(clear_node(model, radius=3), x, SIGMA, positive), expected) < 1e-5


def test_text_tokens_that_another_node_adds_are_text(tiny_flux, clear_node, predict):
    """As the host's own USO node does, through a post_input patch that stands before or after ours."""

    def add_style_tokens(args: dict[str, Any]) -> dict[str, Any]:
        style = args["txt"][:, :3] * 0.5
        ids = torch.zeros_like(args["txt_ids"][:, :3])
        return args | {"txt": torch.cat((style, args["txt"]), 1), "txt_ids": torch.cat((ids, args["txt_ids"]), 1)}

    model, x, positive = tiny_flux(), noise(12, 14), prompt()
    styled = model.clone()
    styled.set_model_patch(add_style_tokens, "post_input")
    expected = predict(with_oracle_attention(styled, window_mask(TEXT + 3, (6, 7), 0, 3)), x, SIGMA, positive)
    late = clear_node(model, radius=3).clone()
    late.set_model_patch(add_style_tokens, "post_input")
    for patched in (clear_node(styled, radius=3), late):
        assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5


def test_batch_items_do_not_meet(tiny_flux, clear_node, predict):
    model, x = clear_node(tiny_flux(), radius=3), noise(12, 14, batch=2)
    both = predict(model, x, SIGMA, prompt())
    for item in range(2):
        assert relative_error(predict(model, x[item : item + 1], SIGMA, prompt()), both[item : item + 1]) < 1e-5


def test_a_radius_past_the_grid_is_the_stock_model(tiny_flux, clear_node, predict):
    model, x, positive = tiny_flux(), noise(20, 26), prompt()
    assert (
        relative_error(predict(clear_node(model, radius=100), x, SIGMA, positive), predict(model, x, SIGMA, positive))
        < 1e-5
    )


def test_scale_and_ntk_that_the_widgets_ask_for(tiny_flux, clear_node, predict, host):
    from comfy.ldm.flux.layers import EmbedND

    model, x, positive = tiny_flux(), noise(20, 26), prompt()
    scale = math.sqrt(math.log(TEXT + 130, 64 * 64 + 512) / 128)
    expected = with_oracle_attention(model, window_mask(TEXT, (10, 13), 0, 3), scale)
    expected.add_object_patch("diffusion_model.pe_embedder", EmbedND(128, 10000 * 7.0, [16, 56, 56]))
    patched = clear_node(model, radius=3, proportional_attention="on", ntk_factor=7.0)
    assert relative_error(predict(patched, x, SIGMA, positive), predict(expected, x, SIGMA, positive)) < 1e-5
    pooled = clear_node(model, radius=100, down_factor=4, proportional_attention="on")
    assert relative_error(predict(pooled, x, SIGMA, positive), predict(patched, x, SIGMA, positive)) > 1e-3


@pytest.mark.parametrize("height, width, hires", [(128, 256, False), (128, 258, True)], ids=["8192", "8256"])
def test_auto_changes_above_8192_tokens(tiny_flux, clear_node, predict, height, width, hires):
    model, x, positive = tiny_flux(depth=1, depth_single_blocks=1), noise(height, width), prompt()
    auto = predict(clear_node(model, radius=3), x, SIGMA, positive)
    explicit = clear_node(
        model, radius=3, ntk_factor=10.0 if hires else 1.0, proportional_attention="on" if hires else "off"
    )
    assert torch.equal(auto, predict(explicit, x, SIGMA, positive))


def test_sizes_clones_and_removal_leave_no_trace(tiny_flux, clear_node, predict):
    model, positive = tiny_flux(), prompt()
    small, large = noise(12, 14), noise(20, 30)
    before = weights_of(model)
    stock = predict(model, small, SIGMA, positive)
    narrow, wide = clear_node(model, radius=2, ntk_factor=10.0), clear_node(model, radius=4)
    first = predict(narrow, small, SIGMA, positive)
    other = predict(wide, small, SIGMA, positive)
    predict(narrow, large, SIGMA, positive)
    assert torch.equal(predict(narrow, small, SIGMA, positive), first)
    assert torch.equal(predict(wide, small, SIGMA, positive), other)
    assert torch.equal(predict(model, small, SIGMA, positive), stock)
    assert not torch.equal(first, other) and not torch.equal(first, stock)
    assert identical(weights_of(model), before)
    assert model.patches == {} and model.object_patches == {}
    assert model.model_options["transformer_options"] == {}


def test_a_later_node_in_series_replaces_the_earlier(host, golden_flux, clear_node, predict):
    students = [name for name in host.folder_paths.get_filename_list("clear") if "down" not in name]
    x = torch.randn(1, 4, 20, 24, generator=torch.Generator().manual_seed(1))
    positive = conditioning(torch.randn(1, 9, 32), torch.randn(1, 16))
    alone = clear_node(golden_flux, weights_name="none", radius=4)
    for series in (
        clear_node(clear_node(golden_flux, weights_name=students[0], radius=3, ntk_factor=10.0), radius=4),
        clear_node(clear_node(golden_flux, weights_name="none", radius=8, down_factor=4), radius=4),
    ):
        assert series.patches == {}
        assert torch.equal(predict(series, x, SIGMA, positive), predict(alone, x, SIGMA, positive))
    twice = clear_node(clear_node(golden_flux, weights_name=students[0]), weights_name=students[0])
    once = clear_node(golden_flux, weights_name=students[0])
    assert {key: len(entries) for key, entries in twice.patches.items()} == {
        key: len(entries) for key, entries in once.patches.items()
    }


def test_a_foreign_position_embedder_is_kept(tiny_flux, clear_node, predict):
    class OtherEmbedder(torch.nn.Module):
        def __init__(self, base: torch.nn.Module):
            super().__init__()
            self.base = base

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.base(ids * 0.5)

    key = "diffusion_model.pe_embedder"
    model, x, positive = tiny_flux(), noise(20, 26), prompt()
    other = OtherEmbedder(model.get_model_object(key))
    foreign = model.clone()
    foreign.add_object_patch(key, other)
    expected = predict(with_oracle_attention(foreign, window_mask(TEXT, (10, 13), 0, 3)), x, SIGMA, positive)
    after = clear_node(foreign, radius=3, ntk_factor=10.0)
    before = clear_node(model, radius=3, ntk_factor=10.0).clone()
    before.add_object_patch(key, other)
    for patched in (after, before):
        with Recorder() as log:
            for _ in range(2):
                assert relative_error(predict(patched, x, SIGMA, positive), expected) < 1e-5
        lines = [line for line in log.messages() if "CLEAR" in line]
        assert len(lines) == 1 and "OtherEmbedder" in lines[0] and "10" in lines[0]


def with_another_text(patched: Any) -> None:
    """Gives the two double blocks more tokens than the model's input had, so that no window applies."""

    def lengthen(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        more = {"img": args["img"], "txt": torch.cat((args["txt"], args["txt"]), 1), "pe": None}
        out = extra["original_block"]({**args, **more})
        return {"img": out["img"], "txt": out["txt"][:, : args["txt"].shape[1]]}

    for i in range(2):
        patched.set_model_patch_replace(lengthen, "dit", "double_block", i)


def test_another_override_runs_where_the_window_does_not(tiny_flux, clear_node, predict):
    calls: list[str] = []

    def other(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append("other")
        return func(*args, **kwargs)

    model, x = tiny_flux(), noise(12, 14)
    early = model.clone()
    early.model_options["transformer_options"]["optimized_attention_override"] = other
    late = clear_node(model, radius=3)
    late.model_options["transformer_options"]["optimized_attention_override"] = other
    expected = predict(clear_node(model, radius=3), x, SIGMA, prompt())
    for patched in (clear_node(early, radius=3), late):
        calls.clear()
        assert torch.equal(predict(patched, x, SIGMA, prompt()), expected) and calls == []
        with_another_text(patched)
        predict(patched, x, SIGMA, prompt())
        assert len(calls) == 2


def test_a_forward_that_never_reaches_attention_is_named_once(tiny_flux, clear_node, predict):
    def skipping_forward(img: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return img

    patched, x = clear_node(tiny_flux(), radius=3), noise(12, 14)
    patched.add_object_patch("diffusion_model.forward_orig", skipping_forward)
    with Recorder() as log:
        for _ in range(2):
            predict(patched, x, SIGMA, prompt())
    lines = [line for line in log.messages() if "CLEAR" in line]
    assert len(lines) == 1 and "not applied" in lines[0]


@pytest.mark.parametrize("backend", ["gather", "dense"])
def test_an_interrupt_lands_inside_the_attention(tiny_flux, clear_node, predict, backend):
    import comfy.model_management as management

    reached: list[int] = []

    def cancel(args: dict[str, Any]) -> dict[str, Any]:
        management.interrupt_current_processing()
        return args

    def after_block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        reached.append(1)
        return extra["original_block"](args)

    patched = clear_node(tiny_flux(), radius=3, backend=backend)
    patched.set_model_patch(cancel, "post_input")
    patched.set_model_patch_replace(after_block, "dit", "double_block", 1)
    with pytest.raises(management.InterruptProcessingException):
        predict(patched, noise(12, 14), SIGMA, prompt())
    assert reached == [], "the first block's attention did not notice"
    patched.model_options["transformer_options"].pop("patches")
    assert predict(patched, noise(12, 14), SIGMA, prompt()).isfinite().all()
