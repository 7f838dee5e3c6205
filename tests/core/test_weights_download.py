"""Fetching: the real huggingface_hub client, in a process of its own, against a local stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from clear_core.weights.naming import trained_names
from tests.support.hub import COMMIT, NAME, Hub

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).parents[2]
BY_HAND = f"to do it by hand, download https://huggingface.co/Huage001/CLEAR/resolve/main/{NAME} and save it as "
# What the client hands over at once; less than this is lost when a connection breaks.
BLOCK = 10 * 1024 * 1024


def clear_file(width: int, doubles: int, singles: int) -> bytes:
    generator = torch.Generator().manual_seed(width)
    shapes = {name: (width, width) if name.endswith("weight") else (width,) for name in trained_names(doubles, singles)}
    return save({name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()})


SMALL, SMALL_SHAPE = clear_file(32, 1, 2), (32, 1, 2)
BIG, BIG_SHAPE = clear_file(512, 4, 5), (512, 4, 5)
assert 1.3 * BLOCK < len(BIG) < 2 * BLOCK

# Reads one request per line and answers each with one line.
CLIENT = """
import json, sys
sys.path.insert(0, {root!r})
from clear_core.weights import CATALOGUE, ClearFileError, FetchError, Release, download, fetch
{setup}
for line in sys.stdin:
    shape, folder = json.loads(line)
    CATALOGUE["clear_local_8"] = Release("clear_local_8", 8, 1, "", *shape)
    seen = []
    progress = lambda done, total: seen.append((done, total))
    try:
        answer = {{"path": str(fetch("clear_local_8", folder, progress))}}
    except (ClearFileError, FetchError) as error:
        answer = {{"error": str(error), "kind": type(error).__name__}}
    print(json.dumps({{**answer, "seen": seen}}), flush=True)
