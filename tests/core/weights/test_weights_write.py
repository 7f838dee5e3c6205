"""Saving: the published format with a header, and only complete files."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clear_core.weights import ClearFileError, ClearHeader, read_clear_file, save_clear_file
from clear_core.weights.writer import write_safetensors


def test_save_is_the_published_format_with_a_header(tmp_path, pooled):
    source = read_clear_file(pooled)
    out = tmp_path / "mine.safetensors"
    file = save_clear_file(out, source.tensors(), source.spatial_weights(), ClearHeader(12, 4, source="10K pictures"))
    assert (file.radius, file.down_factor, file.kind, file.source) == (12, 4, "replace", "10K pictures")
    with safe_open(out, "pt") as handle:
        assert handle.metadata() == {
            "format": "pt",
            "clear.family": "FLUX.1",
            "clear.kind": "replace",
            "clear.radius": "12",
            "clear.down_factor": "4",
            "clear.source": "10K pictures",
        }
    mine, published = load_file(out), load_file(pooled)
    assert mine.keys() == published.keys()
    assert all(torch.equal(mine[key], published[key]) and mine[key].shape == published[key].shape for key in mine)


@pytest.mark.parametrize(
    "change, arguments, fragment",
    [
        (lambda t, w: t.pop("transformer_blocks.0.attn.to_k.bias"), {}, "1 tensors are missing or not CLEAR's"),
        (lambda t, w: t.update({"x_embedder.weight": torch.zeros(1)}), {}, "1 tensors are missing or not CLEAR's"),
        (lambda t, w: t.clear(), {}, "none of its 0 tensors is one that CLEAR trains"),
        (lambda t, w: t["transformer_blocks.0.attn.to_k.bias"].fill_(torch.inf), {}, "to_k.bias has NaN or infinite"),
        (
            lambda t, w: t["transformer_blocks.0.attn.to_k.bias"].fill_(7e4),
            {"dtype": torch.float16},
            "to_k.bias has NaN",
        ),
        (
            lambda t, w: t.update({"transformer_blocks.0.attn.to_k.weight": torch.zeros(64, 32)}),
            {},
            "64 x 32, expected 64",
        ),
        (lambda t, w: w.pop(("single", 1)), {}, "needs 3 spatial weights, 2 are given"),
        (lambda t, w: w.update({("single", 1): torch.zeros(2, 2)}), {}, "is 2 x 2, expected 4 x 4"),
        (lambda t, w: None, {"down_factor": 1}, "down factor 1 needs 0 spatial weights, 3 are given"),
        (lambda t, w: None, {"radius": 0}, "clear.radius = '0'; expected a whole number"),
        (lambda t, w: None, {"kind": "other"}, "clear.kind = 'other'; expected replace, delta or lora"),
    ],
    ids=[
        "missing",
        "foreign",
        "nothing",
        "inf",
        "inf_in_fp16",
        "shape",
        "spatial_missing",
        "spatial_shape",
        "down_factor",
        "radius",
        "kind",
    ],
)
def test_save_refuses_and_leaves_no_file(tmp_path, pooled, change, arguments, fragment):
    file = read_clear_file(pooled)
    tensors, spatial = {key: tensor.clone() for key, tensor in file.tensors().items()}, file.spatial_weights()
    change(tensors, spatial)
    header = ClearHeader(**{"radius": 8, "down_factor": 4} | {k: v for k, v in arguments.items() if k != "dtype"})
    before = os.listdir(tmp_path)
    with pytest.raises(ClearFileError, match=fragment):
        save_clear_file(tmp_path / "out.safetensors", tensors, spatial, header, dtype=arguments.get("dtype"))
    assert os.listdir(tmp_path) == before


def test_an_existing_file_is_replaced_only_by_force_and_only_when_whole(tmp_path, local):
    file, old = read_clear_file(local), b"somebody's work"
    out = tmp_path / "out.safetensors"
    out.write_bytes(old)
    with pytest.raises(ClearFileError, match=r"out\.safetensors exists already"):
        save_clear_file(out, file.tensors(), {}, ClearHeader(8))
    with pytest.raises(KeyboardInterrupt):

        def stop(count, total):
            raise KeyboardInterrupt

        save_clear_file(out, file.tensors(), {}, ClearHeader(8), force=True, on_tensor=stop)
    assert out.read_bytes() == old and sorted(os.listdir(tmp_path)) == [local.name, out.name]
    save_clear_file(out, file.tensors(), {}, ClearHeader(8), force=True)
    read_clear_file(out).check_finite()


def test_a_file_can_be_rewritten_in_place_from_its_own_tensors(tmp_path, local):
    before = load_file(local)
    save_clear_file(local, read_clear_file(local).tensors(), {}, ClearHeader(9), force=True)
    after = load_file(local)
    assert read_clear_file(local).radius == 9 and all(torch.equal(after[key], before[key]) for key in before)


def test_writing_where_there_is_no_folder_is_one_sentence(tmp_path, local):
    with pytest.raises(ClearFileError, match=r"out\.safetensors cannot be written: No such file or directory"):
        save_clear_file(tmp_path / "no" / "out.safetensors", read_clear_file(local).tensors(), {}, ClearHeader(8))


def test_written_offsets_are_aligned_and_read_by_safetensors(tmp_path):
    plan = {
        "b": (torch.float8_e4m3fn, (3,)),
        "a": (torch.float32, (1, 3)),
        "c": (torch.bfloat16, (5,)),
        "empty": (torch.float64, (0,)),
        "single": (torch.float64, ()),
    }
    made = {
        key: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype) for key, (dtype, shape) in plan.items()
    }
    write_safetensors(tmp_path / "x.safetensors", plan, made.__getitem__, {"é": "ü\n"})
    read = load_file(tmp_path / "x.safetensors")
    for key, tensor in made.items():
        assert read[key].dtype == tensor.dtype and read[key].shape == tensor.shape
        assert torch.equal(read[key].double(), tensor.double())
    with safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == {"é": "ü\n"}
