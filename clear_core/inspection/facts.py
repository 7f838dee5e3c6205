"""Facts about a model, its windows and a picture size, and what follows from them: work, time, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..call_memory import MemoryPlan
from ..cost import model_gflops
from ..effective import Effective, attention_pairs
from ..families import FLUX1, ModelShape
from ..layout import SequenceLayout, token_grid
from ..settings import ClearSettings
from ..spec import ClearSpec

USUAL_DOWN_FACTOR = 4
"""Down factor of the released variants that have one."""

Size = tuple[int, int]
"""(height, width) in px."""


@dataclass(frozen=True)
class ModelFacts:
    """A model.

    Attributes:
        shape: Its family and blocks.
        memory: What its calls take, and the size of its weights.
        dtype: The dtype that it computes in, as text.
    """

    shape: ModelShape
    memory: MemoryPlan
    dtype: str

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as they are stored."""
        return self.memory.weights


@dataclass(frozen=True)
class WeightsFacts:
    """Distilled weights in use.

    Attributes:
        name: File name.
        strength: 0 to 1.
        fingerprint: The file's :func:`clear_core.weights.fingerprint`.
        remarks: Sentences about what is odd about them.
    """

    name: str
    strength: float
    fingerprint: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Throughput:
    """Throughput of a machine in its last run.

    Attributes:
        gflops_per_second: Counted work over measured time.
        calls: Number of timed calls of the model.
        what: Description of the run: size, attention, device.
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
        size: Size of the picture that is to be made.
        origin: Source of the size: "picture", "latent" or "nothing connected".
        model: The model.
        settings: CLEAR's; None for a model without CLEAR.
        weights: Distilled weights; None without.
        backend: The backend that runs, and one sentence why.
        device: Its name.
        device_bytes: Its memory.
        pace: Throughput of the last run; None if nothing was timed.
        tiles: How CLEARUpscale would divide this size here, as text.
        stages: Sizes that CLEARUpscale would go through, as text; empty if nothing is enlarged.
        others: Other patches of the model, a plain sentence each.
        versions: Name to version of the software in use.
        text: Prompt tokens to calculate with.
        batch: Pictures in one call.
    """

    size: Size
    origin: str
    model: ModelFacts
    settings: ClearSettings | None = None
    weights: WeightsFacts | None = None
    backend: tuple[str, str] = ("", "")
    device: str = ""
    device_bytes: int = 0
    pace: Throughput | None = None
    tiles: str = ""
    stages: str = ""
    others: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    text: int = FLUX1.text_tokens
    batch: int = 1

    @property
    def effective(self) -> Effective:
        """What the settings come to at this size."""
        return Effective.of(self.settings, self.model.shape, self.layout_at(self.size))

    @property
    def circle_pixels(self) -> int:
        """Width of a window in px."""
        return 2 * self.effective.spec.radius * self.token_pixels

    @property
    def token_pixels(self) -> int:
        """Side of a token in px."""
        return self.model.shape.family.token_pixels

    def layout_at(self, size: Size) -> SequenceLayout:
        """The sequence of a picture of this size."""
        return SequenceLayout(self.text, token_grid(*size, self.token_pixels))

    def row(self, size: Size) -> CostRow:
        """Cost of one step at a size with dense attention, with windows, and with windows and pooled keys."""
        layout, shape = self.layout_at(size), self.model.shape
        effective = Effective.of(self.settings, shape, layout)
        windows = ClearSpec(effective.spec.radius)
        pooled = effective.spec if effective.spec.pools else replace(windows, down_factor=USUAL_DOWN_FACTOR)

        def work(spec: ClearSpec, windowed: int) -> float:
            pairs = attention_pairs(layout, spec, windowed, shape.blocks)
            return self.batch * model_gflops(layout.length, pairs, shape.blocks, shape.width, shape.mlp_ratio)

        windowed = shape.blocks - len(effective.dense_blocks)
        return CostRow(
            size,
            work(windows, 0),
            work(windows, windowed),
            work(pooled, windowed),
            memory=self.model.memory.peak_bytes(layout.image, self.batch),
        )

    def in_use(self, row: CostRow) -> float:
        """The work of a row with the attention that the model has at the inspected size."""
        return self.with_windows(row) if self.effective.active else row.dense

    def with_windows(self, row: CostRow) -> float:
        """The work of a row with the windows that the settings specify, whether or not they are active."""
        return row.pooled if self.effective.spec.pools else row.window

    def seconds(self, work: float) -> float | None:
        """Time for this work at the throughput of the last run; None if nothing was timed."""
        return work / self.pace.gflops_per_second if self.pace else None
