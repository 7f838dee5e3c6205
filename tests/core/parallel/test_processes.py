"""Ranks that are processes, by gloo: the same as threads, and what happens if one of them ends."""

import re
from dataclasses import replace

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.parallel import ProcessPeers, heads_traffic
from tests.support.rank_process import GRID, HEADS, TEXT, Jobs, Report, heads_case, heads_part, run_ranks, windows
from tests.support.strip_cases import StripCase


def check(jobs: Jobs, reports: list[Report]) -> None:
    """All cases, the call by heads, and the subgroup's case."""
    for index, case in enumerate(jobs.cases):
        case.check([one.results[index] for one in reports], [one.bytes_sent[index] for one in reports])
    if jobs.subgroup:
        own = [reports[rank] for rank in jobs.subgroup]
        case = replace(jobs.cases[0], ranks=len(own))
        case.check([one.results[-1] for one in own], [one.bytes_sent[-1] for one in own])
    if jobs.by_heads:
        expected, counted = windows(*heads_case()), 0
        for rank, report in enumerate(reports):
            found, bytes_sent = report.by_heads
            assert torch.equal(found, heads_part(expected, rank, jobs.ranks))
            counted += bytes_sent
        tokens = TEXT + GRID[0] * GRID[1]
        assert counted == heads_traffic(tokens, jobs.ranks, heads=HEADS, head_dim=16, element_bytes=4)


def typical(ranks: int) -> list[StripCase]:
    """Ragged rows with references and pooling; a radius past a strip, averaged; fewer rows than ranks."""
    case = StripCase.draw(0, ranks)
    ragged = replace(case, layout=SequenceLayout(7, (22, 9), 5), spec=ClearSpec(4, 4), batch=2, dtype=torch.float32)
    return [
        ragged,
        replace(ragged, seed=1, layout=SequenceLayout(5, (13, 6)), spec=ClearSpec(9), average=True),
        replace(ragged, seed=2, layout=SequenceLayout(3, (ranks - 1, 5), 2), spec=ClearSpec(80)),
    ]


def test_two_processes_and_an_error_in_one_that_lives_on(tmp_path):
    jobs = Jobs(2, typical(2), by_heads=True, failing=1, failure="error", timeout=3.0)
    reports = run_ranks(jobs, tmp_path)
    check(jobs, reports)
    said = reports[0].error
    assert said == "rank 0 of 2 waited in vain for rank 1: a process has ended, or did not answer within 3 s."
    assert 2 < reports[0].waited < 30
    assert reports[1].error == "rank 1 has stopped after KeyboardInterrupt."


def test_four_processes_of_which_one_is_killed(tmp_path):
    jobs = Jobs(4, typical(4), by_heads=True, subgroup=(1, 3), failing=2, timeout=40.0)
    reports = run_ranks(jobs, tmp_path)
    check(jobs, reports)
    assert [bool(one.error) for one in reports] == [True, True, False, True]
    for one in reports[:2] + reports[3:]:
        assert re.match("rank . of 4 waited in vain for ranks? .*: a process has ended, or did not answer", one.error)
        assert one.waited < 40


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_many_cases(ranks, tmp_path):
    cases = [StripCase.draw(seed, ranks) for seed in range(1000, 1060)]
    jobs = Jobs(ranks, [*cases, *(replace(case, average=True) for case in cases[:10])], by_heads=HEADS % ranks == 0)
    check(jobs, run_ranks(jobs, tmp_path, limit=900))


def test_without_a_group_there_are_no_peers():
    with pytest.raises(
        ValueError, match="ProcessPeers needs a group of processes; call torch.distributed.init_process"
    ):
        ProcessPeers()
