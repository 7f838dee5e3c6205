"""What a CLEAR file makes of a small diffusers model, put in by hand, and a refusal that changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from clear_core.weights import TRAINED_SETS
from tests.support.trained_files import random_factors, random_tensors, whole_change

KINDS = ("replace", "delta", "lora")

FLUX_SIZES = (64, 1, 2)
"""Width, double and single blocks of the tiny FLUX."""


def expected_state(state: dict[str, Tensor], kind: str, family: str, sizes: tuple[int, int, int]) -> dict[str, Tensor]:
    """A plain model's state with the weights of ``save_random`` put in by hand."""
    tensors = random_tensors(TRAINED_SETS[family], *sizes)
    change = whole_change(*random_factors(tensors))
    found = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in tensors.items():
        place = found
        if name in found:
            own = found[name]
        else:  # FLUX.2's single blocks
            stem, part, end = name.rsplit(".", 2)
            row = ("to_q", "to_k", "to_v").index(part)
            own = place[f"{stem}.to_qkv_mlp_proj.{end}"][row * sizes[0] : (row + 1) * sizes[0]]
        own.copy_(tensor if kind == "replace" else own + change[name])
    return found


def by_hand(model: Any, kind: str, family: str = "FLUX.1", sizes: tuple[int, int, int] = FLUX_SIZES) -> Any:
    model.load_state_dict(expected_state(model.state_dict(), kind, family, sizes))
    return model


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], rtol=0, atol=1e-6) for name in wanted)


@contextmanager
def refused(model: Any, error: type[Exception], sentence: str):
    """Expects a refusal in one line, after which every tensor of the model is as it was."""

    def values() -> dict[str, Tensor]:
        state = model.state_dict().items()
        return {name: tensor.dequantize() if type(tensor) is not Tensor else tensor.clone() for name, tensor in state}

    before = values()
    with pytest.raises(error, match=sentence) as caught:
        yield
    assert "\n" not in str(caught.value)
    after = values()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def add_adapter(model: Any, fill: bool = True) -> None:
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_out.0"]), "style")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and fill:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def quantised_4bit(model: Any, **settings: Any) -> Any:
    """Every layer of the blocks' attention in bitsandbytes' 4 bits."""
    nn = pytest.importorskip("bitsandbytes").nn
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and layer.weight.shape == (64, 64):
                small = nn.Linear4bit(64, 64, compute_dtype=torch.float32, **settings)
                small.weight = nn.Params4bit(layer.weight.data.clone(), requires_grad=False, **settings).to("cpu")
                small.bias = layer.bias
                setattr(module, name, small)
    return model
