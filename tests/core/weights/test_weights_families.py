"""Files of every family that weights can be distilled for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core import weights
from clear_core.families import FAMILIES
from clear_core.weights import TRAINED_SETS, ClearFileError, ClearHeader, read_clear_file, save_clear_file
from clear_core.weights.delta import save_delta
from clear_core.weights.naming import trained_names
from clear_core.weights.state import trained_state
from tests.support.trained_files import random_factors, random_spatial, random_tensors, save_random, whole_change

WIDTH = 8


def sizes(family: str) -> tuple[int, int, int]:
    return WIDTH, 2, 2 if "single" in TRAINED_SETS[family].streams else 0


@pytest.fixture(params=list(TRAINED_SETS))
def family(request) -> str:
    return request.param


def test_the_table_says_what_the_table_of_families_says():
    known = {each.name: each for each in FAMILIES}
    assert TRAINED_SETS.keys() <= known.keys()
    for name, trained in TRAINED_SETS.items():
        assert trained.family == name
        assert ("single" in trained.streams) == (known[name].num_single > 0)
        counts = known[name].num_double, known[name].num_single
        assert trained.count(*counts) == len(set(trained.names(*counts)))
        assert known[name].weights in (None, name)


def test_flux_1_has_its_published_names():
    """57 blocks, 19 of them with an output projection: 19 * 4 + 38 * 3 layers, each with a bias."""
    names = list(TRAINED_SETS["FLUX.1"].names(19, 38))
    assert names == list(trained_names(19, 38)) and len(names) == 2 * (19 * 4 + 38 * 3)


@pytest.mark.parametrize("relative", ["Chroma", "FLUX.2", "Qwen-Image", "SD3.5 Large", "SD3.5 Medium"])
def test_names_are_those_of_diffusers_models(relative):
    """And these layers have no other parameters: a bias more or less is another family."""
    pytest.importorskip("diffusers", minversion="0.41")
    from tests.support.diffusers_relatives import RELATIVES

    model = RELATIVES[relative].build()
    trained = TRAINED_SETS["SD3.5" if relative.startswith("SD3.5") else relative]
    names = set(trained.names(len(model.transformer_blocks), len(getattr(model, "single_transformer_blocks", ()))))
    there = dict(model.named_parameters())
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    for stream, layer in trained.fused.items():
        assert stream == "single"
        stacked = {name for name in names if name.startswith("single_")}
        names -= stacked
        fused = [name for name in there if f".{layer}." in name]
        assert {name.rpartition(".")[2] for name in fused} == set(trained.ends)
        # q, k and v of a block lie in one layer, above the MLP's rows.
        assert len(stacked) == 3 * len(fused)
        assert all(there[name].shape[0] > 3 * there[name].shape[1] for name in fused)
    assert names == {
        name for name in there if name.partition("blocks.")[2].partition(".")[2].rpartition(".")[0] in parts
    }


@pytest.mark.parametrize("kind", ["replace", "delta", "lora"])
@pytest.mark.parametrize("d", [1, 2])
def test_what_is_written_is_read(tmp_path, family, kind, d):
    file = save_random(weights, tmp_path / "mine.safetensors", family, kind, sizes(family), d)
    assert file == read_clear_file(file.path)
    assert (file.family, file.kind, file.radius, file.down_factor) == (family, kind, 3, d)
    assert (file.width, file.num_double, file.num_single) == sizes(family)
    tensors = random_tensors(TRAINED_SETS[family], *sizes(family))
    expected = tensors if kind == "replace" else whole_change(*random_factors(tensors))
    found = file.tensors()
    assert set(found) == set(expected) == set(TRAINED_SETS[family].names(*sizes(family)[1:]))
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7) for name in expected)
    spatial = random_spatial(*sizes(family)[1:], d) if d > 1 else {}
    assert file.spatial_weights().keys() == spatial.keys()
    assert all(torch.equal(file.spatial_weights()[block], spatial[block]) for block in spatial)
    file.check_finite()
    file.fits(*sizes(family), family)


def test_a_file_without_a_family_is_flux_1(local, tmp_path):
    assert read_clear_file(local).family == "FLUX.1"
    file = save_random(weights, tmp_path / "clear_local_3.safetensors", "Chroma", "replace", sizes("Chroma"))
    file.fits(*sizes("Chroma"), "Chroma")
    # Chroma and FLUX.1 have the same shapes: only the header tells.
    save_file(load_file(file.path), file.path)
    stripped = read_clear_file(file.path)
    assert stripped.family == "FLUX.1"
    with pytest.raises(ClearFileError, match=r"was distilled for FLUX\.1, but the model is Chroma"):
        stripped.fits(*sizes("Chroma"), "Chroma")


@pytest.mark.parametrize("other", [*TRAINED_SETS, "Krea 2"])
def test_another_family_is_refused_by_both_names(tmp_path, family, other):
    file = save_random(weights, tmp_path / "mine.safetensors", family, "replace", sizes(family))
    if other == family:
        return file.fits(*sizes(family), other)
    with pytest.raises(ClearFileError) as caught:
        file.fits(*sizes(family), other)
    sentence = str(caught.value)
    assert sentence.startswith(f"mine.safetensors was distilled for {family}, but the model is {other}; choose ")
    # Nobody can distil any for Krea 2.
    assert (f"choose weights that were distilled for {other}, or none" in sentence) == (other in TRAINED_SETS)


def test_an_unknown_family_is_refused_by_name(tmp_path):
    tensors = random_tensors(TRAINED_SETS["FLUX.1"], 4, 1, 1)
    out = tmp_path / "mine.safetensors"
    with pytest.raises(ClearFileError, match=r"was distilled for 'FLUX\.3', a family that this version"):
        save_clear_file(out, tensors, {}, ClearHeader(3, family="FLUX.3"))
    assert not out.exists()
    save_file(tensors, out, {"clear.family": "FLUX.3"})
    with pytest.raises(ClearFileError, match=r"'FLUX\.3'.* expected clear\.family to be one of FLUX\.1, Chroma"):
        read_clear_file(out)


def test_biases_are_all_there_or_none_as_the_family_says(tmp_path):
    with_biases = random_tensors(TRAINED_SETS["FLUX.1"], 4, 1, 1)
    without = {name: tensor for name, tensor in with_biases.items() if name.endswith(".weight")}
    out = tmp_path / "mine.safetensors"
    save_file(without, out)
    with pytest.raises(ClearFileError, match="is incomplete: 7 trained tensors are missing"):
        read_clear_file(out)
    save_file(with_biases, out, {"clear.family": "FLUX.2"})
    with pytest.raises(ClearFileError, match=r"holds 7 that CLEAR does not train in FLUX\.2"):
        read_clear_file(out)
    save_file(without, out, {"clear.family": "FLUX.2"})
    assert len(read_clear_file(out).tensors()) == 7
    with pytest.raises(ClearFileError, match="7 tensors are missing or not CLEAR's"):
        save_clear_file(out, with_biases, {}, ClearHeader(3, family="FLUX.2"), force=True)


@pytest.mark.parametrize("family", ["Qwen-Image", "SD3.5"], indirect=True)
def test_families_of_double_blocks_have_no_single_ones(tmp_path, family):
    tensors = random_tensors(TRAINED_SETS["FLUX.1"], 4, 1, 1)
    out = tmp_path / "mine.safetensors"
    save_file(tensors, out, {"clear.family": family})
    with pytest.raises(ClearFileError, match=f"holds 6 that CLEAR does not train in {family}"):
        read_clear_file(out)
    with pytest.raises(ClearFileError, match="6 tensors are missing or not CLEAR's"):
        save_clear_file(out, tensors, {}, ClearHeader(3, family=family), force=True)


def stacked(tensors: dict[str, torch.Tensor], block: str, parts: tuple[str, ...], end: str) -> torch.Tensor:
    return torch.cat([tensors[f"{block}.attn.{part}.{end}"] for part in parts])


def hosts_names(family: str, tensors: dict[str, torch.Tensor], rows: int = 0) -> dict[str, torch.Tensor]:
    """As ComfyUI keeps them; a single block's layer with so many rows more."""
    found: dict[str, torch.Tensor] = {}
    qkv = ("to_q", "to_k", "to_v")
    stem, layer, out = {"SD3.5": ("joint_blocks", "x_block.attn.qkv", "x_block.attn.proj")}.get(
        family, ("double_blocks", "img_attn.qkv", "img_attn.proj")
    )
    for end in TRAINED_SETS[family].ends:
        for index in range(2):
            name = f"transformer_blocks.{index}"
            found[f"{stem}.{index}.{layer}.{end}"] = stacked(tensors, name, qkv, end)
            found[f"{stem}.{index}.{out}.{end}"] = stacked(tensors, name, ("to_out.0",), end)
            if "single" in TRAINED_SETS[family].streams:
                own = stacked(tensors, f"single_{name}", qkv, end)
                more = torch.randn(rows, *own.shape[1:], generator=torch.Generator().manual_seed(index))
                found[f"single_blocks.{index}.linear1.{end}"] = torch.cat([own, more])
    return found


