"""What is told before the first result of a kernel, the times that are kept for it, and the compiled kernel on disk."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.attention import choose, disk_cache, first_use
from clear_core.attention.backends.base import KernelError
from clear_core.attention.backends.dense import DENSE
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.backends.triton import block_shapes
from clear_core.attention.backends.triton.launch import BlockShape

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TESTING = 'Compiling and testing the attention kernel "flex" for the CPU'


class Clock:
    """A clock that is moved by hand, as the module ``time``."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, empty in {"_logged": set(), "_dropped": {}, "_verdicts": {}}.items():
        monkeypatch.setattr(choose, name, empty)
    monkeypatch.setattr(first_use, "_failed", set())
    monkeypatch.setattr(flex, "_untold", [])
    monkeypatch.setattr(first_use, "user_cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(first_use, "time", clock)
    return clock


@pytest.fixture
def told():
    told = []
    first_use.listen(told.append)
    yield told
    first_use.listen(None)


def flex_as(run, monkeypatch):
    """The backend "flex" without its kernel; its time is what ``run`` makes of it."""
    monkeypatch.setattr(flex.FlexBackend, "run", lambda backend, call: run(call))


def run(backend="flex", head_dim=16):
    q, k, v = torch.randn(3, 1, 2, 5 + 9 * 11, head_dim, generator=torch.Generator().manual_seed(0)).unbind()
    return clear_attention(q, k, v, grid=(9, 11), spec=ClearSpec(4), backend=backend)


def new_start():
    choose._verdicts.clear()


# ---- what is told ----


def test_the_self_test_tells_what_it_does_and_how_long_it_took_last_time(told, clock, monkeypatch):
    def takes(seconds):
        def run(call):
            clock.now += seconds
            return DENSE.run(call)

        flex_as(run, monkeypatch)

    # The self-test has two cases.
    takes(12.1)
    run()
    assert told == [f"{TESTING} (for the first time here) ...", f"{TESTING} took 24 s."]
    run()
    assert len(told) == 2, "the second call of a process waits for nothing"
    new_start()
    takes(1.57)
    run()
    assert told[2:] == [f"{TESTING} (took 24 s last time) ...", f"{TESTING} took 3.1 s."]
    new_start()
    run(head_dim=64)
    assert told[4] == f"{TESTING} (for the first time here) ...", "another head size is another kernel"


def test_the_log_has_the_same_lines(caplog, monkeypatch):
    flex_as(DENSE.run, monkeypatch)
    with caplog.at_level(logging.INFO):
        run()
    assert [record.message.startswith(f"CLEAR attention: {TESTING}") for record in caplog.records] == [True, True]


def test_nothing_is_told_where_nothing_is_compiled(told, folder):
    for backend in ("auto", "gather", "dense"):
        run(backend)
    assert told == [] and list(folder.iterdir()) == []


def test_devices_whose_attention_is_tested_are_told_of_too(told):
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        # There is none here, so it fails; but it was begun.
        choose.device_fault(torch.device("mps"), torch.float32, 16)
    assert told[0] == 'Testing the attention "gather" for mps (for the first time here) ...'


def test_a_failure_is_told_once_also_if_it_is_tried_again(told, clock, folder, monkeypatch):
    def no_memory(call):
        clock.now += 2
        raise KernelError("flex", RuntimeError("CUDA error: out of memory"))

    flex_as(no_memory, monkeypatch)
    for _ in range(3):
        with pytest.raises(ValueError, match="out of memory"):
            run()
    assert told == [f"{TESTING} (for the first time here) ...", f"{TESTING} failed after 2.0 s."]
    assert list(folder.iterdir()) == [], "a failure has no time to keep"


def test_a_listener_that_fails_costs_no_picture(monkeypatch):
    def broken(sentence):
        raise OSError("the page is gone")

    flex_as(DENSE.run, monkeypatch)
    first_use.listen(broken)
    try:
        torch.testing.assert_close(run(), run("dense"))
    finally:
        first_use.listen(None)


def test_threads_tell_of_their_own_work(told):
    with first_use.first_use("Outside", CPU):
        inside = []
        thread = threading.Thread(target=lambda: inside.append(first_use.is_running()))
        thread.start()
        thread.join()
        assert first_use.is_running() and inside == [False]
    assert not first_use.is_running()


def test_timing_the_block_shapes_is_told(told, folder, monkeypatch):
    shapes = BlockShape(128, 64, 8, 3), BlockShape(64, 64, 4, 2)
    monkeypatch.setitem(sys.modules, "triton", type(sys)("triton"))
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.6", raising=False)
    monkeypatch.setattr(block_shapes, "user_cache_folder", lambda: folder)
    monkeypatch.setattr(block_shapes, "candidate_shapes", lambda *case: shapes)
    monkeypatch.setattr(block_shapes, "interpreted", lambda: False)
    monkeypatch.setattr(block_shapes, "_seconds", lambda device, dtype, head_dim, shape: shape.stages)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    for _ in range(2):
        block_shapes._shapes_for.cache_clear()
        assert block_shapes._shapes_for(CUDA, torch.bfloat16, 128) == shapes[::-1]
    block_shapes._shapes_for.cache_clear()
    timing = 'Timing block shapes of the attention kernel "triton" for NVIDIA H100'
    assert len(told) == 2 and told[0] == f"{timing} (for the first time here) ..."


# ---- what is kept ----


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "[" * 100_000, '{"%s": "soon"}', '{"%s": NaN}', '{"%s": -1}', '{"%s": true}']
)
def test_a_damaged_file_is_no_time(damage, told, clock, folder, monkeypatch):
    flex_as(DENSE.run, monkeypatch)
    run()
    (file,) = folder.iterdir()
    (key,) = json.loads(file.read_text())
    assert all(part in key for part in ("flex", torch.__version__, "torch.float32", "head size 16", "the CPU"))
    file.write_text(damage.replace("%s", key.replace('"', '\\"')))
    new_start()
    run()
    assert "for the first time here" in told[2]
    assert json.loads(file.read_text())[key] == 0


