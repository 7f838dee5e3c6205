"""A diffusers FLUX on several processes that the tests start: each computes all cases and writes what it found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout
from clear_core.families import FLUX1
from clear_core.integrations.diffusers import apply_clear
from clear_core.parallel import heads_traffic, strip_traffic
from tests.support import PROJECT
from tests.support.diffusers_flux import call_inputs, run


class Found(NamedTuple):
    """What one process found: the result, the stock model's after CLEAR was taken off, and the bytes it sent."""

    result: Tensor
    after: Tensor
    bytes_sent: int


@dataclass(frozen=True)
class FluxCase:
    """One call of the small FLUX.

    Attributes:
        way: "strips", "heads", "tensor" for tensor parallelism, or None for CLEAR that was applied for one process.
        settings: Further arguments of ``apply_clear``.
        config: Further arguments of ``ContextParallelConfig``.
        native: Image tokens from which the rotary base is stretched, instead of the family's; 0 leaves it.
        control: Whether residuals of a ControlNet are added.
        reference: Reference tokens after the image.
        stock_plan: Whether ``enable_parallelism`` is called without the handle's plan.
        enabled_first: Whether it is called before CLEAR is applied.
    """

    way: Any
    grid: tuple[int, int] = (8, 6)
    text: int = 8
    batch: int = 1
    spec: ClearSpec = ClearSpec(3)
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    native: int = 0
    control: bool = False
    reference: int = 0
    stock_plan: bool = False
    enabled_first: bool = False

    def inputs(self) -> dict[str, Any]:
        inputs: dict[str, Any] = call_inputs(self.grid, self.text, self.batch)
        rng = torch.Generator().manual_seed(1)
        if self.reference:
            more = torch.randn(self.batch, self.reference, 16, generator=rng)
            inputs["hidden_states"] = torch.cat([inputs["hidden_states"], more], dim=1)
            ids = torch.stack([torch.tensor([1.0, 0.0, x]) for x in range(self.reference)])
            inputs["img_ids"] = torch.cat([inputs["img_ids"], ids])
        if self.control:
            shape = (self.batch, inputs["hidden_states"].shape[1], 128)
            for name, count in (("controlnet_block_samples", 2), ("controlnet_single_block_samples", 1)):
                inputs[name] = [torch.randn(shape, generator=rng) for _ in range(count)]
        return inputs

    def alone(self) -> Tensor:
        """By one process."""
        with self.stretched():
            model = small_flux()
            with apply_clear(model, self.spec, **self.settings):
                return run(model, self.inputs())

    def together(self, ranks: int) -> Found:
        """By all processes, and again after CLEAR was taken off."""
        with self.stretched():
            model = small_flux()
            if self.enabled_first:
                self.enable(model, None, ranks)
            way = None if self.way == "tensor" else self.way
            handle = apply_clear(model, self.spec, parallel=way, **self.settings)
            if not self.enabled_first:
                self.enable(model, None if self.stock_plan else handle.cp_plan, ranks)
            found = run(model, self.inputs())
            handle.remove()
            peers = handle.parallel.peers
            return Found(found, run(model, self.inputs()), 0 if peers is None else peers.bytes_sent)

    def enable(self, model: Any, plan: Any, ranks: int) -> None:
        if self.way == "tensor":
            enable_tensor_parallelism(model, ranks)
        else:
            enable_context_parallelism(model, plan, ranks, self.config)

    def traffic(self, ranks: int) -> int:
        """Bytes that all processes send in the model's five blocks, by the formulas."""
        layout = SequenceLayout(self.text, self.grid, self.reference)
        size: dict[str, int] = {"heads": 4, "head_dim": 32, "element_bytes": 4, "batch": self.batch}
        if self.way == "strips":
            return 5 * sum(sum(one) for one in strip_traffic(layout, self.spec, ranks, **size))
        return 5 * heads_traffic(layout.length, ranks, **size) if self.way == "heads" else 0

    @contextmanager
    def stretched(self) -> Iterator[None]:
        native = self.native or FLUX1.native_tokens
        with mock.patch.dict(vars(FLUX1), native_tokens=native):
            yield


def small_flux() -> Any:
    """Two double and three single blocks, 4 heads of 32, the same random weights everywhere."""
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        ).eval()


def at_least_one_accelerator() -> Any:
    """diffusers divides by the number of accelerators."""
    return mock.patch("torch.accelerator.device_count", lambda: 1)


def enable_context_parallelism(model: Any, plan: Any, ranks: int, config: dict[str, Any]) -> None:
    from diffusers import ContextParallelConfig

    ring = config.get("ring_degree", 1)
    shape = (ring, ranks // ring)
    mesh = dist.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    with at_least_one_accelerator():
        made = ContextParallelConfig(**{"ulysses_degree": shape[1], "mesh": mesh, **config})
        model.enable_parallelism(config=made, cp_plan=plan)


def enable_tensor_parallelism(model: Any, ranks: int) -> None:
    from diffusers import TensorParallelConfig

    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    # diffusers shards weights on some kinds of accelerators only; torch does it on processors too.
    shards_here = mock.patch("diffusers.hooks.tensor_parallel._SUPPORTED_TP_DEVICES", ("cpu",))
    with at_least_one_accelerator(), shards_here:
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=ranks, mesh=mesh))


def run_flux_ranks(cases: dict[str, FluxCase], ranks: int, folder: Path, limit: float = 300.0) -> list[dict[str, Any]]:
    """Starts the processes; by rank and name of the case: what ``together`` returned, or the sentence it refused with.

    Args:
        cases: By name.
        ranks: Number of processes.
        folder: An empty one.
        limit: Seconds.
    """
    torch.save(cases, folder / "cases")
    code = "import sys; from tests.support.flux_ranks import main; main(*sys.argv[1:])"
    logs = [folder / f"log {rank}" for rank in range(ranks)]
    processes: list[subprocess.Popen[bytes]] = []
    for rank, log in enumerate(logs):
        with log.open("w") as stderr:
            command = [sys.executable, "-c", code, str(folder), str(rank), str(ranks)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=stderr))
    until = time.monotonic() + limit
    try:
        for process in processes:
            process.wait(max(0.1, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank} ended with {process.returncode}: {logs[rank].read_text()}"
    return [torch.load(folder / f"report {rank}", weights_only=False) for rank in range(ranks)]


def main(place: str, rank: str, ranks: str) -> None:
    torch.set_num_threads(1)
    folder = Path(place)
    store = dist.FileStore(str(folder / "store"), int(ranks))
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(ranks))
    report: dict[str, Any] = {}
    cases: dict[str, FluxCase] = torch.load(folder / "cases", weights_only=False)
    for name, case in cases.items():
        try:
            report[name] = case.together(int(ranks))
        except ValueError as error:
            report[name] = str(error)
    torch.save(report, folder / f"report {rank}")
    dist.barrier()
    dist.destroy_process_group()
