"""What CLEARUpscale does, by stock nodes only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .sampling import conditioning, run_node


def prompt(seed: int = 2) -> list:
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, 7, 64, generator=generator), torch.randn(1, 32, generator=generator))


def lanczos(host: Any, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What the stock node ImageScale makes of a picture."""
    height, width = size
    inputs = {"image": image, "upscale_method": "lanczos", "width": width, "height": height, "crop": "disabled"}
    return run_node(host.stock("ImageScale"), **inputs)[0]


def stock_graph(
    host: Any, vae: Any, image: torch.Tensor, model: Any, size: tuple[int, int], *, custom: bool = False, **changed: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and latent of the recipe without our node; ``changed`` are settings that differ from the usual ones."""
    stock = host.stock
    usual = {"seed": 0, "steps": 3, "cfg": 1.0, "sampler": "euler", "denoise": 0.5, "shift": 3.0, "mask": None}
    usual["positive"] = prompt()
    values = SimpleNamespace(**{**usual, **changed})
    with torch.inference_mode():
        (latent,) = run_node(stock("VAEEncode"), pixels=lanczos(host, image, size), vae=vae)
        if values.mask is not None:
            (latent,) = run_node(stock("SetLatentNoiseMask"), samples=latent, mask=values.mask)
        (model,) = run_node(stock("ModelSamplingAuraFlow"), model=model, shift=values.shift)
        schedule = {"scheduler": "simple", "steps": values.steps, "denoise": values.denoise}
        if custom:
            (sigmas,) = run_node(stock("BasicScheduler"), model=model, **schedule)
            (noise,) = run_node(stock("RandomNoise"), noise_seed=values.seed)
            (guider,) = run_node(stock("BasicGuider"), model=model, conditioning=values.positive)
            (sampler,) = run_node(stock("KSamplerSelect"), sampler_name=values.sampler)
            inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
            latent, _ = run_node(stock("SamplerCustomAdvanced"), latent_image=latent, **inputs)
        else:
            inputs = {"seed": values.seed, "cfg": values.cfg, "sampler_name": values.sampler, **schedule}
            prompts = {"positive": values.positive, "negative": prompt(5)}
            (latent,) = run_node(stock("KSampler"), model=model, latent_image=latent, **prompts, **inputs)
        (image,) = run_node(stock("VAEDecode"), samples=latent, vae=vae)
    return image, latent["samples"]


def composite(host: Any, below: torch.Tensor, above: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the stock node ImageCompositeMasked makes of two pictures of one size."""
    load_extras(host, "nodes_mask.py", "ImageCompositeMasked")
    with torch.inference_mode():
        places = {"x": 0, "y": 0, "resize_source": False}
        return run_node(host.stock("ImageCompositeMasked"), destination=below, source=above, mask=mask, **places)[0]


def load_extras(host: Any, file: str, node: str) -> None:
    """Loads one of the host's files of further nodes, unless its node is there."""
    if node not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(Path(host.nodes.__file__).parent / "comfy_extras" / file)
