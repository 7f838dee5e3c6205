"""What CLEAR's settings come to for one frame of one model. This is decided here and nowhere else.

The attention override, the ControlNet path, CLEARInspect, the cost line, CLEARUpscale's info, the log and the diffusers
integration read an :class:`Effective` and decide nothing themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from .cost import clear_pairs, dense_pairs, model_gflops
from .dense_blocks import BlockId, parse_dense_blocks
from .families import ModelShape
from .layout import SequenceLayout
from .rope import NOT_STRETCHED, RopeStretch
from .scale import attention_scale
from .settings import ClearSettings
from .spec import ClearSpec


class Inactive(Enum):
    """Why no block of a call has windows; the value is the reason in plain words."""

    NOT_CONNECTED = "no CLEAR Attention"
    MIN_TOKENS = "fewer image tokens than min_tokens"
    DENSE_BLOCKS = "dense_blocks names every block"
    COVERED = "the window covers the whole picture"


@dataclass(frozen=True)
class Effective:
    """What settings come to for one frame of one model.

    Attributes:
        shape: The model.
        layout: The sequence of one call: the frame, or a tile of it, with reference tokens.
        frame: (h, w) of the whole frame in tokens. Size thresholds, scale and NTK factor go by it.
        spec: The windows. Without CLEAR, those of the node with its default settings: what windows would be.
        inactive: Why there are no windows at all; None if there are. CLEAR's scale, NTK factor and weights apply in
            either case, unless it is not connected.
        dense_blocks: Blocks that never have windows.
        stretch: What is done to the rotary base. The noise level of a call, on which it may depend, is no part of it.
        proportional: Whether the scale grows with the number of tokens.
        active_range: (start, end) of the sampling, 0 to 1, between which there are windows; outside it, a call attends
            densely.
        controlnet: Whether a ControlNet attends as the model does: in windows where the model has them, else densely
            with the model's scale and NTK factor.
        backend: The backend that was asked for.
    """

    shape: ModelShape
    layout: SequenceLayout
    frame: tuple[int, int]
    spec: ClearSpec
    inactive: Inactive | None
    dense_blocks: frozenset[BlockId]
    stretch: RopeStretch
    proportional: bool
    active_range: tuple[float, float]
    controlnet: bool
    backend: str

    @classmethod
    def of(
        cls,
        settings: ClearSettings | None,
        shape: ModelShape,
        layout: SequenceLayout,
        frame: tuple[int, int] | None = None,
    ) -> Effective:
        """What ``settings`` come to.

        Args:
            settings: None for a model without CLEAR.
            shape: The model.
            layout: The sequence of one call.
            frame: (h, w) of the whole frame in tokens if the call is a tile of it; None if the call is the frame.

        Raises:
            ValueError: ``settings`` names blocks that the model lacks.
        """
        return _effective(settings, shape, layout, frame or layout.grid)

    @property
    def active(self) -> bool:
        """Whether some blocks have windows in the active range of the sampling."""
        return self.inactive is None

    @property
    def image_tokens(self) -> int:
        """Image tokens of the whole frame."""
        return self.frame[0] * self.frame[1]

    @property
    def is_hires(self) -> bool:
        """Whether the frame is larger than the model is at ease with."""
        return self.shape.family.is_hires(self.image_tokens)

    @property
    def windowed_blocks(self) -> int:
        """Number of blocks that have windows."""
        return self.shape.blocks - len(self.dense_blocks) if self.active else 0

    def is_windowed(self, block: tuple[str | None, int | None]) -> bool:
        """Whether a block has windows in the active range; an unnamed one (None, None) does if any block does."""
        return self.active and block not in self.dense_blocks

    @property
    def scale(self) -> float:
        """Factor on the query-key products of every block, windowed or dense."""
        return self.scale_for(self.shape.head_dim)

    def scale_for(self, head_dim: int) -> float:
        """The scale for heads of another size (a ControlNet's)."""
        return attention_scale(
            head_dim,
            proportional=self.proportional,
            tokens=self.layout.text + self.image_tokens,
            # An overview keeps the number of tokens that the softmax is about; the paper's pooled keys add to it.
            pooled=self.spec.pools and not self.spec.overview,
            base=self.shape.family.scale_base,
        )

    def query_factor_for(self, head_dim: int) -> float:
        """What queries are multiplied with so that plain attention has this scale; exactly 1 if it has it already."""
        return self.scale_for(head_dim) / attention_scale(head_dim)

    @property
    def pairs(self) -> int:
        """Query-key pairs of one sequence over all blocks, in a step within the active range."""
        return attention_pairs(self.layout, self.spec, self.windowed_blocks, self.shape.blocks)

    @property
    def gflops(self) -> float:
        """Work of such a step for one sequence in 10**9 operations, projections and MLPs included."""
        return model_gflops(self.layout.length, self.pairs, self.shape.blocks, self.shape.width, self.shape.mlp_ratio)

    @property
    def window_share(self) -> float:
        """Attention cost of a windowed block over that of a dense one; 1 if none is windowed."""
        return clear_pairs(self.layout, self.spec) / dense_pairs(self.layout) if self.active else 1.0

    @property
    def attention_share(self) -> float:
        """Attention cost of the whole model, dense blocks included, over that of the dense model."""
        return self.pairs / (self.shape.blocks * dense_pairs(self.layout))


def attention_pairs(layout: SequenceLayout, spec: ClearSpec, windowed: int, blocks: int) -> int:
    """Query-key pairs of a sequence over all blocks, of which ``windowed`` have windows."""
    return windowed * clear_pairs(layout, spec) + (blocks - windowed) * dense_pairs(layout)


# The same few values come for every call of a model and for each of its blocks.
@lru_cache(maxsize=256)
def _effective(
    settings: ClearSettings | None, shape: ModelShape, layout: SequenceLayout, frame: tuple[int, int]
) -> Effective:
    if settings is None:
        return Effective(
            shape=shape,
            layout=layout,
            frame=frame,
            spec=ClearSettings.of_widgets(0, 0, None).spec_on(layout.grid),
            inactive=Inactive.NOT_CONNECTED,
            dense_blocks=frozenset(),
            stretch=NOT_STRETCHED,
            proportional=False,
            active_range=(0.0, 1.0),
            controlnet=False,
            backend="auto",
        )
    family, image_tokens, spec = shape.family, frame[0] * frame[1], settings.spec_on(layout.grid)
    dense_blocks = parse_dense_blocks(settings.dense_blocks, shape.num_double, shape.num_single)
    hires = family.is_hires(image_tokens)
    inactive = None
    if image_tokens < settings.min_tokens:
        inactive = Inactive.MIN_TOKENS
    elif len(dense_blocks) == shape.blocks:
        inactive = Inactive.DENSE_BLOCKS
    elif spec.is_dense(layout.grid):
        inactive = Inactive.COVERED
    return Effective(
        shape=shape,
        layout=layout,
        frame=frame,
        spec=spec,
        inactive=inactive,
        dense_blocks=dense_blocks,
        stretch=RopeStretch.of(settings.ntk, settings.ntk_factor, frame, family),
        proportional=_auto(settings.proportional_attention, hires),
        active_range=(settings.start_percent, settings.end_percent),
        controlnet=_auto(settings.controlnet, hires),
        backend=settings.backend,
    )


def _auto(setting: str, hires: bool) -> bool:
    """ "on", "off", or "auto": on at high resolution."""
    return hires if setting == "auto" else setting == "on"
