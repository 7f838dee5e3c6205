"""Files of kind "lora": what is refused, what is in them, and that other loaders of LoRAs understand them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clear_core.weights import TRAINED_SETS, ClearFileError, ClearHeader, read_clear_file, save_clear_lora
from clear_core.weights.lora import save_lora
from tests.support.golden_files import BASE
from tests.support.trained_files import RANK, random_factors, random_spatial, random_tensors

TO_Q = "transformer.transformer_blocks.0.attn.to_q"


def parts(family: str = "FLUX.1", width: int = 8):
    return random_factors(random_tensors(TRAINED_SETS[family], width, 1, 2))


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_clear_lora(path, *parts(), random_spatial(1, 2), ClearHeader(3, 2))
    return path


def test_the_names_are_pefts(saved):
    found = load_file(saved)
    assert found[f"{TO_Q}.lora_A.weight"].shape == (RANK, 8) and found[f"{TO_Q}.lora_B.weight"].shape == (8, RANK)
    assert found[f"{TO_Q}.lora_B.bias"].shape == (8,)
    assert found["single_transformer_blocks.1.attn.processor.spatial_weight"].shape == (1, 1, 1, 2, 1, 2, 1)
    assert not any("alpha" in name for name in found)
    with safe_open(saved, "pt") as handle:
        stated = handle.metadata()
    assert (stated["clear.kind"], stated["clear.lora_rank"], stated["clear.family"]) == ("lora", str(RANK), "FLUX.1")


def test_factors_are_read_as_they_are_and_changes_in_float32(tmp_path):
    factors, biases = parts()
    file = save_clear_lora(tmp_path / "a.safetensors", factors, biases, {}, ClearHeader(3), dtype=torch.bfloat16)
    assert file.rank == RANK and file.dtypes == {torch.bfloat16}
    for layer, (down, up) in factors.items():
        found = file.factors()[f"{layer}.weight"]
        assert torch.equal(found[0], down.bfloat16()) and torch.equal(found[1], up.bfloat16())
        change = file.tensors()[f"{layer}.weight"]
        assert change.dtype == torch.float32
        torch.testing.assert_close(change, up.bfloat16().float() @ down.bfloat16().float())


def test_biases_may_be_left_out(tmp_path):
    factors, _ = parts()
    file = save_clear_lora(tmp_path / "a.safetensors", factors, {}, {}, ClearHeader(3))
    assert all(name.endswith(".weight") for name in file.tensors()) and len(file.tensors()) == len(factors)


def test_peft_adds_the_same_change(tmp_path):
    """peft's own layer with ``lora_bias``, filled by the file's names."""
    peft = pytest.importorskip("peft")
    factors, biases = parts()
    file = save_clear_lora(tmp_path / "a.safetensors", factors, biases, {}, ClearHeader(3))
    layer = "transformer_blocks.0.attn.to_q"
    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 8)})
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q"], lora_bias=True)
    )
    stored = load_file(file.path)
    filled = {
        f"base_model.model.to_q.{end}": stored[f"transformer.{layer}.{end}"]
        for end in ("lora_A.weight", "lora_B.weight", "lora_B.bias")
    }
    result = peft.set_peft_model_state_dict(model, filled)
    assert not result.unexpected_keys
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    base = model.base_model.model["to_q"].base_layer
    wanted = torch.nn.functional.linear(
        x, base.weight + file.tensors()[f"{layer}.weight"], base.bias + file.tensors()[f"{layer}.bias"]
    )
    torch.testing.assert_close(model.base_model.model["to_q"](x), wanted)


@pytest.mark.parametrize(
    "change, fragment",
    [
        (lambda t: t.pop(f"{TO_Q}.lora_A.weight"), "is incomplete: 1 of its 20 factors are missing"),
        (lambda t: t.pop(f"{TO_Q}.lora_B.bias"), "it changes 9 of 10 biases, expected all or none"),
        (lambda t: t.update({f"{TO_Q}.alpha": torch.ones(())}), "holds 1 tensors that are none of a low-rank one"),
        (lambda t: t.update({"x.lora_A.weight": torch.ones(3, 8)}), "holds 1 tensors that are none of a low-rank one"),
        (
            lambda t: t.update({"transformer_blocks.0.attn.to_q.weight": torch.ones(8, 8)}),
            "holds 1 tensors that are none of a low-rank one",
        ),
        (
            lambda t: t.update({f"{TO_Q}.lora_A.weight": torch.ones(4, 8)}),
            r"of a wrong shape for rank 3 \(.*to_q\.lora_A\.weight is 4 x 8, expected 3 x 8",
        ),
        (lambda t: t.update({f"{TO_Q}.lora_B.weight": torch.ones(3, 8)}), "is 3 x 8, expected 8 x 3"),
        (lambda t: t.update({f"{TO_Q}.lora_B.bias": torch.ones(9)}), "is 9, expected 8"),
        (lambda t: t.update({f"{TO_Q}.lora_B.bias": torch.ones(8, dtype=torch.int32)}), "is I32"),
        (lambda t: t.pop("transformer_blocks.0.attn.processor.spatial_weight"), "1 of its 3 blocks have no"),
        (lambda t: [t.pop(key) for key in list(t) if "lora" in key], "is incomplete"),
        (lambda t: t.clear(), "is incomplete: all of its"),
    ],
    ids=[
        "factor",
        "bias",
        "alpha",
        "foreign",
        "whole",
        "rank",
        "turned",
        "bias_shape",
        "integers",
        "spatial",
        "no_factors",
        "nothing",
    ],
)
def test_a_damaged_one_is_one_sentence(saved, change, fragment):
    with safe_open(saved, "pt") as handle:
        stated = handle.metadata()
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, saved, stated)
    with pytest.raises(ClearFileError, match=fragment) as caught:
        read_clear_file(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stated, fragment",
    [
        ({"clear.kind": "lora"}, "does not say clear.lora_rank"),
        ({"clear.kind": "lora", "clear.lora_rank": "4"}, "of a wrong shape for rank 4"),
        ({"clear.kind": "lora", "clear.lora_rank": "0"}, "clear.lora_rank = '0'; expected a whole number"),
        ({"clear.kind": "lora", "clear.lora_rank": "3", "clear.family": "FLUX.2"}, "that are none of a low-rank one"),
        ({}, "is not a CLEAR file"),
    ],
    ids=["no_rank", "rank", "rank_zero", "family_without_biases", "no_header"],
)
def test_a_header_that_does_not_fit_is_one_sentence(saved, stated, fragment):
    save_file(load_file(saved), saved, stated)
    with pytest.raises(ClearFileError, match=fragment):
        read_clear_file(saved)


@pytest.mark.parametrize(
    "change, header, fragment",
    [
        (lambda f, b, s: f.pop("transformer_blocks.0.attn.to_q"), {}, "1 tensors are missing or not CLEAR's"),
        (lambda f, b, s: b.pop("transformer_blocks.0.attn.to_q"), {}, "1 tensors are missing or not CLEAR's"),
        (lambda f, b, s: b["transformer_blocks.0.attn.to_q"].fill_(torch.nan), {}, "has NaN or infinite values"),
        (
            lambda f, b, s: f.update({"transformer_blocks.0.attn.to_q": (torch.ones(2, 8), torch.ones(8, 2))}),
            {},
            "its layers have ranks 2 to 3, expected one",
        ),
        (lambda f, b, s: f.clear(), {}, "10 tensors are missing or not CLEAR's"),
        (lambda f, b, s: s.clear(), {}, "down factor 2 needs 3 spatial weights, 0 are given"),
        (lambda f, b, s: None, {"family": "FLUX.2"}, r"biases are given, but FLUX\.2's layers have none"),
    ],
    ids=["factor", "bias", "nan", "ranks", "no_factors", "spatial", "family"],
)
def test_what_is_not_whole_is_not_written(tmp_path, change, header, fragment):
    (factors, biases), spatial = parts(), random_spatial(1, 2)
    change(factors, biases, spatial)
    with pytest.raises(ClearFileError, match=fragment):
        save_clear_lora(
            tmp_path / "a.safetensors",
            factors,
            biases,
            spatial,
            ClearHeader(**{"radius": 3, "down_factor": 2} | header),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_lora_made_from_two_models_is_such_a_file(tmp_path, local):
    """At full rank its changes are the difference of the weights; it holds no biases."""
    out = tmp_path / "lora.safetensors"
    save_lora([BASE], local, out, 64)
    file, student, base = read_clear_file(out), load_file(local), load_file(BASE)
    assert (file.kind, file.rank, file.radius, file.family) == ("lora", 64, 8, "FLUX.1")
    assert set(file.tensors()) == {name for name in student if name.endswith(".weight")}
    for name, change in file.tensors().items():
        torch.testing.assert_close(change, (student[name] - base[name]).float(), atol=1e-5, rtol=1e-4)
