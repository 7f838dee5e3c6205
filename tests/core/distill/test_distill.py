"""Distillation: what is trained, and towards what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec
from clear_core.distill.config import TrainConfig
from clear_core.distill.evaluate import velocity_errors
from clear_core.distill.losses import Losses, distillation_losses, taught_blocks
from clear_core.distill.samples import SampleFolder
from clear_core.distill.student import load_weights, make_student, save_weights, trained_set
from clear_core.weights import read_clear_file
from tests.support.distillation import run, teacher


@pytest.mark.parametrize("count, blocks", [(38, [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]), (3, [1]), (1, [0]), (0, [])])
def test_every_fourth_single_block_is_taught(count: int, blocks: list[int]):
    assert taught_blocks(count) == blocks


def test_weights_of_the_terms():
    total = Losses(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)).total
    assert total == 1 + 5 + 50


@pytest.mark.parametrize("down_factor", [1, 2])
def test_only_image_projections_train(data: Path, tmp_path: Path, down_factor: int):
    model = teacher()
    plan = TrainConfig(radius=2, down_factor=down_factor, steps=2, batch=2, rate=1e-2)
    state = run(model, data, plan, tmp_path / "out")
    before = model.state_dict()
    changed = {name for name, tensor in state.items() if name not in before or not torch.equal(tensor, before[name])}
    streams = {
        "transformer_blocks.0": ("to_q", "to_k", "to_v", "to_out.0"),
        "single_transformer_blocks.0": ("to_q", "to_k", "to_v"),
        "single_transformer_blocks.1": ("to_q", "to_k", "to_v"),
    }
    expected = {
        f"{block}.attn.{name}.{end}" for block, names in streams.items() for name in names for end in ("weight", "bias")
    }
    if down_factor > 1:
        expected |= {f"{block}.attn.processor.spatial_weight" for block in streams}
    assert changed == expected == set(trained_set(model, plan.spec))


def test_frozen_weights_are_shared_and_teacher_is_not_moved():
    model = teacher()
    student = make_student(model, ClearSpec(2))
    mine, theirs = dict(student.named_parameters()), dict(model.named_parameters())
    trained = set(trained_set(model, ClearSpec(2)))
    for name, parameter in mine.items():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) == (name not in trained), name
        assert parameter.requires_grad == (name in trained) and not theirs[name].requires_grad


def test_bfloat16_teacher_keeps_its_dtype():
    student = make_student(teacher().bfloat16(), ClearSpec(2, 2))
    trained = set(trained_set(student, ClearSpec(2, 2)))
    assert {p.dtype for n, p in student.named_parameters() if n in trained} == {torch.float32}
    assert {p.dtype for n, p in student.named_parameters() if n not in trained} == {torch.bfloat16}


def test_a_window_past_the_diagonal_has_nothing_to_learn(data: Path):
    model = teacher()
    batch = SampleFolder(data).batch([1, 2], [0, 1], 0, 0)
    losses = distillation_losses(make_student(model, ClearSpec(99)), model, batch, 3.5)
    assert losses.distill < 1e-10 and losses.attention < 1e-10
    narrow = distillation_losses(make_student(model, ClearSpec(1)), model, batch, 3.5)
    assert narrow.distill > 1e-6 and narrow.attention > 1e-6


def test_loss_terms_by_hand(data: Path):
    model = teacher()
    student = make_student(model, ClearSpec(2))
    batch = SampleFolder(data).batch([1, 2], [0, 1], 0, 0)
    kept = []
    hooks = [
        net.single_transformer_blocks[1].attn.register_forward_hook(lambda m, a, out: kept.append(out))
        for net in (model, student)
    ]
    losses = distillation_losses(student, model, batch, 3.5)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(losses.attention, (kept[1] - kept[0]).square().mean())
    assert losses.flow > losses.distill, "a random teacher is nearer to its student than to the truth"


@pytest.mark.parametrize("down_factor", [1, 2])
def test_weights_round_trip_in_the_published_format(tmp_path: Path, down_factor: int):
    spec = ClearSpec(3, down_factor)
    model = teacher()
    student = make_student(model, spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in trained_set(model, spec):
            student.get_parameter(name).add_(torch.randn(student.get_parameter(name).shape, generator=generator))
    path = tmp_path / "mine.safetensors"
    save_weights(path, student.state_dict(), student, spec, "a test", dtype=torch.float32)
    file = read_clear_file(path)
    assert (file.radius, file.down_factor, file.source) == (3, down_factor, "a test")
    again = make_student(teacher(), spec)
    load_weights(again, path)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_held_out_error_is_zero_for_the_teacher_itself(data: Path):
    model = teacher()
    samples = SampleFolder(data, first=-2)
    assert len(samples) == 2 and samples.paths[-1].name == "0000011.safetensors"
    same = velocity_errors(make_student(model, ClearSpec(99)), model, samples, guidance=3.5)
    window = velocity_errors(make_student(model, ClearSpec(1)), model, samples, guidance=3.5)
    assert max(same.values()) < 1e-10 and min(window.values()) > 1e-7
    assert window == velocity_errors(make_student(model, ClearSpec(1)), model, samples, guidance=3.5)
