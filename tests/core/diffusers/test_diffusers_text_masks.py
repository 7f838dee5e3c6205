"""Text masks of diffusers' Chroma and Qwen-Image with CLEAR, against the stock model with the window as a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", minversion="0.41")

from clear_core import ClearSpec
from clear_core.integrations import diffusers_parallel
from clear_core.integrations.diffusers import apply_clear
from tests.support.diffusers_flux import relative, run
from tests.support.diffusers_relatives import RELATIVES, Grid, in_windows

GRID, TEXT = (5, 7), 6
SEEN = {
    "all": [[1] * TEXT, [1] * TEXT],
    "same end": [[1, 1, 1, 1, 0, 0]] * 2,
    "same gap": [[1, 0, 1, 1, 0, 1]] * 2,
    "differ": [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]],
    "one has none": [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
}
"""Masks of a batch of 2."""


def masked_call(name: str, seen: list[list[int]], dtype: torch.dtype, grid: Grid = GRID) -> dict[str, Any]:
    mask = torch.tensor(seen).to(dtype)
    if name == "Chroma":
        # As its pipeline: text, then ones for the image.
        image = torch.ones(len(mask), grid[0] * grid[1], dtype=dtype)
        return RELATIVES[name].call(grid, TEXT) | {"attention_mask": torch.cat([mask, image], dim=1)}
    return RELATIVES[name].call(grid, TEXT, references=((2, 3),)) | {"encoder_hidden_states_mask": mask}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("Chroma", torch.bool), ("Chroma", torch.float32), ("Qwen-Image", torch.bool), ("Qwen-Image", torch.int64)],
    ids=str,
)
def test_masks_hide_and_add_what_they_do_in_the_stock_model(
    name: str, dtype: torch.dtype, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = RELATIVES[name].build(), masked_call(name, SEEN[seen], dtype)
    with in_windows(RELATIVES[name], inputs, GRID, 3) as lengths:
        expected = run(model, inputs)
    assert len(lengths) == RELATIVES[name].attentions
    unmasked = {key: value for key, value in inputs.items() if "mask" not in key}
    calls: list[tuple[int, bool]] = []
    attend = diffusers_parallel.clear_attention

    def watched(q: Tensor, *others: Any, **named: Any) -> Any:
        calls.append((q.shape[2], named["bias"] is not None))
        return attend(q, *others, **named)

    monkeypatch.setattr(diffusers_parallel, "clear_attention", watched)
    with apply_clear(model, ClearSpec(3)):
        found = run(model, inputs)
        free = run(model, unmasked)
    assert relative(found, expected) < 1e-5
    if seen == "all":
        assert relative(found, free) < 1e-6
    else:
        assert relative(found, free) > 1e-3
    # Columns that nobody sees are gone; a bias stays only where items differ, or where a mask of numbers adds.
    rest = inputs["hidden_states"].shape[1]
    shown = TEXT if dtype == torch.float32 else int(torch.tensor(SEEN[seen]).any(dim=0).sum())
    biased = seen != "all" if dtype == torch.float32 else seen in ("differ", "one has none")
    half = RELATIVES[name].attentions
    assert calls == [(shown + rest, biased)] * half + [(TEXT + rest, False)] * half


def test_a_mask_of_weights_is_added_as_in_the_stock_model() -> None:
    model, kind = RELATIVES["Chroma"].build(), RELATIVES["Chroma"]
    inputs = masked_call("Chroma", SEEN["all"], torch.float32)
    inputs["attention_mask"][:, :TEXT] = torch.randn(2, TEXT, generator=torch.Generator().manual_seed(3))
    with in_windows(kind, inputs, GRID, 3):
        expected = run(model, inputs)
    with apply_clear(model, ClearSpec(3)):
        assert relative(run(model, inputs), expected) < 1e-5


def test_a_whole_prompt_may_be_hidden() -> None:
    model, kind = RELATIVES["Qwen-Image"].build(), RELATIVES["Qwen-Image"]
    inputs = masked_call("Qwen-Image", [[0] * TEXT] * 2, torch.bool)
    with in_windows(kind, inputs, GRID, 3):
        expected = run(model, inputs)
    with apply_clear(model, ClearSpec(3)):
        assert relative(run(model, inputs), expected) < 1e-5


@pytest.mark.parametrize(("name", "dtype"), [("Chroma", torch.float32), ("Qwen-Image", torch.bool)], ids=str)
def test_masks_hold_with_pooled_keys(name: str, dtype: torch.dtype) -> None:
    """An item of a batch gets what it gets alone, where its hidden columns are cut off or biased on their own."""
    model, inputs = RELATIVES[name].build(), masked_call(name, SEEN["differ"], dtype)
    apply_clear(model, ClearSpec(2, 2))
    both = run(model, inputs)
    for item in range(2):
        alone = {key: value if "ids" in key else value[item : item + 1] for key, value in inputs.items()}
        assert relative(run(model, alone), both[item : item + 1]) < 1e-5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Chroma", lambda mask: mask[:, :-1], r"attention_mask has shape \(2, 40\); expected \(batch, 41\), for 6"),
        ("Chroma", lambda mask: mask.long(), r"attention_mask is torch\.int64; expected bool or a floating-point"),
        ("Chroma", lambda mask: mask.roll(-1, 1), "attention_mask hides or weighs image tokens, which CLEAR does not"),
        ("Qwen-Image", lambda mask: mask[:, 1:], r"_states_mask has shape \(2, 5\); expected \(batch, 6\)"),
    ],
    ids=["length", "dtype", "image", "Qwen's length"],
)
def test_refuses_masks(name: str, change: Any, message: str) -> None:
    inputs = masked_call(name, [[0, 1, 1, 1, 1, 1]] * 2, torch.bool)
    key = "attention_mask" if name == "Chroma" else "encoder_hidden_states_mask"
    with apply_clear(RELATIVES[name].build(), ClearSpec(2)) as handle, pytest.raises(ValueError, match=message):
        run(handle.transformer, inputs | {key: change(inputs[key])})
