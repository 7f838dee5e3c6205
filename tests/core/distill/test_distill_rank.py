"""Low-rank training, quantised bases, offload and 8-bit states: the same training in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clear_core import ClearSpec
from clear_core.distill.bases import quantise
from clear_core.distill.config import TrainConfig
from clear_core.distill.losses import distillation_losses
from clear_core.distill.pair import Pair
from clear_core.distill.samples import SampleFolder
from tests.support.diffusers_relatives import RELATIVES
from tests.support.distillation import run, start, teacher

WIDTH = 32


def weight_of(training: Any, place: Any) -> torch.Tensor:
    part = training.pair.part(place)
    if training.config.rank is None:
        return part.weight.detach()
    return (training.pair.original(place)[0] + part.up @ part.down).detach()


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_at_full_rank_the_first_step_is_that_of_whole_weights(data: Path, optimizer: str):
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    plans = [TrainConfig(radius=2, steps=1, batch=2, optimizer=optimizer, rank=rank) for rank in (None, WIDTH)]
    whole, low = (start(teacher(), data, plan) for plan in plans)
    before = {place.name: weight_of(whole, place).clone() for place in whole.pair.places}
    assert whole.run_step() == pytest.approx(low.run_step(), rel=1e-6)
    for mine, other in zip(whole.pair.places, low.pair.places, strict=True):
        change = weight_of(whole, mine) - before[mine.name]
        torch.testing.assert_close(
            weight_of(low, other) - before[mine.name], change, rtol=0, atol=1e-3 * change.abs().max().item() + 1e-8
        )
        bias = whole.pair.part(mine).bias - whole.pair.original(mine)[1]
        torch.testing.assert_close(low.pair.part(other).bias, bias, rtol=0, atol=1e-3 * bias.abs().max().item() + 1e-8)


@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_changes_stay_low_rank_and_teach(data: Path, tmp_path: Path, rank: int):
    model = teacher()
    plan = TrainConfig(radius=2, steps=40, batch=2, rate=1e-2, rank=rank)
    training = start(model, data, plan)
    batch = SampleFolder(data).batch([1, 2], [0, 1], 9, 0)
    before = distillation_losses(training.pair, batch, 3.5).total.item()
    for _ in range(plan.steps):
        training.run_step()
    assert distillation_losses(training.pair, batch, 3.5).total.item() < 0.97 * before
    for place in training.pair.places:
        part = training.pair.part(place)
        change = (part.up @ part.down).detach()
        assert torch.linalg.matrix_rank(change) == rank, place.name


@pytest.mark.parametrize("name", ["FLUX.1", "FLUX.2"])
@pytest.mark.parametrize("base", ["fp8", "nf4"])
def test_a_quantised_base_is_the_teacher_near_the_model_and_keeps_its_own_weights(name: str, base: str):
    pytest.importorskip({"fp8": "torchao", "nf4": "bitsandbytes"}[base])
    model = teacher() if name == "FLUX.1" else RELATIVES[name].build()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pair = Pair(model, ClearSpec(2), rank=4)
    quantise(pair, base)
    linears = [m for m in model.transformer_blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert linears and all(type(linear.weight) is not torch.nn.Parameter for linear in linears)
    for place in pair.places:
        rows = slice(place.index * WIDTH, (place.index + 1) * WIDTH)
        assert torch.equal(pair.original(place)[0], before[f"{place.path}.weight"][rows]), place.name
    names = [key for key, p in model.named_parameters() if p.requires_grad]
    assert len(names) == len(pair.trained()), "only the additions train"
    bound = {"fp8": 0.05, "nf4": 0.3}[base]
    for place in pair.places:
        states = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))
        layer = model.get_submodule(place.path)
        exact = torch.nn.functional.linear(states, before[f"{place.path}.weight"], before.get(f"{place.path}.bias"))
        distance = (layer.base(states) - exact).norm() / exact.norm()
        assert 1e-4 < distance < bound, (place.name, distance)


@pytest.mark.parametrize("base", ["plain", "fp8", "nf4"])
def test_layers_compute_in_16_bits_under_autocast_whatever_the_base(base: str):
    """On a card norms give float32 there; bitsandbytes would answer in it, with twice the memory."""
    pytest.importorskip({"plain": "torch", "fp8": "torchao", "nf4": "bitsandbytes"}[base])
    pair = Pair(teacher().bfloat16(), ClearSpec(2), rank=4)
    quantise(pair, base)
    with torch.autocast("cpu", torch.bfloat16):
        for name in ("attn.to_q", "ff.net.0.proj"):
            assert (
                pair.transformer.get_submodule(f"transformer_blocks.0.{name}")(torch.ones(1, 32)).dtype
                == torch.bfloat16
            )


@pytest.mark.parametrize("base", ["plain", "fp8", "nf4"])
def test_offload_trains_the_same(data: Path, tmp_path: Path, base: str):
    pytest.importorskip({"plain": "torch", "fp8": "torchao", "nf4": "bitsandbytes"}[base])
    plan = TrainConfig(radius=2, steps=3, batch=2, rate=1e-3, rank=4, base=base)
    one = run(teacher(), data, plan, tmp_path / "one")
    two = run(teacher(), data, plan, tmp_path / "two", offload=True)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_offloaded_weights_are_not_brought_to_the_card_by_the_library(data: Path, monkeypatch: pytest.MonkeyPatch):
    """accelerate moves a whole model unless it is told not to; on a CPU nobody would notice."""
    from accelerate import Accelerator

    seen: list[bool | None] = []
    plain = Accelerator.prepare_model

    def noted(self: Accelerator, model: Any, device_placement: bool | None = None, **others: Any) -> Any:
        seen.append(device_placement)
        return plain(self, model, device_placement=device_placement, **others)

    monkeypatch.setattr(Accelerator, "prepare_model", noted)
    start(teacher(), data, TrainConfig(radius=2, steps=1), offload=True)
    assert seen == [False]


@pytest.mark.parametrize("rank", [None, 4])
def test_recomputed_activations_train_the_same(data: Path, tmp_path: Path, rank: int | None):
    plan = TrainConfig(radius=2, down_factor=2, steps=3, batch=2, rate=1e-3, rank=rank)
    one = run(teacher(), data, plan, tmp_path / "one")
    two = run(teacher(), data, plan, tmp_path / "two", checkpointing=True)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_8_bit_states_follow_those_of_32(data: Path, tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    # Above 4096 numbers the library keeps 8 bits; a width of 64 has as many.
    from diffusers import FluxTransformer2DModel

    from tests.support.distillation import CONFIG

    torch.manual_seed(0)
    model = FluxTransformer2DModel(**CONFIG | {"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}).eval()
    plans = [TrainConfig(radius=2, steps=6, batch=2, rate=1e-3, optimizer=name) for name in ("adamw", "adamw8bit")]
    one, two = (start(model, data, plan) for plan in plans)
    for _ in range(6):
        one.run_step(), two.run_step()
    states = two.bare_optimizer.state.values()
    assert any(state["state1"].dtype == torch.uint8 for state in states)
    for place in one.pair.places:
        start_weight = one.pair.original(place)[0]
        exact, found = (weight_of(training, place) - start_weight for training in (one, two))
        assert (found - exact).norm() < 0.2 * exact.norm() and exact.norm() > 0, place.name


@pytest.mark.parametrize("values, words", [({"rank": 0}, "rank is 0"), ({"base": "int4"}, "base is 'int4'; expected")])
def test_bad_values_are_refused_in_words(values: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**{"radius": 2, **values})


def test_chroma_refuses_to_recompute(data: Path):
    model = RELATIVES["Chroma"].build()
    with pytest.raises(ValueError, match="Chroma in diffusers hands recomputed blocks no arguments"):
        pair = Pair(model, ClearSpec(2))
        from clear_core.distill.set_up import recompute

        recompute(pair)
