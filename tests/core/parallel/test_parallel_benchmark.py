"""python -m benchmarks.parallel on two threads of the processor: its record, its parts, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.parallel import cases
from benchmarks.parallel.__main__ import main
from benchmarks.parallel.cases import Case, WrongResultError, hidden_share, measure
from benchmarks.parallel.links import peer_access
from benchmarks.parallel.peers import RecordedPeers, SilentPeers
from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.parallel import ThreadPeers, run_together

PROJECT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
TINY = ["--px", "160", "--radius", "3", "--text", "8", "--heads", "2", "--head-dim", "16", "--rounds", "2"]
CASE = Case(SequenceLayout(8, (10, 10)), ClearSpec(3, 2), heads=2, head_dim=16, dtype=torch.float32)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def check_record(record: dict, ranks: int, how: str) -> None:
    link, case = record["results"]
    assert {"device", "torch", "python", "threads", "revision", "date", "command", "options"} <= record.keys()
    assert record["device"].startswith("cpu") and record["options"]["heads"] == 2
    assert (link["kind"], link["how"], link["cards"], link["peer_access"]) == ("link", how, False, None)
    assert link["gb_per_s"] > 0 and link["latency_us"] > 0 and len(link["devices"]) == ranks
    assert (case["kind"], case["px"], case["ranks"], case["radius"]) == ("case", [160, 160], ranks, 3)
    assert list(case["ways"]) == ["strips", "heads"] and case["one_device_ms"] > 0
    for one in case["ways"].values():
        assert one["bytes_sent"] == one["bytes_by_formula"] > 0
        assert 0 <= one["hidden"] <= 1 and one["error"] < 1e-5
        assert all(one[name] > 0 for name in ("ms", "computing_ms", "transfer_ms", "speed_up"))


def test_two_threads_write_a_record(tmp_path, capsys):
    file = tmp_path / "record.json"
    assert main(["--threads", "2", *TINY, "--output", str(file)]) == 0
    check_record(json.loads(file.read_text(encoding="utf-8")), 2, "threads")
    out = capsys.readouterr().out
    assert "this runs on the processor, and says nothing about cards" in out
    assert out.count("strips") == out.count("heads") == 1, "one rank prints"


@pytest.mark.slow
def test_two_processes_write_a_record(tmp_path):
    file = tmp_path / "record.json"
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "benchmarks.parallel", *TINY]
    subprocess.run([sys.executable, *command, "--output", str(file)], cwd=PROJECT, check=True, timeout=300)
    record = json.loads(file.read_text(encoding="utf-8"))
    check_record(record, 2, "gloo")
    assert record["command"].startswith(
        "python -m torch.distributed.run --nproc-per-node=2 -m benchmarks.parallel --px"
    )


def test_the_committed_record_is_of_a_processor_and_says_so():
    record = json.loads((PROJECT / "benchmarks/records/parallel_cpu.json").read_text(encoding="utf-8"))
    link, *found = record["results"]
    assert record["device"].startswith("cpu") and not link["cards"]
    assert all(one["bytes_sent"] == one["bytes_by_formula"] for case in found for one in case["ways"].values())
    text = (PROJECT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert "parallel_cpu.json" in text and "says nothing about cards" in text


def test_heads_that_cannot_be_dealt_out_are_named():
    found = run_together(ThreadPeers.make(3), lambda peers: measure(peers, CPU, CASE, ["strips", "heads"], 1))
    assert found[0] == found[1] == found[2], "all ranks know the result"
    assert found[0]["ways"]["heads"] == {"skipped": "2 heads cannot be dealt out to 3 ranks"}
    assert found[0]["ways"]["strips"]["speed_up"] > 0


def test_a_wrong_result_is_refused_before_anything_is_timed(monkeypatch):
    def wrong(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        return clear_attention(*tensors, **options) * 1.001

    monkeypatch.setattr(cases, "clear_attention", wrong)
    with pytest.raises(WrongResultError, match=r"strips of \(10, 10\), .* is off by .*; nothing was timed"):
        run_together(ThreadPeers.make(2), lambda peers: measure(peers, CPU, CASE, ["strips"], 1))


def test_other_bytes_than_the_formula_s_are_refused(monkeypatch):
    monkeypatch.setattr(cases, "heads_traffic", lambda *sizes, **shape: 1)
    with pytest.raises(WrongResultError, match=r"heads of .* sent \d+ bytes, but the formula says 1"):
        run_together(ThreadPeers.make(2), lambda peers: measure(peers, CPU, CASE, ["heads"], 1))


@pytest.mark.parametrize("way", ["strips", "heads"])
def test_what_is_replayed_is_what_the_call_sends(way):
    """The same bytes each time, and computing alone sends none."""

    def one(peers: ThreadPeers) -> tuple[int, int, int]:
        tokens = sum(part.stop - part.start for part in CASE.parts(way, peers.size)[peers.rank])
        run = CASE.run(way, peers.size, *torch.randn(3, 1, CASE.heads, tokens, CASE.head_dim).unbind())
        recorded, silent = RecordedPeers(peers), SilentPeers(peers.rank, peers.size)
        run(recorded)
        called = peers.bytes_sent
        recorded.replay()
        run(silent)
        return called, peers.bytes_sent - called, recorded.bytes_sent

    found = run_together(ThreadPeers.make(2), one)
    assert all(called == again == recorded > 0 for called, again, recorded in found)
    assert sum(called for called, _, _ in found) == CASE.formula(way, 2)


@pytest.mark.parametrize(
    "both, computing, transfers, share",
    [(10, 10, 4, 1.0), (14, 10, 4, 0.0), (11, 10, 4, 0.75), (9, 10, 4, 1.0), (20, 10, 4, 0.0)],
    ids=str,
)
def test_hidden_is_what_the_whole_call_does_not_show(both, computing, transfers, share):
    assert hidden_share(both, computing, transfers) == pytest.approx(share)


def test_the_parts_of_all_ranks_are_the_whole_once():
    for way, ranks in (("strips", 3), ("heads", 2)):
        image: list[int] = []
        text: list[int] = []
        for words, tokens in CASE.parts(way, ranks):
            text += range(words.start, words.stop)
            image += range(tokens.start, tokens.stop)
        assert image == list(range(8, 108))
        assert text == (list(range(8)) * 3 if way == "strips" else list(range(8))), "strips hold all of the text"


def test_how_to_start_it_is_said(capsys):
    assert main([]) == 2
    assert "or one with --threads 2." in capsys.readouterr().err
    for wrong in (["--threads", "1"], ["--threads", "2", "--px", "100"], ["--threads", "2", "--ways", "rings"]):
        with pytest.raises(SystemExit):
            main(wrong)
    err = capsys.readouterr().err
    assert "--threads is 1; expected 2 or more" in err and "multiples of 16" in err and "rings was given" in err


def test_peer_access_needs_two_cards():
    assert peer_access([CPU, CPU]) is None
    assert peer_access([torch.device("cuda", 0)] * 2) is None
