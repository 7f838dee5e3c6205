"""Validation pictures: what the student draws for the texts of held-out samples, beside what the teacher draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .disk import no_half_file
from .losses import predict
from .pair import Pair
from .samples import Batch, SampleFolder

STEPS = 20
SHIFT = 3.0
"""Shift of the noise levels of a family that has none of its own in the table."""

SEED = 4_096


@torch.no_grad()
def draw(pair: Pair, batch: Batch, guidance: float, steps: int = STEPS) -> Tensor:
    """(B, C, H, W) latents from pure noise, by Euler steps of the model as it is (student, or teacher).

    Args:
        batch: Its texts and noise; the size is its latents'.
        guidance: As in :func:`predict`.
        steps: Calls of the model.
    """
    levels = torch.linspace(1, 0, steps + 1)
    shift = pair.shape.family.shift or SHIFT
    levels = shift * levels / (1 + (shift - 1) * levels)
    state = batch.noise
    for level, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        # A noisy latent of any level is the mean of itself and itself.
        here = Batch(state, batch.text, state, torch.full_like(batch.sigma, level), batch.text_mask)
        state = state + (after - level) * predict(pair.transformer, pair, here, guidance).guided
    return state


class Validation:
    """Draws the same pictures again and again while a student is trained.

    Args:
        pair: Teacher and student.
        samples: Held-out samples, whose texts and sizes are used.
        vae: The model's VAE.
        out: Folder for the pictures.
        count: Number of pictures.
    """

    def __init__(self, pair: Pair, samples: SampleFolder, vae: Any, out: Path, guidance: float, count: int = 2) -> None:
        self.pair, self.samples, self.vae, self.out, self.guidance = pair, samples, vae, out, guidance
        self.indices: Sequence[int] = range(min(count, len(samples)))

    def run(self, step: int, device: torch.device, write: bool) -> list[Path]:
        """Draws with the student, and with the teacher if its pictures are not there yet.

        Every process calls it, and one of them writes.

        Returns:
            The pictures written.
        """
        written: list[Path] = []
        for index in self.indices:
            batch = self.samples.batch([index], [index], SEED, 0).to(device)
            target = self.out / f"teacher-{index}.png"
            if not target.exists():
                with self.pair.teacher():
                    latents = draw(self.pair, batch, self.guidance)
                written += self._save(latents, target, write)
            written += self._save(
                draw(self.pair, batch, self.guidance), self.out / f"step-{step:07d}-{index}.png", write
            )
        return written

    def _save(self, latents: Tensor, path: Path, write: bool) -> list[Path]:
        if not write:
            return []
        from PIL import Image

        self.out.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            picture = self.pair.teaching.picture_of(self.vae, latents)[0].float().clamp(0, 1).cpu()
        pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with no_half_file(path) as part:
            Image.fromarray(pixels).save(part, format="PNG")
        return [path]
