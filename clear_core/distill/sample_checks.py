"""Whether a file is a training sample: its parts, their shapes and types, and every value of them.

All is checked when a folder is opened. Later, a part of another rank would be broadcast in silence, and one value that
is not finite turns all weights into NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..wording import printable


@dataclass(frozen=True)
class Part:
    """One tensor of a sample.

    Attributes:
        dimensions: What its dimensions are.
        width: The dimension that a model fixes, and so is the same in all samples of a folder.
        required: Whether every model family needs it.
    """

    dimensions: tuple[str, ...]
    width: str
    required: bool = False

    def width_in(self, shape: tuple[int, ...]) -> int:
        """The width in a shape of this part."""
        return shape[self.dimensions.index(self.width)]


PARTS: dict[str, Part] = {
    "latents": Part(("channels", "height", "width"), "channels", required=True),
    "prompt_embeds": Part(("tokens", "text width"), "text width", required=True),
    "pooled": Part(("pooled width",), "pooled width"),
    "negative_embeds": Part(("tokens", "text width"), "text width"),
    "negative_pooled": Part(("pooled width",), "pooled width"),
}
"""The parts of a sample. Families without pooled text have no ``pooled``; ``negative_*`` are for teachers that run
classifier-free guidance with a second call."""

REQUIRED = tuple(name for name, part in PARTS.items() if part.required)

POSITIVE = {"negative_embeds": "prompt_embeds", "negative_pooled": "pooled"}
"""The part beside which each negative one stands, and whose width it has."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes of a sample's parts by name, in the order of :data:`PARTS`."""


def read_shapes(path: Path) -> Shapes:
    """Shapes of a sample's parts, after a look at all of its values.

    Raises:
        ValueError: It is not a sample; the sentence says why.
    """
    try:
        # A pipe would be waited for without end.
        if not path.is_file():
            raise ValueError("it is not a file")
        with safe_open(path, "pt") as file:
            check_names(file.keys())  # Before a whole model is read that somebody put here.
            return check_parts({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{printable(path.name)} is not a sample ({printable(error, 160)}); expected a safetensors file with "
            f"{', '.join(REQUIRED)} and, where the model has them, "
            f"{', '.join(name for name in PARTS if name not in REQUIRED)}."
        ) from None


def check_names(names: Collection[str]) -> None:
    """Refuse parts that are missing or unknown.

    Raises:
        ValueError: The sentence names the first of them.
    """
    for name in REQUIRED:
        if name not in names:
            raise ValueError(f"it has no {name}")
    for name in names:
        if name not in PARTS:
            raise ValueError(f"it holds {printable(name, 40)}, which is no part of a sample")


def check_parts(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the parts of one sample.

    Args:
        tensors: By the names of :data:`PARTS`: latents (C, H, W); prompt_embeds (T, text width); pooled
            (pooled width,); negative_embeds (Tn, text width); negative_pooled (pooled width,).

    Raises:
        ValueError: A part is missing or unknown, has another rank, type or width, or values that are not finite in
            float32.
    """
    check_names(tensors)
    shapes: Shapes = {}
    for name, part in PARTS.items():
        if name in tensors:
            shapes[name] = _checked_shape(name, part, tensors[name])
    for negative, positive in POSITIVE.items():
        if negative in shapes and (width := shapes[negative][-1]) != shapes.get(positive, (0,))[-1]:
            wanted = f"{shapes[positive][-1]} of {positive}" if positive in shapes else f"{positive} beside it"
            raise ValueError(f"{negative} has the width {width}, expected {wanted}")
    return shapes


def _checked_shape(name: str, part: Part, tensor: Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if len(shape) != len(part.dimensions) or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, expected ({', '.join(part.dimensions)})")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers")
    if not tensor.float().isfinite().all():
        raise ValueError(f"{name} has NaN or infinite values")
    return shape


def check_sides(path: Path, latents: tuple[int, ...]) -> None:
    """Refuse a latent that does not divide into tokens of 2 x 2 cells.

    Args:
        path: Of its sample, for the message.
        latents: Shape (C, H, W).

    Raises:
        ValueError: A side is odd.
    """
    if any(side % 2 for side in latents[1:]):
        raise ValueError(
            f"{printable(path.name)} has latents of shape {latents}; expected even sides for this model, whose tokens "
            "are 2 x 2 cells."
        )


def widths(shapes: Shapes) -> dict[str, int]:
    """The width of each part that a model fixes."""
    return {name: PARTS[name].width_in(shape) for name, shape in shapes.items()}


def check_same_widths(paths: Sequence[Path], shapes: Sequence[Shapes]) -> None:
    """Refuse samples of different models in one folder.

    Raises:
        ValueError: A sample has other parts than the first one, or another width.
    """
    first = widths(shapes[0])
    for path, found in zip(paths, shapes, strict=True):
        for name, width in (mine := widths(found)).items():
            if first.get(name) != width:
                expected = f"{width}, not {first[name]}" if name in first else f"{width}, and the other has no {name}"
                raise _mixed(path, paths[0], f"its {PARTS[name].width} is {expected}")
        if missing := [name for name in first if name not in mine]:
            raise _mixed(path, paths[0], f"it has no {' and no '.join(missing)}")


def _mixed(path: Path, first: Path, why: str) -> ValueError:
    return ValueError(
        f"{printable(path.name)} is not a sample for the same model as {printable(first.name)}: {why}; keep the "
        "samples of each model in a folder of its own."
    )


def check_model_widths(path: Path, shapes: Shapes, expected: Mapping[str, int], even: bool = True) -> None:
    """Refuse samples that were made for another model.

    Args:
        path: Of a sample, for the message.
        shapes: Its shapes.
        expected: Width of every part that the model needs.
        even: Whether the model's tokens are 2 x 2 cells.

    Raises:
        ValueError: A width is not the model's, a part is missing that the model needs, or a side is odd.
    """
    found = widths(shapes)
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            if name in POSITIVE and name not in found:
                raise ValueError(
                    f"{printable(path.name)} has no {name}, and guidance by two calls needs it; make the samples with "
                    "this model, or set guidance to 1."
                )
            told = f"its {PARTS[name].width} is {found[name]}" if name in found else f"it has no {name}"
            raise ValueError(
                f"{printable(path.name)} is a sample for another model: {told}, and this model's "
                f"{PARTS[name].width} is {wanted:g}; make the samples with this model."
            )
    if even:
        check_sides(path, shapes["latents"])
