"""Fixtures of the distillation tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clear_core.distill.samples import write_sample


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve samples in two shapes."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        shape = (4, 8, 12) if number % 3 else (4, 12, 8)
        write_sample(
            folder,
            number,
            torch.randn(shape, generator=generator),
            torch.randn(3, 8, generator=generator),
            torch.randn(8, generator=generator),
        )
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline, as ``--model`` takes it."""
    from tests.support.tiny_pipeline import save_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pipeline(folder)
    return folder