"""


class Client:
    """A process with huggingface_hub in it, pointed at an endpoint before it is imported; ``setup`` runs first."""

    def __init__(self, endpoint: str, home: Path, setup: str = "", **environment: str) -> None:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.upper().startswith(("HF_", "HUGGING")) and not key.upper().endswith("_PROXY")
        }
        clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", **environment}
        self.log = open(home.with_suffix(".log"), "w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(root=str(ROOT), setup=setup)],
            env=clean,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def ask(self, folder: Path, shape: tuple[int, int, int]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([shape, str(folder)]) + "\n")
        self.process.stdin.flush()

    def fetch(self, folder: Path, shape: tuple[int, int, int] = SMALL_SHAPE) -> dict:
        """What became of a fetch: ``path`` or ``error`` and ``kind``, and what the progress callback was told."""
        assert self.process.stdout is not None
        self.ask(folder, shape)
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.log.seek(0)
        raise AssertionError(self.log.read())


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Hub]:
    hub = Hub(SMALL)
    yield hub
    hub.close()


@pytest.fixture
def hub(stand_in) -> Hub:
    stand_in.serve(SMALL)
    return stand_in


@pytest.fixture(scope="module")
def client(stand_in, tmp_path_factory) -> Iterator[Client]:
    """One client for all tests that need no environment of their own; importing torch is what takes time."""
    with Client(stand_in.endpoint, tmp_path_factory.mktemp("client") / "home") as client:
        yield client


@pytest.fixture
def fresh(tmp_path_factory) -> Iterator[Callable[..., Client]]:
    """Makes clients for one test."""
    with ExitStack() as stack:
        yield lambda endpoint, setup="", **environment: stack.enter_context(
            Client(endpoint, tmp_path_factory.mktemp("client") / "home", setup, **environment)
        )


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models" / "clear"


def left(folder: Path) -> dict[str, int]:
    """Every file under ``folder`` with its size; part files by their ending alone."""
    return {
        "part" if path.suffix == ".part" else str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(answer: dict, folder: Path, fragment: str) -> None:
    """One sentence with the reason and the way by hand, and nothing left behind."""
    assert answer["kind"] == "FetchError"
    assert answer["error"].startswith(f"{NAME} was not fetched: ") and fragment in answer["error"]
    assert answer["error"].endswith(f"{BY_HAND}{folder / NAME}.") and answer["error"].isprintable()
    assert left(folder) == {} and os.listdir(folder) == []


def test_success_with_progress_and_no_second_time(folder, hub, client):
    hub.serve(BIG)
    answer = client.fetch(folder, BIG_SHAPE)
    assert answer["path"] == str(folder / NAME) and (folder / NAME).read_bytes() == BIG
    assert left(folder) == {NAME: len(BIG)} and os.listdir(folder) == [NAME]
    assert answer["seen"] == [[BLOCK, len(BIG)], [len(BIG), len(BIG)]]
    # The very revision that was asked about is what is fetched.
    assert any(method == "GET" and COMMIT in path for method, path, *_ in hub.requests)

    asked = len(hub.requests)
    assert client.fetch(folder, BIG_SHAPE)["path"] == str(folder / NAME)
    assert len(hub.requests) == asked


def test_a_damaged_file_of_that_name_is_replaced(folder, hub, client):
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(SMALL[:-1])
    client.fetch(folder)
    assert (folder / NAME).read_bytes() == SMALL


def test_a_token_goes_to_the_hub_and_not_to_its_storage(folder, hub, fresh):
    fresh(hub.endpoint, HF_TOKEN="hf_secret").fetch(folder)

    def tokens(folder: str) -> set[str | None]:
        return {token for _, path, _, token in hub.requests if path.startswith(folder)}

    assert tokens("/Huage001/") == {"Bearer hf_secret"} and tokens("/storage/") == {None}


def test_a_cut_connection_is_continued(folder, hub, client):
    hub.serve(BIG)
    hub.cuts = [BLOCK + 5000, None]
    client.fetch(folder, BIG_SHAPE)
    assert (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}
    assert hub.transfers == [None, f"bytes={BLOCK}-"]


def test_a_connection_that_stays_down_keeps_what_has_come_for_the_next_attempt(folder, hub, client, fresh):
    hub.serve(BIG)
    hub.cuts = [BLOCK + 5000] + [0] * 50
    answer = fresh(hub.endpoint, "download.IDLE_ATTEMPTS = 1").fetch(folder, BIG_SHAPE)
    assert "no connection to the hub, or it broke" in answer["error"]
    assert f"10 of {len(BIG) / 1e6:.0f} MB are kept and the next attempt goes on from there" in answer["error"]
    assert left(folder) == {"part": BLOCK} and os.listdir(folder) == [".fetch"]

    hub.cuts = []
    asked = len(hub.transfers)
    client.fetch(folder, BIG_SHAPE)
    assert hub.transfers[asked:] == [f"bytes={BLOCK}-"]
    assert (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}


def test_a_killed_process_leaves_nothing_that_counts_and_is_continued(folder, hub, client, fresh):
    hub.serve(BIG)
    hub.cuts, hub.stalls = [BLOCK + 5000], True
    doomed = fresh(hub.endpoint)
    doomed.ask(folder, BIG_SHAPE)
    deadline = time.monotonic() + 120
    while left(folder).get("part") != BLOCK:
        assert doomed.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    doomed.process.kill()
    doomed.process.wait()
    assert not (folder / NAME).exists() and not list(folder.rglob("*.safetensors"))

    client.fetch(folder, BIG_SHAPE)
    assert hub.transfers == [None, f"bytes={BLOCK}-"]
    assert (folder / NAME).read_bytes() == BIG
    assert left(folder) == {NAME: len(BIG)} and os.listdir(folder) == [NAME]


def test_a_part_of_an_older_revision_is_not_continued(folder, hub, client):
    hub.serve(BIG)
    (folder / ".fetch").mkdir(parents=True)
    (folder / ".fetch" / f"{NAME}.0123456789abcdef.part").write_bytes(bytes(BLOCK))
    client.fetch(folder, BIG_SHAPE)
    assert hub.transfers == [None]
    assert (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}


def test_storage_without_ranges_never_makes_a_wrong_file(folder, hub, client):
    """Older clients append the whole file to the part then, newer ones begin again."""
    hub.serve(BIG)
    hub.cuts, hub.ignores_range = [BLOCK + 5000, None], True
    answer = client.fetch(folder, BIG_SHAPE)
    if "error" in answer:
        refused(answer, folder, "wrong size")
    else:
        assert (folder / NAME).read_bytes() == BIG and left(folder) == {NAME: len(BIG)}


def test_an_interrupt_from_the_progress_callback_goes_through_unchanged(folder, hub, fresh):
    hub.serve(BIG)
    setup = """
class Interrupted(Exception): pass
def stop(done, total): raise Interrupted
def fetch(name, folder, progress):
    try:
        download.fetch(name, folder, stop)
    except Interrupted:
        progress("interrupted", 0)
    return download.fetch(name, folder, progress)
