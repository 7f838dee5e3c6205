"""``python -m demo``: one table with the right counted figures, a sheet with every picture, and nothing left behind."""

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
from demo.job import make_noise, run_job, total_calls  # noqa: E402
from demo.model import CAPTION, build_denoiser  # noqa: E402
from demo.sheet import contact_sheet  # noqa: E402


def seen_pairs(text: int, side: int, radius: int) -> int:
    """Query-key pairs of CLEAR attention, counted by writing the mask out."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = y.flatten(), x.flatten()
    window = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2).sum().item()
    return window + 2 * text * side * side + text * text


def test_main_prints_one_table_and_writes_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    assert main(["--size", "96", "--radius", "8", "--output", str(tmp_path / "new" / "folder")]) == 0
    assert torch.equal(torch.random.get_rng_state(), before)

    out = capsys.readouterr().out
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if re.search(r"\d px, ", line)]
    assert out.count("GFLOPs per layer") == 1 and len(rows) == 7
    text, small, large = 24, 12, 24
    assert [row[1] for row in rows] == [str(text + n) for n in (36, *[small**2] * 3, *[large**2] * 3)]
    pairs = [
        (text + 36) ** 2,
        (text + small**2) ** 2,
        *[seen_pairs(text, small, 8)] * 2,
        (text + large**2) ** 2,
        *[seen_pairs(text, large, 8)] * 2,
    ]
    assert [row[2] for row in rows] == [f"{4 * n * 256 / 1e9:.2f}" for n in pairs]
    compared = [row for row in rows if "radius" in row[0]]
    assert len(compared) == 4
    assert all(float(row[4]) < 1e-5 for row in compared)  # the dense oracle
    assert all(float(row[5]) < 60 for row in compared)  # full attention: the window is really there
    assert "Counted" in out and "Measured" in out and "tiny FLUX" in out

    with image_module.open(tmp_path / "new" / "folder" / "sheet.png") as sheet:
        assert sheet.width > 3 * 384 and sheet.height > 96 + 192 + 384
    with image_module.open(tmp_path / "new" / "folder" / "window.png") as picture:
        assert picture.width == 1000


def test_model_is_the_same_every_time_and_is_left_as_it_was() -> None:
    denoiser, twin = build_denoiser(), build_denoiser()
    latent = make_noise(64)
    with torch.no_grad():
        assert torch.equal(denoiser(latent, 0.7), twin(latent, 0.7))
    calls: list[str] = []
    rows = run_job(CAPTION, 32, ClearSpec(8), calls.append)
    assert len(calls) == total_calls()
    assert len(set(calls)) == len(rows) == 7


def test_the_sheet_holds_the_pictures_unchanged() -> None:
    rows = run_job(CAPTION, 32, ClearSpec(8))
    sheet = contact_sheet(rows, CAPTION)
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).reshape(sheet.height, sheet.width, 3)
    wanted = (rows[-1].picture * 255).round().byte().permute(1, 2, 0)
    found = pixels[-12 - 128 : -12, -12 - 128 : -12]
    assert torch.equal(found, wanted)


def test_a_window_past_the_diagonal_is_full_attention_but_for_the_weights() -> None:
    rows = run_job(CAPTION, 32, ClearSpec(16))
    assert rows[2].gflops == rows[1].gflops
    assert rows[2].psnr > 80 and rows[3].psnr < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--size", "100"], "--size is 100; expected a multiple of 16", id="size"),
        pytest.param(["--radius", "0"], "--radius is 0; expected an integer of at least 1", id="radius"),
    ],
)
def test_refuses_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_radius_without_weights_is_refused_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--size", "32", "--radius", "5", "--output", str(tmp_path)]) == 1
    assert "no weights for radius 5; expected one of" in capsys.readouterr().err
