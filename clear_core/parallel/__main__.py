"""``python -m torch.distributed.run --nproc-per-node=2 -m clear_core.parallel``: a small FLUX on several processes.

The model is small and its weights are random, so nothing is downloaded; what is shown is that the parts fit together:
diffusers, torch.distributed and the windows, on this machine and its links. It stands above
:mod:`clear_core.integrations`, unlike the rest of this folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from ..environment import variables
from ..integrations.diffusers import ClearHandle, apply_clear
from ..integrations.flux_denoiser import FluxDenoiser
from ..number_checks import check_number
from ..spec import ClearSpec
from .group import join_group

PIXELS = 16  # of a token's side
CLOSE = 1e-5
"""Largest difference to one process that ``--check`` lets pass, as a share of the largest element."""

START = "python -m torch.distributed.run --nproc-per-node=2 -m clear_core.parallel"


def main(arguments: list[str] | None = None) -> int:
    """One rank's part; returns the exit status."""
    options = parse(arguments)
    if "RANK" not in variables():
        print(f"this is one of several processes; start them by: {START}", file=sys.stderr)
        return 1
    try:
        return run(options)
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=START,
        description="Denoises noise by a small FLUX with random weights, each process its part of the picture. Needs "
        "diffusers 0.36 or later.",
    )
    parser.add_argument("--parallel", choices=("strips", "heads"), default="strips", help="strips of rows, or heads")
    parser.add_argument("--height", type=int, default=512, help="pixels, a multiple of 16 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="pixels, a multiple of 16 (default: %(default)s)")
    parser.add_argument("--radius", type=int, default=8, help="of the windows, in tokens (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="calls of the model (default: %(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="compare with one process; fail if they differ by more than float32 does"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Makes the latent on all ranks, and again on one if asked; rank 0 prints."""
    for name in ("height", "width", "radius", "steps"):
        check_number(name, getattr(options, name), 1, whole=True)
    for name in ("height", "width"):
        if getattr(options, name) % PIXELS:
            raise ValueError(f"{name} is {getattr(options, name)}; expected a multiple of {PIXELS} pixels.")
    device = join_group()
    try:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        denoiser, noise = small_flux(options, device)
        handle = apply_clear(denoiser.transformer, ClearSpec(options.radius), parallel=options.parallel)
        if ranks > 1:
            enable(handle, ranks, device)
        denoised(denoiser, noise, 1)  # kernels are compiled, links are opened
        peers = handle.parallel.peers
        before = 0 if peers is None else peers.bytes_sent
        found, seconds = denoised(denoiser, noise, options.steps)
        sent = torch.tensor(0 if peers is None else peers.bytes_sent - before, device=device)
        dist.all_reduce(sent)
        handle.remove()
        if rank == 0:
            print(
                f"{ranks} processes on {device.type}, {options.parallel}: {options.width} x {options.height} px, "
                f"{options.steps} steps in {seconds:.2f} s; attention sent {int(sent) / 1e6:.2f} MB"
            )
        status = check(options, denoiser, noise, found) if options.check and rank == 0 else 0
        dist.barrier()
        return status
    finally:
        dist.destroy_process_group()


def small_flux(options: argparse.Namespace, device: torch.device) -> tuple[FluxDenoiser, Tensor]:
    """The same model, prompt and noise (1, 16, H/8, W/8) on every rank."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=32,
            num_attention_heads=8,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        prompt, pooled = torch.randn(1, 64, 64), torch.randn(1, 32)
        noise = torch.randn(1, 16, options.height // 8, options.width // 8)
    denoiser = FluxDenoiser(model.train(False).to(device), prompt.to(device), pooled.to(device))
    return denoiser, noise.to(device)


def enable(handle: ClearHandle, ranks: int, device: torch.device) -> None:
    """diffusers' context parallelism over all ranks, also where there is no accelerator."""
    from diffusers.models._modeling_parallel import ContextParallelConfig

    options: dict[str, Any] = {}
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type != device.type:
        # diffusers takes it for granted that the ranks run on the accelerator, of which there are not enough here.
        names = ("ring", "ulysses")
        options["mesh"] = dist.device_mesh.init_device_mesh(device.type, (1, ranks), mesh_dim_names=names)
    with at_least_one_accelerator():
        config = ContextParallelConfig(ulysses_degree=ranks, **options)
        handle.transformer.enable_parallelism(config=config, cp_plan=handle.cp_plan)


@contextmanager
def at_least_one_accelerator() -> Generator[None]:
    """While diffusers numbers its devices: it divides by how many accelerators there are, which may be 0.

    Source: ``ModelMixin._resolve_parallel_config`` in diffusers 0.42, ``modeling_utils.py``.
    """
    count = max(1, torch.accelerator.device_count())
    with mock.patch("torch.accelerator.device_count", lambda: count):
        yield


@torch.no_grad()
def denoised(denoiser: FluxDenoiser, noise: Tensor, steps: int) -> tuple[Tensor, float]:
    """The latent after Euler steps from pure noise, and seconds."""
    begun = time.perf_counter()
    latent = noise
    for step in range(steps):
        latent = latent - denoiser(latent, 1 - step / steps) / steps
    latent = latent.cpu()  # waits for a card
    return latent, time.perf_counter() - begun


def check(options: argparse.Namespace, denoiser: FluxDenoiser, noise: Tensor, found: Tensor) -> int:
    """Computes the same alone and says how much it differs; the exit status."""
    with apply_clear(denoiser.transformer, ClearSpec(options.radius)):
        expected, seconds = denoised(denoiser, noise, options.steps)
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"one process: {seconds:.2f} s; largest difference {difference:.1e} of the largest element")
    return int(difference > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
