"""The model that a subcommand names: a folder in diffusers' layout, a Hub name, or one file as ComfyUI has it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...progress import silence_libraries
from ...wording import quoted

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...families import Family
    from ..families import Teaching


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"torch_dtype": getattr(torch, options.dtype), "local_files_only": not options.download}


def load_transformer(options: argparse.Namespace) -> Any:
    """The transformer of a pipeline's folder, of a folder with a transformer alone, or of one file.

    Raises:
        ValueError: It is of no family with windows, or quantised; the sentence says what is there.
        OSError: It is not here, or cannot be read.
    """
    import torch

    from ..one_file import load_one_file

    path = Path(options.model)
    if path.is_file():
        return load_one_file(path, getattr(torch, options.dtype))
    subfolder = _subfolder(path)
    kind, _ = _class_of(_config(options, subfolder), options.model)
    return kind.from_pretrained(options.model, subfolder=subfolder, **load_options(options))


def transformer_builder(options: argparse.Namespace) -> tuple[Callable[[], Any], Family]:
    """A function that makes the transformer without its weights, and its family. No weights are read.

    Raises:
        ValueError: As :func:`load_transformer`.
    """
    import diffusers

    from ..one_file import read_config

    path = Path(options.model)
    if path.is_file():
        family, config = read_config(path)
        kind: Any = getattr(diffusers, family.diffusers.transformer)
        return lambda: kind(**config), family
    config = _config(options, _subfolder(path))
    kind, family = _class_of(config, options.model)
    return lambda: kind.from_config(config), family


def _subfolder(path: Path) -> str | None:
    return None if (path / "config.json").exists() else "transformer"


def _class_of(config: dict[str, Any], model: str) -> tuple[Any, Family]:
    import diffusers

    family = _teaching(str(config.get("_class_name", "")), model).family
    return getattr(diffusers, family.diffusers.transformer), family


def _config(options: argparse.Namespace, subfolder: str | None) -> dict[str, Any]:
    """The configuration of a diffusers model, without its weights."""
    from diffusers.configuration_utils import ConfigMixin

    class AnyModel(ConfigMixin):
        config_name = "config.json"

    try:
        found: Any = AnyModel.load_config(options.model, subfolder=subfolder, local_files_only=not options.download)
    except OSError as error:
        raise _not_here(options, error) from None
    if found.get("quantization_config"):
        raise ValueError(
            f"{options.model} is quantised (quantization_config in its config.json); choose the model in 16 bits, and "
            "set base to fp8 or nf4 to hold it in less memory."
        )
    return found


def _not_here(options: argparse.Namespace, error: OSError) -> OSError:
    """The library's error, or for what is no folder and may not be downloaded a sentence that says so."""
    if options.download or Path(options.model).is_dir():
        return error
    return FileNotFoundError(
        f"model is {quoted(options.model)}: here is neither a file or folder of this path nor a downloaded model of "
        "this name; correct it, or give --download to get it from the Hub."
    )


def _teaching(class_name: str, model: str) -> Teaching:
    from ..families import TEACHINGS

    for teaching in TEACHINGS:
        if teaching.family.diffusers.transformer == class_name:
            return teaching
    names = ", ".join(teaching.family.name for teaching in TEACHINGS)
    raise ValueError(f"{model} holds a {quoted(class_name)}; expected a transformer of {names}.")


def move(model: nn.Module, device: torch.device) -> None:
    """To a device; a function of its own because the annotations of diffusers' ``to`` do not describe it."""
    model.to(device)


def load_pipeline(options: argparse.Namespace) -> Any:
    """The pipeline that a folder or Hub name holds.

    Raises:
        ValueError: It is one file, which has no text encoders.
    """
    import diffusers
    import torch

    index = _pipeline_index(options)
    teaching_for_samples(options).check_inputs(_config(options, "transformer"))
    kind: Any = getattr(diffusers, str(index["_class_name"]))
    silence_libraries()
    pipeline = kind.from_pretrained(options.model, **load_options(options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def load_vae(options: argparse.Namespace) -> Any:
    """The VAE of a pipeline's folder or Hub name, for validation pictures.

    Raises:
        ValueError: The model is one file or a transformer alone.
    """
    import diffusers
    import torch

    alone = Path(options.model).is_file() or (Path(options.model) / "config.json").exists()
    library, name = (None, None) if alone else _pipeline_index(options).get("vae") or (None, None)
    if library != "diffusers" or not name:
        raise ValueError(
            f"pictures_every is {options.pictures_every}, but {Path(options.model).name} has no VAE to draw with; give "
            "the folder of a whole pipeline, or leave the pictures out."
        )
    vae = getattr(diffusers, name).from_pretrained(options.model, subfolder="vae", **load_options(options))
    return vae.to("cuda" if torch.cuda.is_available() and not options.cpu else "cpu").train(False)


def teaching_for_samples(options: argparse.Namespace) -> Teaching:
    """How the family of a pipeline is taught, from its index alone.

    Raises:
        ValueError: As :func:`load_pipeline`.
    """
    entry = _pipeline_index(options).get("transformer") or [None, ""]
    return _teaching(str(entry[1]), options.model)


def _pipeline_index(options: argparse.Namespace) -> dict[str, Any]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if Path(options.model).is_file():
        raise ValueError(
            f"model is the file {Path(options.model).name}, which has neither text encoders nor a VAE; samples need a "
            "folder in diffusers' layout or a Hub name. The training takes the file itself."
        )
    try:
        found: Any = DiffusionPipeline.load_config(options.model, local_files_only=not options.download)
    except OSError as error:
        raise _not_here(options, error) from None
    entry = found.get("transformer") or [None, ""]
    _teaching(str(entry[1]), options.model)
    return dict(found)
