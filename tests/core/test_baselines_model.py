"""The comparison's attentions on the tiny FLUX: what reaches them, what is trained, and that training works."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core import ClearSpec, SequenceLayout
from demo.experiments.baselines.attention import Attention
from demo.experiments.baselines.compressed import Compressed
from demo.experiments.baselines.full import Full
from demo.experiments.baselines.put_on import put_on
from demo.experiments.baselines.registry import KINDS
from demo.experiments.baselines.swin import Swin
from demo.experiments.baselines.windows import Windows
from demo.experiments.hybrid_attention import planned
from demo.experiments.hybrid_plans import plain
from demo.model import build_denoiser
from demo.tiny_flux.data import Batch, training_batch
from demo.tiny_flux.train import own_velocity
from demo.tiny_flux.weights import load_tiny_flux
from demo.training import batch_loss

NOISE = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
GRID = (8, 12)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return training_batch(7, 0, 2, (128, 192))


def flow(attention: Attention | None) -> torch.Tensor:
    denoiser = build_denoiser()
    if attention is not None:
        put_on(denoiser.transformer, attention)
    with torch.inference_mode():
        return denoiser(NOISE, 0.7)


def test_dense_attention_is_the_model():
    torch.testing.assert_close(flow(Full()), flow(None), rtol=0, atol=1e-5)


def test_windows_are_those_of_the_hybrid_laboratory():
    denoiser = build_denoiser()
    with torch.inference_mode(), planned(denoiser.transformer, plain(3)) as at:
        at(GRID, 0.7)
        wanted = denoiser(NOISE, 0.7)
    torch.testing.assert_close(flow(Windows(ClearSpec(3))), wanted, rtol=0, atol=1e-5)
    assert (wanted - flow(None)).abs().max() > 0.05


def test_an_attention_is_told_its_block_and_layout(monkeypatch):
    calls: list[tuple[SequenceLayout, int]] = []
    own = Swin.attend

    def watched(self, q, k, v, layout, block, weight):
        calls.append((layout, block))
        return own(self, q, k, v, layout, block, weight)

    monkeypatch.setattr(Swin, "attend", watched)
    flow(Swin(4))
    text = build_denoiser().prompt_embeds.shape[1]
    assert calls == [(SequenceLayout(text, GRID), block) for block in range(4)]


def test_taken_off_it_is_the_model_again():
    model = load_tiny_flux()
    before = list(model.attn_processors.values())
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    put = put_on(model, Compressed(4))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == set(put.trained)
    put.take_off()
    assert list(model.attn_processors.values()) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("kind, weights", [("dense", 0), ("PixArt-Sigma", 4), ("CLEAR pooled", 4), ("agent", 0)])
def test_what_is_trained(kind, weights):
    trained = put_on(load_tiny_flux(), KINDS[kind].make(4)).trained
    projections = {name for name in trained if ".processor." not in name}
    double = {f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")}
    single = {f"single_transformer_blocks.{n}.attn.{part}" for n in range(3) for part in ("to_q", "to_k", "to_v")}
    assert projections == {f"{name}.{end}" for name in double | single for end in ("weight", "bias")}
    assert len(trained) - len(projections) == weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training_lowers_the_loss(kind, batch):
    """Flow matching alone, as the paper trains its baselines; in the precision of the demo's training."""
    model = load_tiny_flux()
    trained = put_on(model, KINDS[kind].make(3 if kind == "neighbourhood" else 4)).trained
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return batch_loss(own_velocity, model, batch)

    optimizer = torch.optim.SGD(trained.values())
    first = loss()
    first.backward()
    slope = sum(parameter.grad.square().sum().item() for parameter in trained.values())
    # A step that should lower the loss by a fiftieth, if it were straight.
    optimizer.param_groups[0]["lr"] = 0.02 * first.item() / slope
    optimizer.step()
    assert all((parameter - before[name]).abs().max() > 0 for name, parameter in trained.items())
    with torch.no_grad():
        assert loss().item() < 0.995 * first.item()
