"""What a user sets. :class:`clear_core.effective.Effective` says what that comes to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .number_checks import check_number, check_percents
from .rope import NTK
from .spec import ClearSpec
from .wording import quoted

if TYPE_CHECKING:
    from .weights import ClearFile

DEFAULT_RADIUS = 16
"""Window radius in tokens when neither the user nor a weights file names one, up to :data:`WIDE_TOKENS`."""

TRAINING_FREE = ClearSpec(DEFAULT_RADIUS, down_factor=4, overview=True)
"""Windows on a model's own weights, named "hybrid": chosen by ``demo/experiments/hybrid.json``."""

WIDE_TOKENS = 128 * 128
"""Image tokens of a call, 2048 x 2048 px on FLUX.1, above which a radius that nobody named is doubled.

In the same record a radius of 1/8 of the side was enough.
"""

PROPORTIONAL = ("auto", "on", "off")

CONTROLNET = ("auto", "on", "off")


@dataclass(frozen=True)
class ClearSettings:
    """How one model is to attend.

    Attributes:
        spec: Window radius and down factor.
        ntk_factor: Factor on the rotary base; 1 is off, 0 automatic (FLUX.1: 1 up to 8192 image tokens, 10 above; by
            the frame's sides if ``ntk`` is "fading").
        proportional_attention: "on", "off", or "auto" (FLUX.1: on above 8192 image tokens).
        backend: A name of :data:`clear_core.attention.BACKENDS`.
        start_percent: Share of the sampling, 0 to 1, before which attention is dense.
        end_percent: Share of the sampling, 0 to 1, after which attention is dense; not before the start.
        dense_blocks: Blocks that always attend densely, in the form of
            :func:`clear_core.dense_blocks.parse_dense_blocks`. It stays a text until the model is known.
        min_tokens: Frames of fewer image tokens attend densely.
        controlnet: Whether a ControlNet's blocks get the window: "on", "off", or "auto" (FLUX.1: on above 8192 image
            tokens).
        ntk: How the rotary base is stretched: "constant", "clipped" or "fading", see :mod:`clear_core.rope`.
        radius_by_size: Whether the radius is doubled in calls of more than :data:`WIDE_TOKENS` image tokens.

    Raises:
        ValueError: A value is out of range.
    """

    spec: ClearSpec
    ntk_factor: float = 0.0
    proportional_attention: str = "auto"
    backend: str = "auto"
    start_percent: float = 0.0
    end_percent: float = 1.0
    dense_blocks: str = ""
    min_tokens: int = 0
    controlnet: str = "auto"
    ntk: str = "constant"
    radius_by_size: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("proportional_attention", PROPORTIONAL), ("controlnet", CONTROLNET), ("ntk", NTK)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {quoted(getattr(self, name))}; expected one of {', '.join(choices)}.")
        check_number("ntk_factor", self.ntk_factor, 0)
        check_percents(self.start_percent, self.end_percent)
        check_number("min_tokens", self.min_tokens, 0, whole=True)

    @classmethod
    def of_widgets(cls, radius: int, down_factor: int, file: ClearFile | None, **others: Any) -> ClearSettings:
        """The settings that a node's widgets and the weights file specify together.

        Args:
            radius: In tokens; 0 takes it from the file, or from the size of the picture without a file.
            down_factor: Side of the pooled cells in tokens; 1 is none, 0 what the file has, or 4 without a file.
            file: Distilled weights. Without, what is outside the windows gets an overview, unless ``down_factor`` is 1.
            others: The other attributes.

        Raises:
            ValueError: A value is out of range, or contradicts the file.
        """
        if file is not None:
            return cls(choose_spec(radius, down_factor, file), **others)
        cells = down_factor or TRAINING_FREE.down_factor
        spec = ClearSpec(radius or TRAINING_FREE.radius, cells, overview=cells > 1)
        return cls(spec, radius_by_size=not radius, **others)

    def spec_on(self, grid: tuple[int, int]) -> ClearSpec:
        """The windows of a call on ``grid`` = (h, w) in tokens, of a whole frame or of a tile."""
        if not self.radius_by_size or grid[0] * grid[1] <= WIDE_TOKENS:
            return self.spec
        return replace(self.spec, radius=2 * self.spec.radius)

    @property
    def windows(self) -> str:
        """The windows in words, for logs and texts."""
        larger = f", radius {2 * self.spec.radius} above {WIDE_TOKENS:,} tokens" if self.radius_by_size else ""
        return f"{self.spec}{larger}"


def choose_spec(radius: int, down_factor: int, file: ClearFile | None) -> ClearSpec:
    """The window that the widgets and the weights file specify together.

    Args:
        radius: In tokens; 0 takes it from the file (its header, else its name), or 16 without a file.
        down_factor: 0 takes it from the file. A file without ``spatial_weight`` pools by the mean under any value.
        file: The weights, or None.

    Raises:
        ValueError: The file does not state its radius, or the down factor contradicts the file.
    """
    if file is None:
        return ClearSpec(radius or DEFAULT_RADIUS, down_factor or 1)
    radius = radius or file.radius or 0
    if radius == 0:
        raise ValueError(
            f"{file.name} does not say which window radius it was trained for, in its header or its "
            "name (clear_local_8, clear_local_16_down_4, ...); set radius to that number."
        )
    trained = file.down_factor
    if trained > 1 and down_factor not in (0, trained):
        raise ValueError(
            f"down_factor is {down_factor}, but {file.name} was trained with {trained}; "
            f"set down_factor to 0 or {trained}."
        )
    return ClearSpec(radius, down_factor or trained)
