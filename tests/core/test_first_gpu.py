"""The first run on a card, part by part: what it keeps, what it survives, what it compares and what it concludes."""

import json
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.first_gpu import __main__ as command
from benchmarks.first_gpu import chunks, exactness, first_use, kernels, peaks, steps, worker
from benchmarks.first_gpu.bench import Bench, Measurement
from benchmarks.first_gpu.compare import Contender, compare
from benchmarks.first_gpu.exits import DEVICE_LOST, DONE
from benchmarks.first_gpu.inputs import keys_per_query, model_inputs
from benchmarks.first_gpu.journal import AnotherRunError, Journal
from benchmarks.first_gpu.scale import FULL, SMALL
from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention.backends.dense import image_rows_mask

CPU = torch.device("cpu")
IDENTITY = {"device": "a card", "torch": "2.9", "revision": "abc", "kind of run": "full"}


@pytest.fixture
def bench():
    return Bench(SMALL, CPU, {}, {}, lambda run: None)


# ---- the record ----


def test_a_record_is_taken_up(tmp_path):
    journal = Journal(tmp_path / "sub" / "record.json")
    journal.begin(IDENTITY)
    journal.finish("a", {"section": "x", "line": "1 ms"})
    journal.start("b")
    again = Journal(journal.file)
    assert again.running == {"key": "b", "run": None}
    again.begin(dict(IDENTITY))
    assert again.results == {"a": {"section": "x", "line": "1 ms"}} and again.running is None
    assert [one.name for one in journal.file.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("name", ["device", "torch", "revision"])
def test_figures_of_something_else_are_refused_in_one_sentence(tmp_path, name):
    journal = Journal(tmp_path / "record.json")
    journal.begin(IDENTITY)
    before = journal.file.read_text()
    with pytest.raises(AnotherRunError) as refusal:
        Journal(journal.file).begin({**IDENTITY, name: "other"})
    said = str(refusal.value)
    assert f"another {name} ({IDENTITY[name]}, and here it is other); choose another --output." in said
    assert journal.file.read_text() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"results": {}}'])
def test_a_file_of_another_kind_is_left_alone(tmp_path, text):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(AnotherRunError, match="is no record of this command"):
        Journal(file)
    assert file.read_text() == text


def test_a_death_leaves_out_the_run_and_the_second_one_the_measurement(tmp_path):
    journal = Journal(tmp_path / "record.json")
    journal.start("4K", "flex")
    assert Journal(journal.file).died("it crashed") == "flex"
    journal = Journal(journal.file)
    assert journal.excluded == {"flex": "it crashed (in 4K)"} and not journal.results
    journal.start("4K")
    assert journal.died("it crashed") == "4K" and journal.results["4K"]["failed"] == "it crashed"
    assert journal.died("again") == ""


# ---- the process that measures ----


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "record.json")
    journal.begin(IDENTITY)
    return journal


def in_an_hour():
    return time.monotonic() + 3600


def test_a_failure_is_a_result(journal, monkeypatch, capsys):
    made = []
    listed = [
        Measurement("bad", "x", 1, lambda bench: 1 / 0),
        Measurement("good", "x", 1, lambda bench: made.append(1) or {"line": "well"}),
    ]
    monkeypatch.setattr(worker, "plan", lambda scale: listed)
    for _ in range(2):
        assert worker.measure(journal, CPU, True, in_an_hour()) == DONE
    assert made == [1] and journal.results["good"]["line"] == "well"
    assert journal.results["bad"]["failed"] == "ZeroDivisionError: division by zero"
    assert "[2/2] good, 0.0 s: well" in capsys.readouterr().out


def test_what_kills_the_device_is_left_out_the_next_time(journal, monkeypatch):
    def run(bench):
        _, reason = bench.attempt("flex", lambda: 1 / 0)
        return {"line": reason}

    monkeypatch.setattr(worker, "plan", lambda scale: [Measurement("4K", "x", 1, run)])
    monkeypatch.setattr("benchmarks.first_gpu.bench.is_alive", lambda device: False)
    assert worker.measure(journal, CPU, True, in_an_hour()) == DEVICE_LOST
    assert "4K" not in journal.results
    assert worker.measure(Journal(journal.file), CPU, True, in_an_hour()) == DONE
    line = Journal(journal.file).results["4K"]["line"]
    assert line == "it made the device unusable (ZeroDivisionError: division by zero) (in 4K)"


def test_what_does_not_fit_the_time_is_named(journal, monkeypatch):
    listed = [Measurement(name, "x", expected, lambda bench: {"line": ""}) for name, expected in (("a", 60), ("b", 1))]
    monkeypatch.setattr(worker, "plan", lambda scale: listed)
    assert worker.measure(journal, CPU, False, time.monotonic() + 30) == DONE
    assert list(journal.results) == ["b"] and Journal(journal.file).left_out == ["a"]
    assert worker.measure(journal, CPU, False, in_an_hour()) == DONE
    assert list(journal.results) == ["b", "a"] and Journal(journal.file).left_out == []


@pytest.mark.parametrize(
    "code, hung, said",
    [
        (-11, False, "the process died of SIGSEGV"),
        (0xC0000005, False, "the process died of 0xc0000005"),
        (-9, True, "nothing was heard"),
    ],
)
def test_a_process_that_dies_is_started_again(journal, monkeypatch, capsys, code, hung, said):
    left = [(code, hung), (DEVICE_LOST, False), (0, False)]

    def run_worker(arguments, file):
        Journal(file).start("4K", "triton")
        return left.pop(0)

    monkeypatch.setattr(command, "run_worker", run_worker)
    assert command.supervise([], journal.file, in_an_hour()) == 0 and not left
    assert said in Journal(journal.file).excluded["triton"]
    assert f"{said}" in capsys.readouterr().out


