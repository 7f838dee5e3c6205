"""What a user sets. :class:`clear_core.effective.Effective` says what that comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .number_checks import check_number, check_percents
from .rope import NTK
from .spec import ClearSpec
from .wording import quoted

if TYPE_CHECKING:
    from .weights import ClearFile

DEFAULT_RADIUS = 16
"""Window radius in tokens when neither the user nor a weights file names one."""

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

    def __post_init__(self) -> None:
        for name, choices in (("proportional_attention", PROPORTIONAL), ("controlnet", CONTROLNET), ("ntk", NTK)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {quoted(getattr(self, name))}; expected one of {', '.join(choices)}.")
        check_number("ntk_factor", self.ntk_factor, 0)
        check_percents(self.start_percent, self.end_percent)
        check_number("min_tokens", self.min_tokens, 0, whole=True)


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
