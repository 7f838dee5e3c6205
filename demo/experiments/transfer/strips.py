"""Table 6 of the paper in small: a picture in strips, as several devices hold it, with exact and with averaged text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clear_core import ClearSpec
from clear_core.parallel import ThreadPeers, clear_attention_strip, run_together, split_rows
from clear_core.sdedit import euler, sdedit_sigmas

from ..block_processor import BlockProcessor
from ..guidance_methods import scene_noise
from ..guidance_run import several_things
from ..kept import kept
from ..picture_measures import judged
from ..subject import COMMITTED, Subject
from .enlarged import denoiser_for
from .plans import TEXTS, Extent, StripText, Way

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


def strip_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], spec: ClearSpec, strips: int, text: StripText
) -> Tensor:
    """Attention of a whole (B, heads, T + h * w, D) sequence in strips of rows, each in a thread of its own."""
    words = q.shape[2] - grid[0] * grid[1]
    rows = split_rows(grid[0], strips)

    def own(tokens: Tensor, rank: int) -> Tensor:
        first, stop = (words + grid[1] * row for row in (rows[rank].start, rows[rank].stop))
        return torch.cat([tokens[:, :, :words], tokens[:, :, first:stop]], dim=2)

    def work(peers: ThreadPeers) -> Tensor:
        parts = [own(tokens, peers.rank) for tokens in (q, k, v)]
        return clear_attention_strip(*parts, peers=peers, grid=grid, spec=spec, text=text)

    found = run_together(ThreadPeers.make(strips), work)
    return torch.cat([found[0][:, :, :words], *(each[:, :, words:] for each in found)], dim=2)


class StripProcessor(BlockProcessor):
    """Attention of one block in strips."""

    def __init__(self, grid: tuple[int, int], spec: ClearSpec, strips: int, text: StripText) -> None:
        super().__init__()
        self.grid, self.spec, self.strips = grid, spec, strips
        self.text: StripText = text

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return strip_attention(q, k, v, self.grid, self.spec, self.strips, self.text)


@contextmanager
def in_strips(
    model: FluxTransformer2DModel, grid: tuple[int, int], spec: ClearSpec, strips: int, text: StripText
) -> Generator[None]:
    """The model's blocks attend in strips."""
    blocks: list[Any] = [*model.transformer_blocks, *model.single_transformer_blocks]
    before = [block.attn.processor for block in blocks]
    for block in blocks:
        block.attn.set_processor(StripProcessor(grid, spec, strips, text))
    try:
        yield
    finally:
        for block, processor in zip(blocks, before, strict=True):
            block.attn.set_processor(processor)


def strip_rows(folder: Path, extent: Extent, subject: Subject = COMMITTED) -> Iterator[dict[str, Any]]:
    """A row for each number of strips and kind of text, the whole picture first; pictures from noise.

    Args:
        folder: Keeps the latents.
        extent: What is run.
        subject: The model and its windows.
    """
    scenes, way = several_things(extent.scenes), Way(extent.strips_spec, True)
    whole = kept(folder / f"{way.name}.safetensors", lambda: sampled(way, extent, subject))["latent"]
    yield {"window": way.window, "strips": 1, "text": ""} | judged(whole, whole, scenes)
    for strips in extent.strips:
        for text in TEXTS:

            def make(strips: int = strips, text: StripText = text) -> dict[str, Tensor]:
                return sampled(way, extent, subject, strips, text)

            latents = kept(folder / f"{way.name}, {strips} strips, {text}.safetensors", make)["latent"]
            yield {"window": way.window, "strips": strips, "text": text} | judged(latents, whole, scenes)


def sampled(
    way: Way, extent: Extent, subject: Subject, strips: int = 1, text: StripText = "exact"
) -> dict[str, Tensor]:
    """(scenes, 16, h, w) latents of pictures from noise."""
    assert way.spec is not None, "strips are those of windows"
    transformer, sigmas = subject.distilled(way.spec), sdedit_sigmas(extent.steps, 1.0)
    side = extent.strips_side // 16
    latents: list[Tensor] = []
    with in_strips(transformer, (side, side), way.spec, strips, text):
        for index, scene in enumerate(several_things(extent.scenes)):
            denoiser = denoiser_for(transformer, scene.caption)
            latents.append(euler(denoiser, scene_noise(index, extent.strips_side), sigmas))
    return {"latent": torch.cat(latents)}
