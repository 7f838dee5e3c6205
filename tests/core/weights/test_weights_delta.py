"""Deltas: base and delta add up to the student, whatever form the base has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core.weights import ClearFileError, read_clear_file
from clear_core.weights.delta import save_delta
from clear_core.weights.lora import save_lora
from tests.support import PROJECT
from tests.support.golden_files import BASE, WIDTH, base_as_comfyui


def shards(state: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    keys = sorted(state)
    parts = [keys[::2], keys[1::2], []]
    paths = [folder / f"shard-{index}.safetensors" for index in range(3)]
    for path, part in zip(paths, parts, strict=True):
        save_file({key: state[key] for key in part}, path)
    return paths


@pytest.mark.parametrize("form", ["diffusers", "diffusers_shards", "comfyui", "comfyui_prefixed"])
@pytest.mark.parametrize("student", ["local", "pooled"])
def test_delta_and_base_add_up_to_the_student(tmp_path, form, student, request):
    clear = request.getfixturevalue(student)
    if form == "diffusers":
        base = [BASE]
    elif form == "diffusers_shards":
        base = shards(load_file(BASE), tmp_path)
    else:
        base = [tmp_path / "flux1-dev.safetensors"]
        save_file(base_as_comfyui("model.diffusion_model." * form.endswith("prefixed")), base[0])

    file = save_delta(base, clear, tmp_path / "delta.safetensors")

    pools = student == "pooled"
    assert (file.kind, file.radius, file.down_factor) == ("delta", 8, 4 if pools else 1)
    assert file.source.startswith(f"{clear.name} minus ")
    # The published tensors and the base's, read from their files without the code under test.
    wanted, dev = load_file(clear), load_file(BASE)
    written = load_file(file.path)
    assert set(written) == set(wanted)
    for name, tensor in written.items():
        expected = wanted[name] if "spatial" in name else wanted[name] - dev[name]
        assert torch.equal(tensor, expected), name
        if "spatial" not in name:
            torch.testing.assert_close(dev[name] + tensor, wanted[name], rtol=0, atol=1e-7)


def test_a_delta_states_how_much_of_it_its_base_seems_to_hold(tmp_path, local):
    file = save_delta([BASE], local, tmp_path / "delta.safetensors")
    base, delta = load_file(BASE), load_file(file.path)
    names = [name for name in delta if name.endswith("to_out.0.weight")]
    assert 1 <= len(names) <= 4  # with more, a few of them would do

    def along(weights) -> float:
        return sum((weights[name].double() * delta[name]).sum() for name in names).item()

    assert (
        file.overlap == pytest.approx(along(base) / along(delta), abs=1e-5) and read_clear_file(local).overlap is None
    )


def test_delta_in_bf16_restores_the_student_to_bf16_rounding(tmp_path, local):
    student, dev = load_file(local), load_file(BASE)
    # A distilled weight differs little from its base; so does this one.
    student = {key: dev[key].bfloat16() + (0.05 * (tensor - dev[key])).bfloat16() for key, tensor in student.items()}
    save_file(student, local)
    save_file({key: tensor.bfloat16() for key, tensor in dev.items()}, tmp_path / "dev.safetensors")

    file = save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "delta.safetensors")

    assert file.dtypes == {torch.bfloat16}
    for name, tensor in file.tensors().items():
        restored = (dev[name].bfloat16().float() + tensor.float()).bfloat16()
        torch.testing.assert_close(restored, student[name], rtol=2**-7, atol=0)


def test_delta_is_stored_in_the_wider_dtype(tmp_path, local):
    save_file({key: tensor.half() for key, tensor in load_file(local).items()}, local)
    save_file({key: tensor.bfloat16() for key, tensor in load_file(BASE).items()}, tmp_path / "dev.safetensors")
    file = save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "delta.safetensors")
    assert file.dtypes == {torch.float32}


def shrunk(state):
    return {key: tensor[:32, :32] if tensor.ndim == 2 else tensor[:32] for key, tensor in state.items()}


@pytest.mark.parametrize(
    "change, fragment",
    [
        (lambda s: {k: t for k, t in s.items() if "single" not in k}, r"12 of its 20 trained tensors are not there"),
        (lambda s: {"lm_head.weight": torch.zeros(2, 2)}, r"20 of its 20 trained tensors are not there"),
        (shrunk, r"is of another size than the CLEAR file.*is 32.*, expected 64"),
        (lambda s: {k: t.to(torch.float8_e4m3fn) for k, t in s.items()}, r"is stored as F8_E4M3"),
        (lambda s: {k: torch.full_like(t, torch.nan) for k, t in s.items()}, r"is NaN or infinite in"),
    ],
    ids=["half_a_model", "other_model", "other_width", "fp8", "nan"],
)
@pytest.mark.parametrize("rank", [None, 4], ids=["delta", "lora"])
def test_a_base_that_does_not_fit_leaves_no_file(tmp_path, local, rank, change, fragment):
    save_file({k: t.contiguous() for k, t in change(load_file(BASE)).items()}, tmp_path / "dev.safetensors")
    before = set(os.listdir(tmp_path))
    with pytest.raises(ClearFileError, match=fragment):
        if rank:
            save_lora([tmp_path / "dev.safetensors"], local, tmp_path / "out.safetensors", rank)
        else:
            save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "out.safetensors")
    assert set(os.listdir(tmp_path)) == before


def test_linear1_without_mlp_rows_is_no_less_a_base(tmp_path, local):
    state = base_as_comfyui("")
    for index in range(2):
        for end in ("weight", "bias"):
            key = f"single_blocks.{index}.linear1.{end}"
            state[key] = state[key][: 3 * WIDTH].contiguous()
    save_file(state, tmp_path / "dev.safetensors")
    save_delta([tmp_path / "dev.safetensors"], local, tmp_path / "a.safetensors")
    save_delta([BASE], local, tmp_path / "b.safetensors")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_delta_of_a_delta_is_refused(tmp_path, local):
    save_delta([BASE], local, tmp_path / "delta.safetensors")
    with pytest.raises(ClearFileError, match="is a delta already"):
        save_delta([BASE], tmp_path / "delta.safetensors", tmp_path / "out.safetensors")


def test_delta_keeps_a_few_tensors_in_memory(tmp_path):
    """Student and base have 30 MB; only a few of their 1 MB tensors are in memory at once (file pages do not count)."""
    shapes = {f"single_transformer_blocks.{n}.attn.to_{c}": 512 for n in range(20) for c in "qkv"}
    state = {f"{name}.weight": torch.zeros(width, width, dtype=torch.bfloat16) for name, width in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(width, dtype=torch.bfloat16) for name, width in shapes.items()}
    for name in ("clear_local_8", "base"):
        save_file(state, tmp_path / f"{name}.safetensors")
    script = """
import sys
from pathlib import Path
from clear_core.weights.delta import save_delta
def anonymous():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024
folder = Path(sys.argv[1])
base, clear = [folder / "base.safetensors"], folder / "clear_local_8.safetensors"
save_delta(base, clear, folder / "warm.safetensors")
before, peak = anonymous(), 0
def look(count, total):
    global peak
    peak = max(peak, anonymous())
save_delta(base, clear, folder / "out.safetensors", on_tensor=look)
print(peak - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    answer = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=PROJECT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) < 8e6
