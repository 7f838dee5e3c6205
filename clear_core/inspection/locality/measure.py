"""Measures the locality of a diffusers transformer on pictures with noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...dense_blocks import BlockId
from ...distill.families import Text, teaching_of
from ...distill.samples import Batch
from ...integrations.diffusers_model import shape_of
from ...layout import SequenceLayout
from ...rope import NOT_STRETCHED
from ...spec import ClearSpec
from .attentions import Attend, Attentions, BlockTokens
from .distances import Clip, clipped_attention
from .mass import attention_maps, attention_mass, chosen_queries
from .settings import LocalitySettings

DIGITS = 6
"""Significant digits of what is kept."""


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


@dataclass(eq=False)
class Subject:
    """One model and the pictures that it is measured on.

    Args:
        transformer: A diffusers transformer of a family with windows.
        pictures: Batches of one picture each, all of one size; their noise levels are replaced.
        settings: What is measured.
        dtype: Precision of the model's products, by autocast unless it is float32.
        on_call: Called after each call of the model but those with dense attention alone.

    Attributes:
        grid: (h, w) of the pictures in tokens.
        shape: Family and blocks.
        frequencies: Of the rotary axes; empty for a family without RoPE.

    Raises:
        ImportError, TypeError: The model is not one of diffusers with windows.
        ValueError: The pictures differ in size, or the settings do not fit model and pictures.
    """

    transformer: Any
    pictures: Sequence[Batch]
    settings: LocalitySettings
    dtype: torch.dtype = torch.float32
    on_call: Callable[[], object] = lambda: None
    _dense: dict[tuple[int, float], Tensor] = field(default_factory=dict[tuple[int, float], Tensor], init=False)

    def __post_init__(self) -> None:
        self.shape = shape_of(self.transformer)
        self.teaching = teaching_of(self.transformer)
        self.teaching.check_inputs(self.transformer.config)
        sizes = sorted({tuple(picture.latents.shape) for picture in self.pictures})
        if any(size[0] != 1 for size in sizes):
            raise ValueError(f"the batches have the latents {sizes}; expected one picture in each.")
        if len(sizes) != 1:
            named = " and ".join(f"{height} x {width}" for _, _, height, width in sizes)
            raise ValueError(
                f"the samples have latents of {named}; expected one size: put samples of one size into a folder of "
                "their own."
            )
        cells = self.shape.family.token_cells
        self.grid = (sizes[0][2] // cells, sizes[0][3] // cells)
        self.settings = self.settings.on(self.grid, self.shape.blocks)
        self.frequencies: tuple[Tensor, ...] = ()
        if self.shape.family.diffusers.embedder is not None:
            embedder = self.transformer.pos_embed
            self.frequencies = NOT_STRETCHED.frequencies(embedder.theta, embedder.axes_dim)
        elif "distances" in self.settings.parts:
            raise ValueError(
                f"{self.shape.family.name} has a table of positions and no rotary distances to clip; leave out the "
                "part distances."
            )
        guidance = self.teaching.scale(self.settings.guidance)
        self._scale = self.teaching.input_guidance(self.transformer.config, guidance)

    @torch.no_grad()
    def prediction(self, attentions: Attentions, picture: int, level: float, attend: Attend) -> Tensor:
        """(1, C, H, W) float32: the flow of one picture at a noise level with the prompt, by an attention."""
        batch = self.pictures[picture]
        batch.sigma.fill_(level)
        text = Text(batch.prompt_embeds, batch.pooled, batch.text_mask)
        kind, half = batch.latents.device.type, self.dtype != torch.float32
        with attentions.by(attend), torch.autocast(kind, self.dtype, enabled=half):
            flow = self.teaching.call(self.transformer, batch.noisy, batch.sigma, text, self._scale)
        if attend is not BlockTokens.dense:
            self.on_call()
        return flow.float()

    def error(self, attentions: Attentions, picture: int, level: float, attend: Attend) -> float:
        """Squared distance of the prediction from that of dense attention, over the square of the latter."""
        place = picture, level
        if place not in self._dense:
            # Other places are done: their predictions would only fill the memory.
            self._dense.clear()
            self._dense[place] = self.prediction(attentions, picture, level, BlockTokens.dense)
        dense = self._dense[place]
        changed = self.prediction(attentions, picture, level, attend)
        return rounded(((changed - dense).square().sum() / dense.square().sum()).item())

    def floor(self, attentions: Attentions, picture: int, level: float) -> float:
        """The error that rounding alone makes: of the prediction with every attention in float32, nothing else changed.

        It is 0, or about 1e-13, if the model computes in float32.
        """
        return self.error(attentions, picture, level, BlockTokens.precise)

    def mass(self, attentions: Attentions, picture: int, level: float) -> dict[str, Any]:
        """By attention: of each head the shares within the radii, and those on text and references."""
        found: dict[str, Any] = {}
        settings = self.settings
        queries = chosen_queries(self.grid[0] * self.grid[1], settings.queries, settings.seed)

        def watched(tokens: BlockTokens) -> Tensor:
            mass = attention_mass(tokens.q, tokens.k, tokens.layout, tokens.scale, settings.radii, queries)
            found[tokens.attention.name] = {
                "within": [[rounded(value) for value in head] for head in mass.within.tolist()],
                "text": [rounded(value) for value in mass.text.tolist()],
                "reference": [rounded(value) for value in mass.reference.tolist()],
            }
            return tokens.dense()

        self.prediction(attentions, picture, level, watched)
        return found

    def maps(self, attentions: Attentions, picture: int, level: float) -> dict[str, Tensor]:
        """By attention: (heads, h, w) float16, the weights of the chosen query over their largest."""
        found: dict[str, Tensor] = {}
        query = self.settings.query
        assert query is not None  # Filled in by the grid.

        def watched(tokens: BlockTokens) -> Tensor:
            maps = attention_maps(tokens.q, tokens.k, tokens.layout, tokens.scale, query)
            found[tokens.attention.name] = (maps / maps.amax((1, 2), keepdim=True)).half().cpu()
            return tokens.dense()

        self.prediction(attentions, picture, level, watched)
        return found

    def distances(self, attentions: Attentions, picture: int, level: float) -> dict[str, Any]:
        """By side, far and near: the error of the prediction for each limit."""

        def clipped(clip: Clip) -> Attend:
            return lambda tokens: clipped_attention(
                tokens.q, tokens.k, tokens.v, tokens.layout, tokens.scale, clip, self.frequencies
            )

        return {
            side: [self.error(attentions, picture, level, clipped(Clip(side, limit))) for limit in self.settings.limits]
            for side in ("far", "near")
        }

    def windows(self, attentions: Attentions, picture: int, level: float) -> dict[str, float]:
        """By block: the error of the prediction if this block alone has windows."""
        return {
            attention.name: self.error(
                attentions, picture, level, in_windows(self.settings.spec, frozenset([attention.block]))
            )
            for attention in attentions.ids
            if not attention.second
        }

    def calls(self, part: str) -> int:
        """Calls of the model that a part takes for one picture at one noise level, dense ones left out."""
        return {"mass": 1, "floor": 1, "distances": 2 * len(self.settings.limits), "windows": self.shape.blocks}[part]

    @property
    def sequence(self) -> SequenceLayout:
        """Of the first picture, references left out."""
        return SequenceLayout(self.pictures[0].prompt_embeds.shape[1], self.grid)


def in_windows(spec: ClearSpec, blocks: frozenset[BlockId]) -> Attend:
    """Attention that is windowed in some blocks, and dense in the others."""
    return lambda tokens: tokens.windowed(spec) if tokens.attention.block in blocks else tokens.dense()
