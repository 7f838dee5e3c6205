"""Damaged and hostile weights files, made by the test that asks for them."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save

GOLDEN = Path(__file__).parents[1] / "golden"

State = dict[str, torch.Tensor]
Q = "transformer_blocks.0.attn.to_q.weight"
SPATIAL = "transformer_blocks.0.attn.processor.spatial_weight"


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def local() -> State:
    return load_file(GOLDEN / "student_7_down1.safetensors")


def pooled() -> State:
    return load_file(GOLDEN / "student_8_down4.safetensors")


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def changed_header(change: Callable[[dict], None]) -> bytes:
    """The golden student with its header edited, its data as they were."""
    whole = (GOLDEN / "student_7_down1.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    change(header)
    return raw(header, whole[8 + length :])


def spaced(spaces: int) -> bytes:
    """The golden student with this many spaces at the end of its header, which the format allows."""
    whole = (GOLDEN / "student_7_down1.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return raw(whole[8 : 8 + length] + b" " * spaces, whole[8 + length :])


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save(local(), buffer)
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save(local(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def without(state: State, *parts: str) -> State:
    return {key: tensor for key, tensor in state.items() if not any(part in key for part in parts)}


def comfyui(rows: int) -> State:
    """One double and one single block of width 8 under ComfyUI's names, with ``rows`` rows in linear1."""
    names = {"double_blocks.0.img_attn.qkv": 24, "double_blocks.0.img_attn.proj": 8, "single_blocks.0.linear1": rows}
    return {
        f"{name}.{end}": torch.zeros(*((r, 8) if end == "weight" else (r,)))
        for name, r in names.items()
        for end in ("weight", "bias")
    }


WHOLE = (GOLDEN / "student_7_down1.safetensors").read_bytes()

