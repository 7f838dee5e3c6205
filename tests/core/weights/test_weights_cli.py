"""The command line of ``clear_core.weights``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core.weights import TRAINED_SETS, ClearHeader, read_clear_file, save_clear_lora
from clear_core.weights.__main__ import main
from clear_core.weights.fingerprint import Progress
from tests.support import PROJECT
from tests.support.golden_files import BASE
from tests.support.trained_files import random_factors, random_tensors


def cli(*arguments: object, capsys) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_cli_list_names_every_release_and_the_licence(capsys):
    code, out, _ = cli("list", capsys=capsys)
    assert code == 0
    for stem in ("clear_local_8", "clear_local_16", "clear_local_32", "clear_local_8_down_4", "clear_local_16_down_4"):
        assert f"{stem} " in out
    assert out.count("3.59 GB") == 5 and "Non-Commercial" in out


def test_cli_inspect(local, pooled, capsys):
    code, out, _ = cli("inspect", pooled, "--finite", capsys=capsys)
    assert code == 0 and "down factor  4" in out and "width 64, 1 double and 2 single" in out and "every value" in out
    local.write_bytes(local.read_bytes()[:-1])
    code, out, err = cli("inspect", local, capsys=capsys)
    assert (code, out) == (1, "") and err.startswith("clear_local_8.safetensors is truncated") and err.count("\n") == 1


def test_cli_save_takes_the_trained_tensors_out_of_a_whole_model(tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    code, said, _ = cli("save", "--state", BASE, "--radius", 8, "--dtype", "bf16", "--out", out, capsys=capsys)
    assert code == 0 and "left out, not CLEAR's: 60 tensors" in said
    file, base = read_clear_file(out), load_file(BASE)
    assert (file.radius, file.down_factor, file.dtypes, file.source) == (8, 1, {torch.bfloat16}, "base.safetensors")
    assert all(torch.equal(tensor, base[name].bfloat16()) for name, tensor in file.tensors().items())


def test_a_log_file_gets_whole_lines_of_a_command(tmp_path):
    log = tmp_path / "log.txt"
    arguments = ["save", "--state", str(BASE), "--radius", "8", "--out", str(tmp_path / "mine.safetensors")]
    with log.open("w", newline="") as file, redirect_stderr(file):
        assert main(arguments) == 0
    count = len(read_clear_file(tmp_path / "mine.safetensors").tensors())
    assert re.fullmatch(rf"saving: {count} of {count} tensors in \d+ s\n", log.read_text())


def test_cli_get_tells_its_megabytes_and_silences_the_client(tmp_path, monkeypatch, capsys):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    def download(name: str, folder: Path, progress: Progress) -> Path:
        for done in (10, 20, 35):
            progress(done * 10**6, 35 * 10**6)
        return folder / name

    monkeypatch.setattr("clear_core.weights.__main__.fetch", download)
    try:
        code, out, err = cli("get", "clear_local_16", "--to", tmp_path, capsys=capsys)
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
    assert code == 0 and out.endswith(f"{tmp_path / 'clear_local_16'}\n")
    assert re.fullmatch(r"clear_local_16: 35 of 35 megabytes in \d+ s\n", err)


def test_cli_save_of_another_family_and_what_inspect_says_of_it(tmp_path, capsys):
    state, out = tmp_path / "state.safetensors", tmp_path / "mine.safetensors"
    save_file(random_tensors(TRAINED_SETS["FLUX.2"], 4, 1, 1), state)
    assert cli("save", "--state", state, "--radius", 8, "--family", "FLUX.2", "--out", out, capsys=capsys)[0] == 0
    code, said, _ = cli("inspect", out, capsys=capsys)
    assert code == 0 and "family       FLUX.2" in said and "kind         replace" in said
    factors, _ = random_factors(random_tensors(TRAINED_SETS["FLUX.2"], 4, 1, 1))
    save_clear_lora(out, factors, {}, {}, ClearHeader(8, family="FLUX.2"), force=True)
    assert "kind         lora, rank 3" in cli("inspect", out, capsys=capsys)[1]
    code, _, err = cli("save", "--state", state, "--radius", 8, "--out", tmp_path / "other", capsys=capsys)
    assert code == 1 and "is incomplete: 7 trained tensors are missing" in err


def test_cli_save_of_half_a_state_is_one_sentence(tmp_path, capsys):
    save_file({"transformer_blocks.0.attn.to_q.bias": torch.zeros(4)}, tmp_path / "half.safetensors")
    state, out = tmp_path / "half.safetensors", tmp_path / "out.safetensors"
    code, _, err = cli("save", "--state", state, "--radius", 8, "--out", out, capsys=capsys)
    assert code == 1 and "half.safetensors is incomplete: 7 trained tensors are missing" in err
    assert os.listdir(tmp_path) == ["half.safetensors"]


def test_cli_save_keeps_the_spatial_weights(tmp_path, pooled, capsys):
    assert cli("save", "--state", pooled, "--radius", 8, "--out", tmp_path / "mine.safetensors", capsys=capsys)[0] == 0
    ours, theirs = (read_clear_file(path).spatial_weights() for path in (tmp_path / "mine.safetensors", pooled))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[block], theirs[block]) for block in ours)


def test_cli_delta_and_lora(tmp_path, local, capsys):
    out = tmp_path / "delta.safetensors"
    assert cli("delta", "--base", BASE, "--clear", local, "--out", out, capsys=capsys)[0] == 0
    assert read_clear_file(out).kind == "delta"
    code, _, err = cli("delta", "--base", BASE, "--clear", local, "--out", out, capsys=capsys)
    assert code == 1 and "exists already" in err
    code, said, _ = cli("delta", "--base", BASE, "--clear", local, "--out", out, "--lora", 4, "--force", capsys=capsys)
    assert code == 0 and "rank     4 keeps" in said and "have no place in a LoRA" in said
    assert len(load_file(out)) == 20


@pytest.mark.parametrize("name", ["../clear_local_8", "clear_local_64", "Huage001/CLEAR"])
def test_cli_get_takes_catalogue_names_only(tmp_path, name, capsys):
    code, _, err = cli("get", name, "--to", tmp_path, capsys=capsys)
    assert code == 1 and "is not in the catalogue" in err and not os.listdir(tmp_path)


def test_cli_runs_as_a_module():
    command = [sys.executable, "-m", "clear_core.weights", "list"]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert answer.returncode == 0 and "clear_local_32" in answer.stdout


def test_the_command_runs_by_its_path_in_an_isolated_python(tmp_path):
    """As in ComfyUI's portable version for Windows: its Python imports nothing from the working directory."""
    file = PROJECT / "clear_core" / "weights" / "__main__.py"
    done = subprocess.run([sys.executable, "-I", str(file), "list"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "clear_local_16" in done.stdout
