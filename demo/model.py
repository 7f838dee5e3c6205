"""The demo's model: the tiny FLUX in the repository, with and without distilled windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clear_core import ClearSpec

from .tiny_flux.caption import encode_captions
from .tiny_flux.model import GUIDANCE

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    from clear_core.integrations.flux_denoiser import FluxDenoiser

CAPTION = (
    "a big red striped ball left, a small yellow plain cone middle, a big blue checked box right, meadow day, sun left"
)

ABOUT = """\
Model:     the tiny FLUX of this repository: FLUX.1's blocks, head size and rotary axes, but 1 + 3 blocks for 19 + 38
           and 2 heads for 24, trained on drawn scenes (demo/tiny_flux/README.md). It shows what windows and
           distillation do to pictures; FLUX.1's own pictures differ."""


def build_denoiser(caption: str = CAPTION) -> FluxDenoiser:
    """The tiny FLUX with a caption of its world; a new model on every call."""
    from clear_core.integrations.flux_denoiser import FluxDenoiser

    from .tiny_flux.weights import load_tiny_flux

    return FluxDenoiser(load_tiny_flux(), *encode_captions([caption]), GUIDANCE)


def with_distilled_weights(transformer: FluxTransformer2DModel, spec: ClearSpec) -> None:
    """Puts the weights distilled for a window onto the model; the caller applies the window.

    Raises:
        FileNotFoundError: There are no weights for this window.
    """
    from clear_core.integrations.diffusers import load_clear

    from .experiments.windows import window_file

    path = window_file(spec)
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("clear_local_*.safetensors"))
        raise FileNotFoundError(f"there are no weights for {spec}; expected one of {', '.join(known) or 'none yet'}.")
    load_clear(transformer, path)
