"""Reading CLEAR files: every form of names, the header, lazy tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core.weights import ClearFileError, read_clear_file
from clear_core.weights.catalogue import CATALOGUE, find_release
from clear_core.weights.filename import bare_name, radius_from_name
from clear_core.weights.naming import trained_names
from tests.support import PROJECT
from tests.support.peak_memory import grown

GOLDEN = PROJECT / "tests" / "golden"


def as_comfyui(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The golden student (1 double, 2 single blocks) under ComfyUI's names, written out by hand."""
    out = {}
    for end in ("weight", "bias"):
        double = "transformer_blocks.0.attn."
        out[f"double_blocks.0.img_attn.qkv.{end}"] = torch.cat([state[f"{double}to_{c}.{end}"] for c in "qkv"])
        out[f"double_blocks.0.img_attn.proj.{end}"] = state[f"{double}to_out.0.{end}"]
        for index in range(2):
            single = f"single_transformer_blocks.{index}.attn."
            out[f"single_blocks.{index}.linear1.{end}"] = torch.cat([state[f"{single}to_{c}.{end}"] for c in "qkv"])
    for key, tensor in state.items():
        if key.endswith("spatial_weight"):
            block = key.split(".")[1]
            out[
                f"single_blocks.{block}.processor.spatial_weight"
                if key.startswith("single")
                else f"double_blocks.{block}.img_attn.processor.spatial_weight"
            ] = tensor
    return out


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer.", "model.diffusion_model."])
@pytest.mark.parametrize("rename", [dict, as_comfyui], ids=["diffusers", "comfyui"])
@pytest.mark.parametrize("student, down_factor", [("student_7_down1", 1), ("student_8_down4", 4)])
def test_every_form_gives_the_published_tensors(tmp_path, student, down_factor, rename, prefix):
    published = load_file(GOLDEN / f"{student}.safetensors")
    path = tmp_path / "clear_local_8.safetensors"
    save_file({prefix + key: tensor for key, tensor in rename(published).items()}, path)

    file = read_clear_file(path)

    assert (file.kind, file.radius, file.down_factor) == ("replace", 8, down_factor)
    assert (file.width, file.num_double, file.num_single) == (64, 1, 2)
    assert file.dtypes == {torch.float32}
    tensors = file.tensors()
    assert set(tensors) == {key for key in published if "spatial" not in key}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, published[name]), name
    spatial = file.spatial_weights()
    assert set(spatial) == ({("double", 0), ("single", 0), ("single", 1)} if down_factor > 1 else set())
    for (stream, index), weight in spatial.items():
        key = f"{'single_' * (stream == 'single')}transformer_blocks.{index}.attn.processor.spatial_weight"
        assert weight.dtype == torch.float32 and torch.equal(weight, published[key][0, 0, 0, :, 0, :, 0])
    file.check_finite()


@pytest.mark.parametrize(
    "name, radius",
    [
        ("clear_local_8.safetensors", 8),
        ("clear_local_16_down_4.safetensors", 16),
        ("clear_local_32 (1).safetensors", 32),
        ("clear_local_16-bf16.safetensors", 16),
        ("clear_local_8_down_4_fp8.safetensors", 8),
        ("CLEAR_LOCAL_8.SAFETENSORS", 8),
        ("flux-clear_local_16.safetensors", 16),
        ("flux/clear/clear_local_32.safetensors", 32),
        ("flux\\clear_local_32.safetensors", 32),
        ("clear_local_16/model.safetensors", None),
        ("clear_local_8_16.safetensors", None),
        ("clear_local_8.5.safetensors", None),
        ("clear_local_8b.safetensors", None),
        ("unclear_local_8.safetensors", None),
        ("clear_local_0.safetensors", None),
        ("clear_local_.safetensors", None),
        ("clear_local_8 and clear_local_16.safetensors", None),
        ("clear_local_99999.safetensors", None),
        ("student.safetensors", None),
    ],
)
def test_radius_from_name(name, radius):
    assert radius_from_name(name) == radius


def test_bare_name_knows_both_kinds_of_folder():
    assert bare_name("a/b\\c.safetensors") == "c.safetensors"


def test_header_overrides_name_and_is_reported(tmp_path):
    path = tmp_path / "clear_local_8.safetensors"
    save_file(
        load_file(GOLDEN / "student_8_down4.safetensors"),
        path,
        {"clear.radius": "11", "clear.kind": "delta", "clear.down_factor": "4", "clear.source": "a\nb"},
    )
    file = read_clear_file(path)
    assert (file.radius, file.kind, file.down_factor, file.source) == (11, "delta", 4, "a?b")


