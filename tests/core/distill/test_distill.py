"""Distillation: what is trained, and towards what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec
from clear_core.distill.checkpoint import weights_of
from clear_core.distill.config import TrainConfig
from clear_core.distill.evaluate import velocity_errors
from clear_core.distill.file_weights import load_weights
from clear_core.distill.losses import Losses, distillation_losses
from clear_core.distill.outputs import save_weights
from clear_core.distill.pair import Pair
from clear_core.distill.samples import SampleFolder
from clear_core.distill.taught import taught_blocks
from clear_core.weights import ClearFileError, read_clear_file
from tests.support.distillation import run, teacher

STREAMS = {
    "transformer_blocks.0": ("to_q", "to_k", "to_v", "to_out.0"),
    "single_transformer_blocks.0": ("to_q", "to_k", "to_v"),
    "single_transformer_blocks.1": ("to_q", "to_k", "to_v"),
}


@pytest.mark.parametrize(
    "double, single, blocks",
    [
        (19, 38, [("single", index) for index in range(1, 38, 4)]),
        (1, 8, [("single", 3), ("single", 7)]),
        (8, 48, [("single", index) for index in range(0, 48, 4)]),
        (60, 0, [("double", index) for index in range(0, 60, 4)]),
        (38, 0, [("double", index) for index in range(0, 38, 4)]),
        (1, 3, [("single", 2)]),
        (3, 0, [("double", 0)]),
    ],
    ids=["FLUX.1", "one double", "FLUX.2", "Qwen-Image", "SD3.5", "no fourth", "three joint"],
)
def test_every_fourth_block_of_all_is_taught(double: int, single: int, blocks: list[tuple[str, int]]):
    assert taught_blocks(double, single) == blocks


def test_weights_of_the_terms():
    total = Losses(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)).total
    assert total == 1 + 5 + 50


@pytest.mark.parametrize("down_factor", [1, 2])
def test_only_image_projections_train(data: Path, tmp_path: Path, down_factor: int):
    model = teacher()
    plan = TrainConfig(radius=2, down_factor=down_factor, steps=2, batch=2, rate=1e-2)
    state = run(model, data, plan, tmp_path / "out")
    before = model.state_dict()
    expected = {
        f"{block}.attn.{name}.{end}" for block, names in STREAMS.items() for name in names for end in ("weight", "bias")
    }
    assert all(not torch.equal(state[name], before[name]) for name in expected)
    if down_factor > 1:
        spatial = {f"{block}.attn.processor.spatial_weight" for block in STREAMS}
        assert all(not torch.equal(state[name], torch.full_like(state[name], 1 / 4)) for name in spatial)
        expected |= spatial
    assert set(state) == expected


def test_the_teacher_is_the_untouched_model_whatever_the_student_became():
    model = teacher()
    inputs = {
        "hidden_states": torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.ones(1, 3, 8),
        "pooled_projections": torch.ones(1, 8),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0)),
        "txt_ids": torch.zeros(3, 3),
        "guidance": torch.tensor([3.5]),
    }
    with torch.no_grad():
        stock = model(**inputs)[0]
        pair = Pair(model, ClearSpec(2, 2))
        for parameter in pair.trained().values():
            parameter.add_(1)
        assert not torch.allclose(model(**inputs)[0], stock)
        with pair.teacher():
            assert torch.equal(model(**inputs)[0], stock)
        assert not torch.allclose(model(**inputs)[0], stock)
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(moved) == len(pair.trained()) and not any(".base." in name for name in moved)


def test_bfloat16_model_keeps_its_dtype_and_trains_in_float32():
    pair = Pair(teacher().bfloat16(), ClearSpec(2, 2))
    assert {p.dtype for p in pair.trained().values()} == {torch.float32}
    assert {p.dtype for p in pair.transformer.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_window_past_the_diagonal_has_nothing_to_learn(data: Path):
    batch = SampleFolder(data).batch([1, 2], [0, 1], 0, 0)
    losses = distillation_losses(Pair(teacher(), ClearSpec(99)), batch, 3.5)
    assert losses.distill < 1e-10 and losses.attention < 1e-10
    narrow = distillation_losses(Pair(teacher(), ClearSpec(1)), batch, 3.5)
    assert narrow.distill > 1e-6 and narrow.attention > 1e-6


@pytest.mark.parametrize("form, rank", [("merged", None), ("merged", 4), ("delta", None), ("delta", 4), ("lora", 4)])
@pytest.mark.parametrize("down_factor", [1, 2])
def test_every_form_gives_the_student_back(tmp_path: Path, down_factor: int, form: str, rank: int | None):
    spec = ClearSpec(3, down_factor)
    pair = Pair(teacher(), spec, rank=rank)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pair.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    path = tmp_path / "mine.safetensors"
    file = save_weights(path, pair, weights_of(pair.trained()), "a test", form=form, dtype=torch.float32)
    assert (file.radius, file.down_factor, file.source, file.family) == (3, down_factor, "a test", "FLUX.1")
    assert file.kind == {"merged": "replace"}.get(form, form) and file.rank == (rank if form == "lora" else None)
    again = Pair(teacher(), spec)
    load_weights(again, read_clear_file(path))
    for place in pair.places:
        mine, other = pair.part(place), again.part(place)
        weight, bias = mine.weight if rank is None else None, mine.bias
        if weight is None:
            weight = pair.original(place)[0] + mine.up @ mine.down
            bias = pair.original(place)[1] + mine.bias
        torch.testing.assert_close(other.weight, weight, rtol=0, atol=2e-6, msg=place.name)
        torch.testing.assert_close(other.bias, bias, rtol=0, atol=2e-6, msg=place.name)


def test_a_lora_of_whole_weights_and_a_file_of_another_model_are_refused(tmp_path: Path):
    pair = Pair(teacher(), ClearSpec(3))
    with pytest.raises(ValueError, match="form is 'lora', but whole weights are trained"):
        save_weights(tmp_path / "x.safetensors", pair, weights_of(pair.trained()), "", form="lora")
    path = tmp_path / "mine.safetensors"
    file = save_weights(path, pair, weights_of(pair.trained()), "a test")
    with pytest.raises(ValueError, match="pools 1 x 1, and the window is"):
        load_weights(Pair(teacher(), ClearSpec(3, 2)), file)
    other = teacher()
    del other.single_transformer_blocks[1]
    other.register_to_config(num_single_layers=1)
    with pytest.raises(ClearFileError, match="was made for a FLUX.1 of width 32 with 1 double and 2 single"):
        load_weights(Pair(other, ClearSpec(3)), file)


def test_held_out_error_is_zero_for_the_teacher_itself(data: Path):
    samples = SampleFolder(data, first=-2)
    assert len(samples) == 2 and samples.paths[-1].name == "0000011.safetensors"
    same = velocity_errors(Pair(teacher(), ClearSpec(99)), samples, guidance=3.5)
    window = velocity_errors(Pair(teacher(), ClearSpec(1)), samples, guidance=3.5)
    assert max(same.values()) < 1e-10 and min(window.values()) > 1e-7
    assert window == velocity_errors(Pair(teacher(), ClearSpec(1)), samples, guidance=3.5)
