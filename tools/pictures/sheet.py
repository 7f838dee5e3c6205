"""The README's picture from the demo's: ``python3 dev.py demo``, then ``python -m tools.pictures.sheet``."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
WIDTH = 1400  # px; a README shows less than 1000.

if __name__ == "__main__":
    with Image.open(PROJECT / "out" / "sheet.png") as sheet:
        height = round(sheet.height * WIDTH / sheet.width)
        sheet.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS).save(
            PROJECT / "docs" / "pictures" / "sheet.jpg", quality=85, optimize=True
        )
