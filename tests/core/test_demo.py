"""``python -m demo``: one table whose counted figures are right, an honest text, a picture, and nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from clear_core import ClearSpec  # noqa: E402
from demo.__main__ import main  # noqa: E402
from demo.job import make_noise, run_job, total_steps  # noqa: E402
from demo.model import build_denoiser  # noqa: E402


def seen_pairs(text: int, side: int, radius: int) -> int:
    """Query-key pairs of CLEAR attention, counted by writing the mask out."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = y.flatten(), x.flatten()
    window = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2).sum().item()
    return window + 2 * text * side * side + text * text


def test_main_prints_one_table_and_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    assert main(["--size", "256", "--radius", "3", "--output", str(tmp_path / "new" / "folder")]) == 0
    assert torch.equal(torch.random.get_rng_state(), before)

    out = capsys.readouterr().out
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if re.search(r"\d px, ", line)]
    assert out.count("GFLOPs per layer") == 1 and len(rows) == 3
    assert [row[1] for row in rows] == ["128", "320", "320"]
    pairs = [128**2, 320**2, seen_pairs(64, 16, 3)]
    assert [row[2] for row in rows] == [f"{4 * n * 256 / 1e9:.2f}" for n in pairs]
    assert float(rows[2][4]) < 1e-5  # the dense oracle
    assert float(rows[2][5]) > 1e-4  # ordinary attention: the window is really there
    assert "random" in out and "Counted" in out and "Measured" in out

    with image_module.open(tmp_path / "new" / "folder" / "window.png") as picture:
        assert picture.width == 1000


def test_model_is_the_same_every_time_and_is_left_as_it_was() -> None:
    denoiser, twin = build_denoiser(), build_denoiser()
    latent = make_noise(8)
    with torch.no_grad():
        stock = twin(latent, 0.7)
        assert torch.equal(denoiser(latent, 0.7), stock)
        processors = dict(denoiser.transformer.attn_processors)
        calls: list[str] = []
        run_job(denoiser, 64, ClearSpec(2), calls.append)
        assert len(calls) == total_steps()
        assert denoiser.transformer.attn_processors == processors
        assert torch.equal(denoiser(latent, 0.7), stock)


def test_a_window_past_the_diagonal_is_ordinary_attention() -> None:
    rows = run_job(build_denoiser(), 128, ClearSpec(20))
    assert rows[2].gflops == rows[1].gflops
    assert rows[2].dense_difference < 1e-5


@pytest.mark.parametrize(("arguments", "message"), [
    pytest.param(["--size", "1000"], "--size is 1000; expected a multiple of 32", id="size"),
    pytest.param(["--radius", "0"], "--radius is 0; expected an integer of at least 1", id="radius"),
])
def test_refuses_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
