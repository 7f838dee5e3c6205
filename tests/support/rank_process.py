"""One rank of a group of processes, and the start of all of them.

Each computes all jobs, writes a report, and then fails in the way it was told.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clear_core import ClearSpec, clear_attention
from clear_core.parallel import PeersError, ProcessPeers, attend_by_heads
from tests.support.strip_cases import StripCase

PROJECT = Path(__file__).resolve().parents[2]
GRID, TEXT, HEADS = (8, 7), 8, 8  # of the call by heads; its tokens and heads are dealt out to 2, 4 or 8 ranks


@dataclass(frozen=True)
class Jobs:
    """What all ranks do.

    Attributes:
        by_heads: Whether to compute a call by heads as well.
        subgroup: Ranks that then compute the first case again, cut for themselves alone; none if it is empty.
        failing: The rank that fails in the end; None if none does.
        failure: Its way: "kill", or "error" in ``on_chunk``, after which the process lives on.
        timeout: Seconds that the ranks wait for each other in the end.
    """

    ranks: int
    cases: list[StripCase]
    by_heads: bool = False
    subgroup: tuple[int, ...] = ()
    failing: int | None = None
    failure: str = "kill"
    timeout: float = 60.0


@dataclass
class Report:
    """What one rank says.

    Attributes:
        results: Of the cases, and of the subgroup's.
        bytes_sent: In each of them.
        by_heads: The own part of that call, and the bytes sent in it.
        error: The sentence of the PeersError in the end.
        waited: Seconds until it came.
    """

    results: list[Tensor]
    bytes_sent: list[int]
    by_heads: tuple[Tensor, int] | None = None
    error: str = ""
    waited: float = 0.0


def run_ranks(jobs: Jobs, folder: Path, limit: float = 300.0) -> list[Report]:
    """Starts the ranks and waits for them, at most ``limit`` seconds."""
    torch.save(jobs, folder / "jobs")
    run = "import sys; from tests.support.rank_process import main; main(sys.argv[1], int(sys.argv[2]))"
    logs = [folder / f"log {rank}" for rank in range(jobs.ranks)]
    processes: list[subprocess.Popen[bytes]] = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-c", run, str(folder), str(rank)]
        with log.open("w") as stderr:
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
        if process.returncode and not (rank == jobs.failing and jobs.failure == "kill"):
            raise AssertionError(f"rank {rank} ended with {process.returncode}: {logs[rank].read_text()}")
    return [torch.load(report_of(folder, rank), weights_only=False) for rank in range(jobs.ranks)]


def report_of(folder: Path, rank: int) -> Path:
    return folder / f"report {rank}"


def heads_case() -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the whole call by heads."""
    shape = (3, 1, HEADS, TEXT + GRID[0] * GRID[1], 16)
    q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(5)).unbind()
    return q, k, v


def heads_part(tokens: Tensor, rank: int, ranks: int) -> Tensor:
    """What a rank holds of it."""
    text, image = tokens[:, :, :TEXT], tokens[:, :, TEXT:]
    return torch.cat([text.chunk(ranks, dim=2)[rank], image.chunk(ranks, dim=2)[rank]], dim=2)


def windows(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return clear_attention(q, k, v, grid=GRID, spec=ClearSpec(3, 2))


def main(place: str, rank: int) -> None:
    torch.set_num_threads(1)
    folder = Path(place)
    jobs: Jobs = torch.load(folder / "jobs", weights_only=False)
    store = dist.FileStore(str(folder / "store"), jobs.ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=jobs.ranks)
    peers, report = ProcessPeers(), Report([], [])
    for case in jobs.cases:
        run_case(case, peers, report)
    if jobs.by_heads:
        before = peers.bytes_sent
        parts = [heads_part(one, rank, jobs.ranks) for one in heads_case()]
        out = attend_by_heads(windows, *parts, peers=peers, text_tokens=TEXT // jobs.ranks)
        report.by_heads = out, peers.bytes_sent - before
    if jobs.subgroup:
        group = dist.new_group(list(jobs.subgroup))
        if rank in jobs.subgroup:
            run_case(replace(jobs.cases[0], ranks=len(jobs.subgroup)), ProcessPeers(group), report)
    torch.save(report, report_of(folder, rank))
    if jobs.failing is not None:
        fail(jobs, ProcessPeers(timeout=jobs.timeout), report, folder)
        torch.save(report, report_of(folder, rank))
        os._exit(0)  # the group is broken: nothing of it can be closed


def run_case(case: StripCase, peers: ProcessPeers, report: Report) -> None:
    before = peers.bytes_sent
    report.results.append(case.run(peers))
    report.bytes_sent.append(peers.bytes_sent - before)


def fail(jobs: Jobs, peers: ProcessPeers, report: Report, folder: Path) -> None:
    """Calls attention until the failing rank has failed."""
    failing = peers.rank == jobs.failing
    if failing and jobs.failure == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    started = time.monotonic()
    try:
        while True:
            jobs.cases[0].run(peers, on_chunk=interrupt if failing else None)
    except PeersError as error:
        report.error = str(error)
        report.waited = time.monotonic() - started
        (folder / f"gave up {peers.rank}").touch()
    except KeyboardInterrupt:
        # The process lives on until the others have given up.
        others = [folder / f"gave up {rank}" for rank in range(jobs.ranks) if rank != peers.rank]
        while not all(file.exists() for file in others):
            time.sleep(0.1)
        try:
            jobs.cases[0].run(peers)
        except PeersError as error:
            report.error = str(error)


def interrupt() -> None:
    raise KeyboardInterrupt