def test_no_radius_anywhere_is_none():
    assert read_clear_file(GOLDEN / "student_7_down1.safetensors").radius is None


@pytest.mark.parametrize("model", [(3072, 1, 2), (64, 19, 2), (64, 1, 38)], ids=["width", "double", "single"])
def test_fits_says_both_sides_in_numbers(model):
    file = read_clear_file(GOLDEN / "student_7_down1.safetensors")
    file.fits(64, 1, 2)
    with pytest.raises(ClearFileError) as error:
        file.fits(*model)
    assert all(str(number) in str(error.value) for number in (64, 1, 2, *model))


@pytest.mark.parametrize("where", ["weight", "spatial"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 7, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_check_finite_names_the_tensor(tmp_path, where, number, at, dtype):
    state = {key: tensor.to(dtype) for key, tensor in load_file(GOLDEN / "student_8_down4.safetensors").items()}
    tail = "processor.spatial_weight" if where == "spatial" else "to_v.weight"
    key = f"single_transformer_blocks.1.attn.{tail}"
    state[key].view(-1)[at] = number
    save_file(state, tmp_path / "x.safetensors")
    file = read_clear_file(tmp_path / "x.safetensors")
    with pytest.raises(ClearFileError, match=f"1 tensors.*{key}"):
        file.check_finite()


def test_a_file_that_vanished_is_one_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((GOLDEN / "student_7_down1.safetensors").read_bytes())
    file = read_clear_file(path)
    path.unlink()
    with pytest.raises(ClearFileError, match=r"x\.safetensors cannot be read: No such file"):
        file.tensors()


def sparse_clear_file(path: Path, width: int, doubles: int, singles: int) -> int:
    """A whole CLEAR file of zeros in bf16 that takes no disk; returns its size."""
    header, offset = {}, 0
    for name in trained_names(doubles, singles):
        shape = [width, width] if name.endswith("weight") else [width]
        end = offset + 2 * width ** len(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return 8 + len(text) + offset


@pytest.mark.slow
def test_opening_and_listing_read_no_tensor(tmp_path):
    warm = "from clear_core.weights import read_clear_file\nread_clear_file(sys.argv[1]).tensors()"
    work = """
tensors = read_clear_file(sys.argv[2]).tensors()
shapes = [tensor.shape for tensor in tensors.values()]
assert len(shapes) == len(tensors) > 0
"""
    small, rises = tmp_path / "small.safetensors", {}
    sparse_clear_file(small, 16, 1, 1)
    for width in (1024, 3072):
        path = tmp_path / f"{width}.safetensors"
        size = sparse_clear_file(path, width, 4, 8)
        rises[size] = grown(warm, work, small, path)
    (small_size, small_rise), (large_size, large_rise) = rises.items()
    assert large_size > 8 * small_size
    # Two tensors would take 38 MB at the larger size.
    assert max(small_rise, large_rise) < 16e6, rises


def test_catalogue_sizes_are_those_of_files_of_that_shape(tmp_path):
    release = CATALOGUE["clear_local_16"]
    path = tmp_path / release.name
    size = sparse_clear_file(path, release.width, release.num_double, release.num_single)
    header = 8 + int.from_bytes(path.open("rb").read(8), "little")
    assert release.size == size - header and 3.5e9 < release.size < 3.7e9
    read_clear_file(path).fits(release.width, release.num_double, release.num_single)
    pooled = CATALOGUE["clear_local_16_down_4"]
    assert pooled.size - release.size == 2 * 57 * 16


def test_catalogue_agrees_with_its_own_names():
    assert list(CATALOGUE) == [
        "clear_local_32",
        "clear_local_16",
        "clear_local_8",
        "clear_local_16_down_4",
        "clear_local_8_down_4",
    ]
    for stem, release in CATALOGUE.items():
        assert release.stem == stem and radius_from_name(release.name) == release.radius
        assert (release.down_factor == 4) == release.name.endswith("_down_4.safetensors")
        assert find_release(release.name) is find_release(stem) is release


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../clear_local_8",
        "clear_local_8/../x",
        "C:\\clear_local_8",
        "clear_local_64",
        "https://example.org/clear_local_8.safetensors",
        "Huage001/CLEAR",
        "clear_local_8\0",
        "clear_local_8.safetensors.safetensors",
        "CLEAR_LOCAL_8",
    ],
)
def test_catalogue_refuses_everything_else(name):
    with pytest.raises(ClearFileError, match="is not in the catalogue; expected one of clear_local_32") as error:
        find_release(name)
    assert "\0" not in str(error.value) and "\n" not in str(error.value)
