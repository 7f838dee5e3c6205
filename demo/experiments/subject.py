"""The model of an experiment and the distilled windows that belong to it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clear_core import ClearSpec
from clear_core.integrations.diffusers import load_clear
from clear_core.weights.fingerprint import sha256

from ..tiny_flux.weights import load_tiny_flux, model_fingerprint
from .measure import windowed
from .windows import SPECS, WINDOWS, window_file

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


@dataclass(frozen=True)
class Subject:
    """A small FLUX and its distilled windows.

    Attributes:
        model: The tiny FLUX's file; None is the committed one.
        weights: Folder of ``clear_local_*.safetensors`` that were distilled from this model.

    Raises:
        ValueError: A file or folder is missing, or the windows were distilled from another model.
    """

    model: Path | None = None
    weights: Path = WINDOWS

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.is_file():
            raise ValueError(
                f"the model {self.model} is no file; expected a tiny FLUX as `demo.tiny_flux.train` makes it."
            )
        if not any(window_file(spec, self.weights).is_file() for spec in SPECS):
            raise ValueError(
                f"{self.weights} has no clear_local_*.safetensors; expected the folder that `python -m "
                "demo.experiments distil` wrote for this model."
            )
        if self.weights == WINDOWS and model_fingerprint(self.model) != model_fingerprint():
            raise ValueError(
                f"the committed windows were distilled from the committed model, not from {self.model}; name the "
                "folder of its own windows by --weights."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on: digests of the model and of each window's file."""
        files = {spec: window_file(spec, self.weights) for spec in SPECS}
        windows = {file.name: sha256(file) for file in files.values() if file.is_file()}
        return {"model": model_fingerprint(self.model), "windows": windows}

    def dense(self) -> FluxTransformer2DModel:
        """The model with its own attention."""
        return load_tiny_flux(self.model)

    def windowed(self, spec: ClearSpec, distilled: bool) -> FluxTransformer2DModel:
        """The model with windows, on its own weights or on those distilled for them."""
        return windowed(spec, window_file(spec, self.weights) if distilled else None, self.model)

    def distilled(self, spec: ClearSpec) -> FluxTransformer2DModel:
        """The model on the weights distilled for a window, which is not applied yet."""
        model = self.dense()
        load_clear(model, window_file(spec, self.weights))
        return model


COMMITTED = Subject()


def add_subject(command: argparse.ArgumentParser) -> None:
    """Adds the options that choose a subject."""
    command.add_argument("--model", type=Path, help="the tiny FLUX's file; the committed one by default")
    command.add_argument(
        "--weights",
        type=Path,
        default=WINDOWS,
        help="folder of clear_local_*.safetensors distilled from this model; the committed ones by default",
    )


def subject_of(options: argparse.Namespace) -> Subject:
    """The subject of a command; ends the program with one sentence if there is none.

    Also refuses numbers of threads, scenes and pictures that nothing can be made of.
    """
    for name, least in (("threads", 1), ("scenes", 1), ("pictures", 0)):
        value = getattr(options, name, least)
        if value < least:
            raise SystemExit(f"--{name} is {value}; expected at least {least}.")
    try:
        return Subject(options.model, options.weights)
    except ValueError as error:
        raise SystemExit(str(error)) from None
