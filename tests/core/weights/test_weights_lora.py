"""LoRAs made from a student and its base."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from clear_core.weights import ClearFileError
from clear_core.weights.lora import save_lora
from tests.support.golden_files import BASE, WIDTH


@pytest.mark.parametrize("rank", [1, 7, 40, 64])
def test_lora_is_the_best_of_its_rank_and_says_what_it_keeps(tmp_path, local, rank):
    out = tmp_path / "lora.safetensors"
    energy = save_lora([BASE], local, out, rank)

    lora, student, dev = load_file(out), load_file(local), load_file(BASE)
    layers = [key.removesuffix(".weight") for key in student if key.endswith(".weight")]
    assert set(lora) == {f"transformer.{layer}.lora_{end}.weight" for layer in layers for end in "AB"}
    lost, best, total = 0.0, 0.0, 0.0
    for layer in layers:
        delta = (student[f"{layer}.weight"] - dev[f"{layer}.weight"]).double()
        up, down = lora[f"transformer.{layer}.lora_B.weight"], lora[f"transformer.{layer}.lora_A.weight"]
        assert up.shape == (WIDTH, rank) and down.shape == (rank, WIDTH)
        lost += float((delta - up.double() @ down.double()).square().sum())
        best += float(torch.linalg.svdvals(delta)[rank:].square().sum())
        total += float(delta.square().sum())
    assert lost == pytest.approx(best, rel=2e-2, abs=1e-6)
    assert energy.kept[rank] == pytest.approx(1 - lost / total, abs=1e-5)
    assert max(energy.kept) == rank and sorted(energy.kept.values()) == list(energy.kept.values())
    biases = sum(float((student[key] - dev[key]).double().square().sum()) for key in student if key.endswith("bias"))
    assert energy.biases == pytest.approx(biases / (biases + total), rel=1e-6)


def test_lora_leaves_the_random_numbers_of_others_alone(tmp_path, local):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_lora([BASE], local, tmp_path / "lora.safetensors", 4)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_lora_rank_out_of_range(tmp_path, local, rank):
    with pytest.raises(ClearFileError, match=f"the rank is {rank}; expected 1 to 64"):
        save_lora([BASE], local, tmp_path / "lora.safetensors", rank)


def test_lora_of_a_pooled_variant_is_refused(tmp_path, pooled):
    with pytest.raises(ClearFileError, match="pools 4 x 4, which a LoRA cannot hold"):
        save_lora([BASE], pooled, tmp_path / "lora.safetensors", 4)
    assert not (tmp_path / "lora.safetensors").exists()