def test_an_ordinary_end_is_passed_on_and_too_many_deaths_end_it(journal, monkeypatch):
    monkeypatch.setattr(command, "run_worker", lambda *given: (2, False))
    assert command.supervise([], journal.file, in_an_hour()) == 2
    monkeypatch.setattr(command, "run_worker", lambda *given: (DEVICE_LOST, False))
    assert command.supervise([], journal.file, in_an_hour()) == 1


def test_the_state_of_the_sources_is_part_of_a_run():
    about = worker.identity(CPU, True)
    assert about["state of the source files"] == worker.sources() and len(worker.sources()) == 12
    assert about["torch"] == torch.__version__ and json.dumps(about)


# ---- what is compared ----


@pytest.mark.parametrize("grid, text, reference", [((9, 14), 5, 0), ((20, 3), 0, 4), ((1, 8), 2, 1)], ids=str)
@pytest.mark.parametrize("spec", [ClearSpec(4), ClearSpec(1), ClearSpec(6, 3)], ids=str)
def test_keys_per_query_are_those_of_the_oracles_mask(grid, text, reference, spec):
    layout = SequenceLayout(text, grid, reference)
    mask = image_rows_mask(range(grid[0]), layout, spec, CPU)
    assert keys_per_query(layout, spec) == pytest.approx(mask.sum(dim=1).double().mean().item())


def test_tensors_lie_in_memory_as_in_the_model():
    q, k, v = model_inputs(SequenceLayout(3, (2, 2)), Bench(FULL, CPU, {}, {}, print))
    assert q.shape == k.shape == v.shape == (1, 24, 7, 128)
    assert v.stride(2) == 21504 and q.stride() == k.stride() == (7 * 3072, 128, 3072, 1)


def test_a_wrong_contender_and_one_that_breaks_are_not_timed(bench):
    layout, spec = SequenceLayout(4, (8, 7)), ClearSpec(3)

    def gather(radius):
        return lambda q, k, v: clear_attention(q, k, v, grid=layout.grid, spec=ClearSpec(radius), backend="gather")

    found = compare(
        [
            Contender("right", gather(3), 10, 100, spec),
            Contender("wrong", gather(5), 10, 100, spec),
            Contender("other", gather(5), 10, 100),
            Contender("broken", lambda q, k, v: 1 / 0, 10, 100, spec),
            Contender("gone", lambda q, k, v: 1 / 0, 10, 100, spec, "it is not installed"),
        ],
        layout,
        replace(bench, results={"peak": {"matmul_tflops": 0.5}}),
    )
    assert list(found["runs"]) == ["right", "other"]
    assert found["runs"]["right"]["share_of_peak"] >= 0 and found["runs"]["other"]["error"] is None
    assert "off by" in found["skipped"]["wrong"] and "ZeroDivisionError" in found["skipped"]["broken"]
    assert found["skipped"]["gone"] == "it is not installed" and "right" in found["line"]


def test_a_backend_that_is_off_is_called_wrong(bench, monkeypatch):
    real = exactness.attend
    monkeypatch.setattr(exactness, "attend", lambda case, q, k, v, name: real(case, q, k, v, name) + (name != "dense"))
    assert not exactness.measure("gather", torch.float16, bench)["exact"]
    assert exactness.measure("dense", torch.float16, bench)["exact"]


def test_query_tiles_are_exchanged_and_put_back(bench):
    before = chunks.query_tile(CPU, 4)
    found = chunks.tiles(ClearSpec(4), bench)
    assert len(found["runs"]) == len(SMALL.query_tiles) and not found["skipped"]
    from clear_core.attention.tiling import classes, gathered

    with chunks.tiles_of((4, 4)):
        assert gathered.query_tile(CPU, 4) == classes.query_tile(CPU, 4) == (4, 4)
    assert gathered.query_tile is classes.query_tile is chunks.query_tile and chunks.query_tile(CPU, 4) == before


@pytest.mark.parametrize(
    "name, kind",
    [
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("void at::native::indexSelectSmallIndex<c10::BFloat16>", "copy"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    assert kernels.kind_of(name) == kind


def test_a_first_call_that_fails_is_named(bench, monkeypatch):
    monkeypatch.setattr(Bench, "refusal", lambda self, name: None)
    found = first_use.measure("no such backend", bench)
    assert "backend is 'no such backend'" in found["skipped"]["warm"]


def test_the_cold_first_call_has_caches_of_its_own_and_the_warm_one_the_same(bench, monkeypatch):
    caches = []

    def run_process(arguments, env, **options):
        caches.append([env[name] for name in first_use.CACHE_FOLDERS])
        return subprocess.CompletedProcess(arguments, 0, 'remark\n{"torch": 2.0, "first": 9.0, "second": 0.01}\n', "")

    monkeypatch.setattr(subprocess, "run", run_process)
    monkeypatch.setattr(Bench, "refusal", lambda self, name: None)
    found = first_use.measure("flex", replace(bench, scale=replace(SMALL, empty_caches=True)))
    assert list(found["runs"]) == ["cold", "warm"] and found["runs"]["warm"]["first"] == 9
    assert caches[0] == caches[1] and len(set(caches[0])) == len(caches[0])
    assert found["line"] == "cold 9.0 s (then 10 ms), warm 9.0 s (then 10 ms)"


@pytest.mark.parametrize("module, reason", [(steps, "step"), (peaks, "gather")])
def test_backends_that_break_do_not_end_steps_and_memory(bench, monkeypatch, module, reason):
    without = replace(bench, excluded={"step": "broken", "gather": "broken", "flex": "broken", "triton": "broken"})
    [one, *_] = module.measurements(SMALL)
    assert one.run(without)["skipped"][reason] == "broken"
