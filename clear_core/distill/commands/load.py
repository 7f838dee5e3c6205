"""The model that a subcommand names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from torch import nn


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"torch_dtype": getattr(torch, options.dtype), "local_files_only": not options.download}


def load_teacher(options: argparse.Namespace) -> FluxTransformer2DModel:
    """The transformer of a pipeline's folder, or of a folder with a transformer alone."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    alone = (Path(options.model) / "config.json").exists()
    return FluxTransformer2DModel.from_pretrained(
        options.model, subfolder=None if alone else "transformer", **load_options(options)
    )


def move(model: nn.Module, device: torch.device) -> None:
    """To a device; a function of its own because the annotations of diffusers' ``to`` do not describe it."""
    model.to(device)


def load_pipeline(options: argparse.Namespace) -> Any:
    import torch
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(options.model, **load_options(options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