@pytest.mark.parametrize("family", [name for name in TRAINED_SETS if name != "Qwen-Image"], indirect=True)
def test_the_hosts_names_are_read(tmp_path, family):
    tensors = random_tensors(TRAINED_SETS[family], *sizes(family))
    out = tmp_path / "mine.safetensors"
    save_file(hosts_names(family, tensors), out, {"clear.family": family})
    file = read_clear_file(out)
    assert file.naming == "ComfyUI"
    assert all(torch.equal(file.tensors()[name], tensors[name]) for name in tensors)


def diffusers_names(family: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a whole diffusers model keeps them: FLUX.2's single blocks have one layer for q, k, v and the MLP."""
    if family != "FLUX.2":
        return tensors
    apart = {name: tensor for name, tensor in tensors.items() if not name.startswith("single_")}
    fused = {
        key.replace("single_blocks", "single_transformer_blocks").replace("linear1", "attn.to_qkv_mlp_proj"): tensor
        for key, tensor in hosts_names(family, tensors, rows=24).items()
        if key.startswith("single_")
    }
    return apart | fused


@pytest.mark.parametrize("form", ["diffusers", "ComfyUI"])
def test_a_delta_is_the_difference_to_the_whole_model(tmp_path, family, form):
    base, change = (random_tensors(TRAINED_SETS[family], *sizes(family), seed=seed) for seed in (1, 2))
    names = diffusers_names(family, base)
    if form == "ComfyUI" and family != "Qwen-Image":
        names = hosts_names(family, base, rows=24)
    whole = {f"model.diffusion_model.{name}" if form == "ComfyUI" else name: tensor for name, tensor in names.items()}
    save_file({**whole, "an.untrained.weight": torch.zeros(3)}, tmp_path / "base.safetensors")
    header = ClearHeader(3, family=family)
    new = {name: base[name] + change[name] for name in base}
    file = save_clear_file(tmp_path / "new.safetensors", new, {}, header)
    delta = save_delta([tmp_path / "base.safetensors"], file.path, tmp_path / "delta.safetensors")
    assert (delta.family, delta.kind) == (family, "delta")
    found = delta.tensors()
    assert all(torch.allclose(found[name], change[name], atol=1e-6) for name in change)
    with pytest.raises(ClearFileError, match=f"expected a whole {'FLUX.1-dev' if family == 'FLUX.1' else family}"):
        part = dict(list(whole.items())[1:])
        save_file(part, tmp_path / "part.safetensors")
        save_delta([tmp_path / "part.safetensors"], file.path, tmp_path / "none.safetensors")


@pytest.mark.parametrize("family", ["FLUX.2"], indirect=True)
def test_a_file_that_has_q_twice_is_refused(tmp_path, family):
    tensors = random_tensors(TRAINED_SETS[family], *sizes(family))
    fused = stacked(tensors, "single_transformer_blocks.0", ("to_q", "to_k", "to_v"), "weight")
    out = tmp_path / "mine.safetensors"
    save_file(
        {**tensors, "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight": fused}, out, {"clear.family": family}
    )
    with pytest.raises(ClearFileError, match="that CLEAR does not train"):
        read_clear_file(out)


def test_a_training_state_is_read_as_its_family(tmp_path, family):
    tensors = random_tensors(TRAINED_SETS[family], *sizes(family))
    save_file({**tensors, "x_embedder.weight": torch.zeros(2)}, tmp_path / "state.safetensors")
    state = trained_state(tmp_path / "state.safetensors", family)
    assert state.others == ["x_embedder.weight"]
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)