def test_a_file_stays_small_and_the_newest_entries_stay(tmp_path):
    file = tmp_path / "new" / "kept.json"
    for number in range(disk_cache.MOST_ENTRIES + 3):
        disk_cache.keep(file, f"card {number}", number)
    disk_cache.keep(file, "card 3", "again")
    found = disk_cache.kept(file)
    assert len(found) == disk_cache.MOST_ENTRIES
    assert next(iter(found)) == "card 4" and list(found.items())[-1] == ("card 3", "again")
    file.write_text(json.dumps({"card": "x" * 2**20}))
    assert disk_cache.kept(file) == {}


def test_threads_that_keep_at_once_lose_nothing(tmp_path):
    file = tmp_path / "kept.json"
    threads = [threading.Thread(target=disk_cache.keep, args=(file, str(i), i)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(disk_cache.kept(file).values()) == list(range(20))
    assert [one.name for one in tmp_path.iterdir()] == ["kept.json"]


# ---- torch's own compiler ----


def test_a_kernel_that_another_node_dropped_is_told_of_again(told):
    """``torch._dynamo.reset()``: the verdict of the self-test stays, the kernel is compiled anew."""
    run()
    run()
    assert len(told) == 2
    torch._dynamo.reset()
    run()
    assert len(told) == 4 and told[2].startswith('Compiling the attention kernel "flex" for the CPU (')
    run()
    assert len(told) == 4


def test_a_kernel_of_which_torch_says_nothing_is_told_of_once(told, monkeypatch):
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    monkeypatch.setattr(flex, "_compiled", lambda threads: lambda q, *rest: torch.zeros_like(q))
    torch._dynamo.reset()
    for _ in range(3):
        run()
    assert len(told) == 2


@pytest.mark.slow
def test_the_next_start_finds_the_compiled_kernel_on_disk(tmp_path):
    """Two processes: the second compiles nothing, and says how long the first took."""
    code = (
        "import json, torch\n"
        "from torch._dynamo.utils import counters\n"
        "from clear_core import ClearSpec, clear_attention\n"
        "from clear_core.attention.first_use import listen\n"
        "told = []\n"
        "listen(told.append)\n"
        "q, k, v = torch.randn(3, 1, 2, 9 + 24 * 32, 64, generator=torch.Generator().manual_seed(0)).unbind()\n"
        "with torch.inference_mode():\n"
        "    clear_attention(q, k, v, grid=(24, 32), spec=ClearSpec(3), backend='flex')\n"
        "found = [counters['inductor'][f'fxgraph_cache_{what}'] for what in ('hit', 'miss', 'bypass')]\n"
        "print(json.dumps({'found': found, 'told': told}))\n"
    )
    folders = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "XDG_CACHE_HOME": "own", "LOCALAPPDATA": "own", "HOME": "home"}
    environment = {**os.environ, **{name: str(tmp_path / folder) for name, folder in folders.items()}}
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = runs
    # One graph serves the self-test and all calls.
    assert first["found"] == [0, 1, 0] and second["found"] == [1, 0, 0]
    assert first["told"][0] == f"{TESTING} (for the first time here) ..."
    took = first["told"][1].removeprefix(f"{TESTING} took ").removesuffix(".")
    assert second["told"][0] == f"{TESTING} (took {took} last time) ..."
