"""Guided runs with the stock samplers, and what went into and out of each correction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .sampling import run_node
from .upscaling import load_extras, prompt


@dataclass
class Calls:
    """The post-CFG calls of a run, before and after what stands between two probes.

    Attributes:
        before, after: Denoised predictions.
        inputs: What the model was given.
        sigmas: Of the calls.
        steps: Sigmas of the run.
    """

    before: list[torch.Tensor] = field(default_factory=list)
    after: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return self  # Older hosts copy it with each clone.

    def enter(self, args: dict[str, Any]) -> torch.Tensor:
        self.before.append(args["denoised"].double())
        self.inputs.append(args["input"].double())
        self.sigmas.append(float(args["sigma"][0]))
        self.steps = args["model_options"]["transformer_options"]["sample_sigmas"].tolist()
        return args["denoised"]

    def leave(self, args: dict[str, Any]) -> torch.Tensor:
        self.after.append(args["denoised"].double())
        return args["denoised"]

    def around(self, model: Any, apply: Any) -> Any:
        """A clone of ``model`` with ``apply(model)`` between the probes."""
        clone = model.clone()
        clone.set_model_sampler_post_cfg_function(self.enter)
        clone = apply(clone).clone()
        clone.set_model_sampler_post_cfg_function(self.leave)
        return clone


def sample(
    host: Any,
    model: Any,
    latent: torch.Tensor,
    *,
    custom: bool = False,
    sampler: str = "euler",
    steps: int = 4,
    denoise: float = 1.0,
    seed: int = 7,
    cfg: float = 1.0,
) -> torch.Tensor:
    """Samples of a run by KSampler, or by SamplerCustomAdvanced."""
    stock, positive = host.stock, prompt()
    schedule = {"scheduler": "simple", "steps": steps, "denoise": denoise}
    with torch.inference_mode():
        if not custom:
            inputs = {"seed": seed, "cfg": cfg, "sampler_name": sampler, **schedule}
            prompts = {"positive": positive, "negative": prompt(5)}
            (out,) = run_node(stock("KSampler"), model=model, latent_image={"samples": latent}, **prompts, **inputs)
            return out["samples"]
        load_extras(host, "nodes_custom_sampler.py", "SamplerCustomAdvanced")
        (sigmas,) = run_node(stock("BasicScheduler"), model=model, **schedule)
        (noise,) = run_node(stock("RandomNoise"), noise_seed=seed)
        (guider,) = run_node(stock("BasicGuider"), model=model, conditioning=positive)
        (chosen,) = run_node(stock("KSamplerSelect"), sampler_name=sampler)
        inputs = {"noise": noise, "guider": guider, "sampler": chosen, "sigmas": sigmas}
        out, _ = run_node(stock("SamplerCustomAdvanced"), latent_image={"samples": latent}, **inputs)
        return out["samples"]


def block_means(latent: torch.Tensor, level: int) -> torch.Tensor:
    """Means of blocks of 2**level, in plain loops."""
    out, side = latent.clone(), 2**level
    for y in range(0, latent.shape[-2], side):
        for x in range(0, latent.shape[-1], side):
            block = latent[..., y : y + side, x : x + side]
            out[..., y : y + side, x : x + side] = block.mean(dim=(-2, -1), keepdim=True)
    return out


def imax(calls: Calls, guide: torch.Tensor, schedule: str, level: int) -> list[torch.Tensor]:
    """The published change of the velocity at every call, as predictions, in float64."""
    found = []
    for denoised, noisy, sigma in zip(calls.before, calls.inputs, calls.sigmas, strict=True):
        velocity, towards = (noisy - denoised) / sigma, (noisy - guide) / sigma
        fading = 0.5 * (1 + math.cos(math.pi * calls.steps.index(sigma) / (len(calls.steps) - 1)))
        low = block_means(towards, level) - block_means(velocity, level)
        if schedule == "constant":
            velocity = velocity + low
        elif schedule == "decay":
            velocity = velocity + fading * low
        else:
            velocity = velocity + fading * (towards - velocity) + (1 - fading) * low
        found.append(noisy - sigma * velocity)
    return found


def butterworth(latent: torch.Tensor) -> torch.Tensor:
    """HiFlow's filter of order 4 and cutoff 0.2 as published, for even sides."""
    height, width = latent.shape[-2:]
    y = 2 * np.arange(height)[:, None] / height - 1
    x = 2 * np.arange(width)[None, :] / width - 1
    passed = 1 / (1 + ((y**2 + x**2) / 0.2**2) ** 4)
    spectrum = np.fft.fftshift(np.fft.fft2(latent.numpy()), axes=(-2, -1)) * passed
    return torch.from_numpy(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)


def hiflow(calls: Calls, references: list[torch.Tensor], direction: float, acceleration: float) -> list[torch.Tensor]:
    """The published steps, in float64; a call at the noise level of the one before follows the same step."""
    found, states = [], []
    for denoised, noisy, sigma, reference in zip(calls.before, calls.inputs, calls.sigmas, references, strict=True):
        left = 1 - calls.steps.index(sigma) / (len(calls.steps) - 1)
        aligned = denoised + direction * left * (butterworth(reference) - butterworth(denoised))
        velocity, of_reference = (noisy - aligned) / sigma, (noisy - reference) / sigma
        states = [state for state in states if state[0] > sigma]
        if states:
            _, before, reference_before = states[-1]
            velocity = velocity + acceleration * left * (before + of_reference - reference_before - velocity)
        states.append((sigma, velocity, of_reference))
        found.append(noisy - sigma * velocity)
    return found
