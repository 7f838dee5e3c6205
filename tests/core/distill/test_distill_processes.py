"""Several processes: DDP, DeepSpeed's ZeRO-2 and FSDP 2 train what one process trains, killed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import PROJECT
from tests.support.distill_ranks import ENVIRONMENT
from tests.support.distillation import teacher
from tests.support.launch import free_port

STEPS = 4


def launch(
    folder: Path, data: Path, mode: str, processes: int, *more: str, kill: int | None = None, dtype: str = "float32"
) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
    arguments = ["train", "--model", str(folder.parent / "teacher"), "--data", str(data), "--out", str(folder)]
    arguments += ["--radius", "2", "--down-factor", "2", "--steps", str(STEPS), "--batch", str(4 // processes)]
    arguments += ["--rate", "1e-3", "--dtype", dtype, "--held-out", "2", "--save-every", "2", *more]
    if "DEEPSPEED" not in str(ENVIRONMENT[mode]):
        arguments.append("--cpu")
    first = [] if kill is None else [f"kill={kill}"]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "tests.support.distill_ranks", *first, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | ENVIRONMENT[mode],
        timeout=300,
    )


def trained(folder: Path, data: Path, mode: str, processes: int, *more: str, dtype: str = "float32") -> dict:
    if not (folder.parent / "teacher").exists():
        teacher().save_pretrained(folder.parent / "teacher")
    result = launch(folder, data, mode, processes, *more, dtype=dtype)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "on 2 held-out samples" in result.stdout
    return load_file(folder / f"checkpoint-{STEPS:07d}" / "model.safetensors")


def slow(mode: str, *more: str) -> object:
    return pytest.param(mode, more, True, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "mode, more, kill",
    [
        ("ddp", (), False),
        ("fsdp", (), False),
        slow("ddp"),
        slow("zero2"),
        slow("fsdp"),
        slow("ddp", "--rank", "4"),
        slow("zero2", "--rank", "4"),
        slow("fsdp", "--rank", "4"),
        slow("zero2", "--accumulation", "2"),
        slow("ddp", "--rank", "4", "--base", "nf4"),
        slow("ddp", "--rank", "4", "--base", "fp8", "--offload"),
    ],
    ids=lambda v: v if isinstance(v, str) else ("killed" if v else "whole") if isinstance(v, bool) else " ".join(v),
)
def test_two_processes_equal_one_with_twice_the_batch_killed_or_not(
    data: Path, tmp_path: Path, mode: str, more: tuple[str, ...], kill: bool
):
    if mode == "zero2":
        pytest.importorskip("deepspeed")
    one = trained(tmp_path / "one", data, "ddp", 1, *more)
    two = trained(tmp_path / "two", data, mode, 2, *more)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)
    if not more:
        before = teacher().state_dict()["transformer_blocks.0.attn.to_q.weight"]
        assert (one["transformer_blocks.0.attn.to_q.weight"] - before).abs().max() > 1e-3
    frozen = sum(p.numel() for p in teacher().parameters())
    stored = sum(path.stat().st_size for path in (tmp_path / "two" / "checkpoint-0000004").rglob("*") if path.is_file())
    assert stored < 4 * frozen * 3.5, "no frozen weights in a checkpoint"
    if not kill:
        return
    result = launch(tmp_path / "killed", data, mode, 2, *more, kill=3)
    assert result.returncode != 0 and (tmp_path / "killed" / "checkpoint-0000002").is_dir()
    again = trained(tmp_path / "killed", data, mode, 2, *more)
    for name, tensor in two.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6, msg=f"{name}, after a kill")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero2", "fsdp"])
def test_frozen_weights_of_16_bits_train_beside_float32(data: Path, tmp_path: Path, mode: str):
    if mode == "zero2":
        pytest.importorskip("deepspeed")
    one = trained(tmp_path / "one", data, "ddp", 1, dtype="bfloat16")
    two = trained(tmp_path / "two", data, mode, 2, dtype="bfloat16")
    name = "transformer_blocks.0.attn.to_q.weight"
    moved = one[name] - teacher().state_dict()[name].bfloat16().float()
    assert (two[name] - one[name]).norm() < 0.3 * moved.norm()


@pytest.mark.parametrize(
    "mode, more, words",
    [
        pytest.param("zero3", (), "ZeRO-3 is not supported", marks=pytest.mark.slow),
        pytest.param("fsdp1", (), "FSDP 1 cannot hold frozen weights", marks=pytest.mark.slow),
        pytest.param(
            "fsdp", ("--rank", "2", "--base", "nf4"), "base nf4 does not go with FSDP", marks=pytest.mark.slow
        ),
        pytest.param("zero2", ("--offload",), "offload does not go with DeepSpeed", marks=pytest.mark.slow),
    ],
    ids=["zero3", "fsdp1", "nf4 and fsdp", "offload and zero2"],
)
def test_what_does_not_go_together_is_one_sentence(
    data: Path, tmp_path: Path, mode: str, more: tuple[str, ...], words: str
):
    if "zero" in mode:
        pytest.importorskip("deepspeed")
    teacher().save_pretrained(tmp_path / "teacher")
    result = launch(tmp_path / "out", data, mode, 2, *more)
    assert result.returncode != 0 and words in result.stderr
