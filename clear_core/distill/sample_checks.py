"""Whether a file is a training sample: its parts, their shapes and types, and every value of them.

All is checked when a folder is opened. Later, a part of another rank would be broadcast in silence, and one value that
is not finite turns all weights into NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..wording import printable

PARTS: dict[str, tuple[str, ...]] = {
    "latents": ("channels", "height", "width"),
    "prompt_embeds": ("tokens", "text width"),
    "pooled": ("pooled width",),
}
"""The parts of a sample, and what their dimensions are."""

WIDTHS = {"latents": "channels", "prompt_embeds": "text width", "pooled": "pooled width"}
"""The dimension of each part that a model fixes, and so is the same in all samples of a folder."""

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of the parts, in the order of :data:`PARTS`."""


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
            tensors = {part: file.get_tensor(part) for part in PARTS}
        return check_parts(tensors)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{printable(path.name)} is not a sample ({printable(error, 160)}); expected a safetensors file with "
            f"{', '.join(PARTS)}."
        ) from None


def check_parts(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes of the parts of one sample.

    Args:
        tensors: latents (C, H, W), H and W even; prompt_embeds (T, text width); pooled (pooled width,).

    Raises:
        ValueError: A part has another rank or type, or values that are not finite in float32.
    """
    for part, dimensions in PARTS.items():
        tensor = tensors[part]
        shape = tuple(tensor.shape)
        if len(shape) != len(dimensions) or 0 in shape:
            raise ValueError(f"{part} has shape {shape}, expected ({', '.join(dimensions)})")
        if not tensor.is_floating_point():
            raise ValueError(f"{part} is {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{part} has NaN or infinite values")
    if any(side % 2 for side in tensors["latents"].shape[1:]):
        raise ValueError(f"latents has shape {tuple(tensors['latents'].shape)}, expected even sides")
    return tuple(tuple(tensors[part].shape) for part in PARTS)


def widths(shapes: Shapes) -> tuple[int, ...]:
    """(channels, text width, pooled width) of a sample."""
    return tuple(
        shape[dimensions.index(WIDTHS[part])] for shape, (part, dimensions) in zip(shapes, PARTS.items(), strict=True)
    )


def check_same_widths(paths: Sequence[Path], shapes: Sequence[Shapes]) -> None:
    """Refuse samples of different models in one folder.

    Raises:
        ValueError: A sample's width is not the first one's.
    """
    for path, found in zip(paths, shapes, strict=True):
        for name, width, expected in zip(WIDTHS.values(), widths(found), widths(shapes[0]), strict=True):
            if width != expected:
                raise ValueError(
                    f"{printable(path.name)} is not a sample for the same model as {printable(paths[0].name)}: its "
                    f"{name} is {width}, not {expected}; keep the samples of each model in a folder of its own."
                )


def check_model_widths(path: Path, shapes: Shapes, config: Mapping[str, Any]) -> None:
    """Refuse samples that were made for another model.

    Args:
        path: Of a sample, for the message.
        shapes: Its shapes.
        config: Of a diffusers FLUX.1 transformer.

    Raises:
        ValueError: A width is not the model's.
    """
    token_cells = 4
    expected = (config["in_channels"] / token_cells, config["joint_attention_dim"], config["pooled_projection_dim"])
    for name, width, wanted in zip(WIDTHS.values(), widths(shapes), expected, strict=True):
        if width != wanted:
            raise ValueError(
                f"{printable(path.name)} is a sample for another model: its {name} is {width}, and this model's is "
                f"{wanted:g}; make the samples with this model."
            )