"""
    answer = fresh(hub.endpoint, setup).fetch(folder, BIG_SHAPE)
    assert answer["seen"] == [["interrupted", 0], [len(BIG), len(BIG)]] and hub.transfers == [None, f"bytes={BLOCK}-"]


@pytest.mark.parametrize(
    "status, extra, fragment",
    [
        (401, {}, "refused it (HTTP 401: gated, private or renamed); log in with `hf auth login`"),
        (401, {"X-Error-Code": "RepoNotFound"}, "HTTP 401"),
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}, "HTTP 403: gated"),
        (404, {"X-Error-Code": "EntryNotFound"}, "does not have it (HTTP 404); the repository Huage001/CLEAR may have"),
        (404, {"X-Error-Code": "RepoNotFound"}, "HTTP 404"),
        (500, {}, "answered with HTTP 500; try again later"),
        (503, {}, "answered with HTTP 503; try again later"),
    ],
    ids=["401", "401_unknown", "403_gated", "404_file", "404_repository", "500", "503"],
)
def test_an_answer_of_the_hub_in_words(folder, hub, client, status, extra, fragment):
    hub.status, hub.extra = status, extra
    refused(client.fetch(folder), folder, fragment)


def test_a_log_in_page_is_not_a_hub(folder, hub, client):
    hub.status, hub.body = 200, b"<html>please accept our conditions</html>"
    refused(client.fetch(folder), folder, "did not answer like Hugging Face (a proxy or a log-in page?)")


def test_no_network(folder, fresh):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = fresh(f"http://127.0.0.1:{free.getsockname()[1]}")
        refused(closed.fetch(folder), folder, "there is no connection to the hub")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nothing(folder, hub, fresh, variable):
    refused(fresh(hub.endpoint, **{variable: "1"}).fetch(folder), folder, "HF_HUB_OFFLINE is set")
    assert hub.requests == []


def test_fewer_bytes_than_announced(folder, hub, client):
    hub.announced["X-Linked-Size"] = str(len(SMALL) + 1000)
    refused(
        client.fetch(folder),
        folder,
        f"wrong size: the hub announced {len(SMALL) + 1000} bytes and sent {len(SMALL)}; what had come was removed",
    )


def test_more_bytes_than_announced(folder, hub, client):
    hub.announced["X-Linked-Size"] = str(len(SMALL) - 1000)
    refused(
        client.fetch(folder), folder, f"wrong size: the hub announced {len(SMALL) - 1000} bytes and sent {len(SMALL)}"
    )


def test_other_bytes_than_announced(folder, hub, client):
    hub.content = SMALL[:-1] + bytes([SMALL[-1] ^ 1])
    refused(client.fetch(folder), folder, "its content is not what the hub announced (SHA-256 differs)")


@pytest.mark.parametrize(
    "shape, fragment",
    [
        ((32, 1, 1), "width 32 with 1 double and 2 single blocks; this model has width 32 with 1 double and 1 single"),
        ((64, 1, 2), "width 32 with 1 double and 2 single blocks; this model has width 64"),
    ],
    ids=["depth", "width"],
)
def test_a_whole_file_of_another_model(folder, hub, client, shape, fragment):
    refused(client.fetch(folder, shape), folder, fragment)


def test_a_whole_file_that_is_none(folder, hub, client):
    hub.serve(b"<html>" + bytes(5000))
    refused(client.fetch(folder), folder, "is a web page or an XML text")


def test_a_disk_that_fills_up_while_it_is_written(folder, hub, client):
    """The part file is a link to /dev/full, so that the kernel itself answers "no space left on device"."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    etag = hub.announced["X-Linked-Etag"].strip('"')
    (folder / ".fetch").mkdir(parents=True)
    os.symlink("/dev/full", folder / ".fetch" / f"{NAME}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part")
    refused(client.fetch(folder), folder, f"the disk is full: {folder} had no room for 0 MB; what had come was removed")


def test_a_disk_with_too_little_room_is_said_before_anything_is_fetched(folder, hub, fresh):
    hub.serve(BIG)
    setup = "download.shutil.disk_usage = lambda path: download.shutil._ntuple_diskusage(10, 7, 3_000_000)"
    refused(
        fresh(hub.endpoint, setup).fetch(folder, BIG_SHAPE),
        folder,
        f"the disk is full: {len(BIG) / 1e6:.0f} MB more are needed in {folder} and 3 MB are free",
    )
    assert hub.transfers == []


def test_two_at_a_time(folder, hub, client):
    filelock = pytest.importorskip("filelock")
    (folder / ".fetch").mkdir(parents=True)
    with filelock.FileLock(folder / ".fetch" / f"{NAME}.lock"):
        answer = client.fetch(folder)
    assert "it is already being fetched; wait for that to end" in answer["error"] and hub.requests == []
    assert client.fetch(folder)["path"] == str(folder / NAME)


def test_a_folder_that_cannot_be_made(tmp_path, hub, client):
    (tmp_path / "file").write_text("in the way")
    answer = client.fetch(tmp_path / "file" / "clear")
    assert answer["error"].startswith(f"{NAME} was not fetched: Not a directory") and BY_HAND in answer["error"]


@pytest.mark.parametrize("package", ["huggingface_hub", "filelock"])
def test_without_huggingface_hub_everything_else_works(folder, fresh, package):
    setup = f"sys.modules[{package!r}] = None"
    refused(fresh("http://127.0.0.1:9", setup).fetch(folder), folder, "the package huggingface_hub is not installed")


def test_importing_needs_neither_huggingface_hub_nor_tqdm():
    script = (
        "import sys; sys.modules.update(huggingface_hub=None, tqdm=None, filelock=None);"
        "import clear_core.weights, clear_core.weights.__main__ as m; sys.exit(m.main(['list']))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 0
