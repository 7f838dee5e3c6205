"""What is known of a model, its windows and a picture size, and what follows from it: work, time, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..cost import clear_pairs, dense_pairs, model_gflops
from ..layout import TOKEN_PIXELS, SequenceLayout, token_grid
from ..memory import FLUX_TEXT, Activations
from ..settings import DEFAULT_RADIUS, ClearSettings
from ..spec import ClearSpec

USUAL_DOWN_FACTOR = 4
"""Down factor of the released variants that have one."""

Size = tuple[int, int]
"""(height, width) in px."""


@dataclass(frozen=True)
class ModelFacts:
    """A FLUX model.

    Attributes:
        activations: Hidden size, MLP ratio and bytes of a number.
        num_double, num_single: Blocks.
        head_dim: Size of a head.
        dtype: That it computes in, for people.
        weight_bytes: Of the weights as they are stored.
        name: FLUX.1, or that of a relative.
    """

    activations: Activations
    num_double: int
    num_single: int
    head_dim: int
    dtype: str
    weight_bytes: int
    name: str = "FLUX.1"

    @property
    def blocks(self) -> int:
        return self.num_double + self.num_single


@dataclass(frozen=True)
class WeightsFacts:
    """Distilled weights in use: file name, strength 0 to 1, and the file's :func:`clear_core.weights.fingerprint`."""

    name: str
    strength: float
    fingerprint: str


@dataclass(frozen=True)
class Throughput:
    """How fast a machine was in its last run.

    Attributes:
        gflops_per_second: Counted work over measured time.
        calls: Of the model, that were timed.
        what: The run in words: size, attention, device.
    """

    gflops_per_second: float
    calls: int
    what: str


@dataclass(frozen=True)
class CostRow:
    """One step of the model at one size: work in 10**9 operations, memory in bytes beside the weights."""

    size: Size
    dense: float
    window: float
    pooled: float
    memory: int


@dataclass(frozen=True)
class Inspection:
    """Everything that CLEARInspect shows, as plain values.

    Attributes:
        size: Of the picture that is to be made, in px.
        origin: Where the size comes from: "picture", "latent" or "nothing connected".
        model: The model.
        settings: CLEAR's; None for a model that attends to the whole picture everywhere.
        weights: Distilled weights; None without.
        dense_blocks: Places, counted over all blocks, that attend to the whole picture.
        backend: What runs, and one sentence why.
        device: Its name.
        device_bytes: Its memory.
        pace: Of the last run; None where nothing was timed.
        tiles: How CLEARUpscale would work on this size here, in words.
        stages: Sizes that CLEARUpscale would go through, in words; empty where nothing is enlarged.
        others: Other patches of the model, a plain sentence each.
        versions: Name to version of what takes part.
        text: Prompt tokens that are counted with.
        batch: Pictures in one call.
    """

    size: Size
    origin: str
    model: ModelFacts
    settings: ClearSettings | None = None
    weights: WeightsFacts | None = None
    dense_blocks: frozenset[int] = frozenset()
    backend: tuple[str, str] = ("", "")
    device: str = ""
    device_bytes: int = 0
    pace: Throughput | None = None
    tiles: str = ""
    stages: str = ""
    others: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    text: int = FLUX_TEXT
    batch: int = 1

    @property
    def spec(self) -> ClearSpec:
        """The windows; without CLEAR those that a node with its usual settings would give."""
        return self.settings.spec if self.settings else ClearSpec(DEFAULT_RADIUS)

    @property
    def grid(self) -> tuple[int, int]:
        return token_grid(*self.size, TOKEN_PIXELS)

    @property
    def layout(self) -> SequenceLayout:
        return SequenceLayout(self.text, self.grid)

    @property
    def is_windowed(self) -> bool:
        """Whether a call at this size has windows at all."""
        return self.settings is not None and self.layout.image >= self.settings.min_tokens and not self.is_all_dense

    @property
    def is_all_dense(self) -> bool:
        """Whether the user named every block of the model as one without windows."""
        return len(self.dense_blocks) == self.model.blocks

    def work(self, layout: SequenceLayout, spec: ClearSpec | None) -> float:
        """10**9 operations of one step for one picture; ``spec`` None attends to the whole picture everywhere."""
        shape = self.model.activations
        full = len(self.dense_blocks) if spec else self.model.blocks
        pairs = full * dense_pairs(layout)
        if spec:
            pairs += (self.model.blocks - full) * clear_pairs(layout, spec)
        return model_gflops(layout.length, pairs, self.model.blocks, shape.width, shape.mlp_ratio)

    def row(self, size: Size) -> CostRow:
        """What one step takes at a size, with all three kinds of attention."""
        layout = SequenceLayout(self.text, token_grid(*size, TOKEN_PIXELS))
        radius, down = self.spec.radius, self.spec.down_factor
        pooled = ClearSpec(radius, down if self.spec.pools else USUAL_DOWN_FACTOR)
        return CostRow(
            size,
            *(self.batch * self.work(layout, spec) for spec in (None, ClearSpec(radius), pooled)),
            memory=self.memory(layout),
        )

    def in_use(self, row: CostRow) -> float:
        """The work of a row with the attention that the model has at the inspected size."""
        if not self.is_windowed:
            return row.dense
        return row.pooled if self.spec.pools else row.window

    def memory(self, layout: SequenceLayout) -> int:
        """Peak bytes of one call beside the weights. Only CLEAR's own node works on long sequences in chunks."""
        if self.settings:
            return self.model.activations.peak_bytes(layout.length, batch=self.batch)
        return self.model.activations.peak_bytes(layout.length, batch=self.batch, chunk=layout.length)

    def seconds(self, work: float) -> float | None:
        """Time for so much work at the last run's pace; None where nothing was timed."""
        return work / self.pace.gflops_per_second if self.pace else None