# Name of the case: (what is in the file, a fragment of the sentence).
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # Not safetensors, or not all of it.
    "empty": (lambda: b"", "is empty"),
    "one_byte": (lambda: b"\0", "truncated at 1 bytes"),
    "seven_bytes": (lambda: WHOLE[:7], "truncated at 7 bytes"),
    "header_length_only": (lambda: WHOLE[:8], "truncated at 8 bytes"),
    "cut_in_header": (lambda: WHOLE[:500], "truncated: it declares a header of"),
    "cut_in_data": (lambda: WHOLE[:-1], "truncated"),
    "cut_at_header_end": (lambda: WHOLE[: 8 + int.from_bytes(WHOLE[:8], "little")], "truncated"),
    "trailing_bytes": (lambda: WHOLE + b"\0", "does not account for"),
    "pickle": (lambda: pickle.dumps(Bomb()), "pickle"),
    "pickle_long": (lambda: pickle.dumps([Bomb(), "x" * 5000]), "pickle"),
    "torch_zip": (zipped, "PyTorch checkpoint"),
    "torch_legacy": (legacy, "pickle"),
    "gguf": (lambda: b"GGUF" + bytes(100), "GGUF"),
    "html": (lambda: b"<!DOCTYPE html><html>sign in</html>", "web page"),
    "lfs_pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
    "zeros": (lambda: bytes(4096), "not a safetensors file"),
    "text": (lambda: b"these are not the weights you are looking for", "not a safetensors file"),
    "huge_header": (lambda: raw(b'{"a":1}', length=2**63), "the format allows"),
    "largest_header": (lambda: raw(b'{"a":1}', length=2**64 - 1), "the format allows"),
    "header_of_99_MB": (lambda: raw(b'{"a":1}', length=99_000_000), "truncated: it declares a header of 99000000"),
    # A header that is longer than a CLEAR file has use for: one of 100 MB takes 15 s and 1.3 GB to read.
    "header_of_empty_tensors": (
        lambda: raw({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(70_000)}),
        "bytes, and a CLEAR file's has at most 4000000",
    ),
    "header_of_spaces": (lambda: spaced(4_000_000), "bytes, and a CLEAR file's has at most 4000000"),
    # A header with false statements.
    "json_cut": (lambda: raw(b'{"a": {"dtype": "F32"'), "cannot be understood"),
    "json_deep": (lambda: raw(b'{"a":' * 50_000), "cannot be understood"),
    "not_utf8": (lambda: raw(b'{"\xff\xfe": 1}'), "damaged"),
    "no_tensor": (lambda: raw({}), "holds no tensor at all"),
    "huge_shape": (
        lambda: raw({Q: {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, bytes(4)),
        "impossible size",
    ),
    "huge_offsets": (
        lambda: raw({Q: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(4)),
        "truncated",
    ),
    "negative_offsets": (
        lambda: raw({Q: {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        "cannot be understood",
    ),
    "overlap": (
        lambda: changed_header(
            lambda h: h[Q].update(data_offsets=h["transformer_blocks.0.attn.to_k.weight"]["data_offsets"])
        ),
        "on top of each other",
    ),
    "shape_and_bytes_disagree": (lambda: changed_header(lambda h: h[Q].update(shape=[1, 1])), "disagree"),
    "unknown_dtype": (lambda: changed_header(lambda h: h[Q].update(dtype="Q4_K")), "cannot be understood"),
    "metadata_not_text": (
        lambda: changed_header(lambda h: h.update(__metadata__={"clear.radius": 8})),
        "cannot be understood",
    ),
    # Well-formed, but not a CLEAR file.
    "whole_model": (lambda: (GOLDEN / "base.safetensors").read_bytes(), "60 that CLEAR does not train"),
    "other_model": (lambda: save({"lm_head.weight": torch.zeros(2, 2)}), "is not a CLEAR file: its tensors are called"),
    "lora": (lambda: save({f"transformer.{Q[:-7]}.lora_A.weight": torch.zeros(4, 64)}), "is not a CLEAR file"),
    "path_tricks": (lambda: save({"../../etc/passwd": torch.zeros(1), "C:\\x": torch.zeros(1)}), "../../etc/passwd"),
    "path_tricks_besides": (
        lambda: save({**local(), "../../../x\n\x1b[31m\u202e": torch.zeros(1)}),
        "1 that CLEAR does not train in FLUX.1 (../../../x??[31m?)",
    ),
    "key_of_a_megabyte": (lambda: save({**local(), "x" * 10**6: torch.zeros(1)}), "xxx…"),
    "missing_tensor": (lambda: save(without(local(), "0.attn.to_q.bias")), "2 trained tensors are missing"),
    "missing_block": (lambda: save(without(local(), "single_transformer_blocks.0.")), "6 trained tensors are missing"),
    "absurd_index": (
        lambda: save({**local(), "transformer_blocks.99999.attn.to_q.bias": torch.zeros(64)}),
        "799991 trained tensors are missing",
    ),
    "index_out_of_range": (
        lambda: save({**local(), f"transformer_blocks.{'9' * 5000}.attn.to_q.bias": torch.zeros(64)}),
        "1 that CLEAR does not train",
    ),
    "index_with_zero": (
        lambda: save({**local(), "transformer_blocks.00.attn.to_q.bias": torch.zeros(64)}),
        "1 that CLEAR does not train",
    ),
    "mixed_prefixes": (
        lambda: save({**local(), f"transformer.{Q}": torch.zeros(64, 64)}),
        "1 that CLEAR does not train",
    ),
    "mixed_layouts": (
        lambda: save({**local(), "double_blocks.0.img_attn.proj.bias": torch.zeros(64)}),
        "1 that CLEAR does not train",
    ),
    "wrong_shape": (lambda: save({**local(), Q: torch.zeros(64, 63)}), "is 64 x 63, expected"),
    "wrong_rank": (lambda: save({**local(), Q: torch.zeros(64)}), "wrong shape"),
    "scalar": (lambda: save({**local(), Q: torch.tensor(1.0)}), "is a single number"),
    "no_numbers": (lambda: save({key: tensor[:0] for key, tensor in local().items()}), "wrong shape"),
    "width_zero": (
        lambda: save({key: tensor[:0, :0] if tensor.ndim == 2 else tensor[:0] for key, tensor in local().items()}),
        "expected a square",
    ),
    "full_linear1": (lambda: save(comfyui(7 * 8)), "single_blocks.0.linear1.weight is 56 x 8, expected 24 x 8"),
    "integers": (
        lambda: save({key: tensor.to(torch.int8) for key, tensor in local().items()}),
        "20 tensors that are not floating-point",
    ),
    "booleans_besides": (lambda: save({**local(), Q: torch.zeros(64, 64, dtype=torch.bool)}), "is BOOL"),
    # Pooling and header values.
    "missing_spatial": (lambda: save(without(pooled(), SPATIAL)), "2 of its 3 blocks have no spatial_weight"),
    "mixed_down_factors": (
        lambda: save({**pooled(), SPATIAL: torch.zeros(1, 1, 1, 2, 1, 2, 1)}),
        "mixes down factors (2 in",
    ),
    "oblong_spatial": (
        lambda: save({**pooled(), SPATIAL: torch.zeros(1, 1, 1, 4, 1, 2, 1)}),
        "1 x 1 x 1 x 4 x 1 x 2 x 1",
    ),
    "spatial_of_one": (lambda: save({**pooled(), SPATIAL: torch.zeros(1, 1, 1, 1, 1, 1, 1)}), "with d from 2 to 64"),
    "spatial_of_integers": (
        lambda: save({**pooled(), SPATIAL: torch.zeros(1, 1, 1, 4, 1, 4, 1, dtype=torch.int64)}),
        "is I64",
    ),
    "radius_word": (lambda: save(local(), {"clear.radius": "__import__('os')"}), "clear.radius = "),
    "radius_zero": (lambda: save(local(), {"clear.radius": "0"}), "expected a whole number from 1 to 9999"),
    "radius_huge": (lambda: save(local(), {"clear.radius": "9" * 5000}), "expected a whole number from 1 to 9999"),
    "radius_other_digits": (lambda: save(local(), {"clear.radius": "\u0661\u0666"}), "expected a whole number"),
    "kind_unknown": (lambda: save(local(), {"clear.kind": "set"}), "expected replace, delta or lora"),
    "overlap_word": (lambda: save(local(), {"clear.overlap": "nan"}), "clear.overlap = 'nan'; expected a number like"),
    "down_factor_contradicts": (lambda: save(pooled(), {"clear.down_factor": "2"}), "header says clear.down_factor 2"),
    "down_factor_without_weights": (
        lambda: save(local(), {"clear.down_factor": "4"}),
        "header says clear.down_factor 4",
    ),
}
