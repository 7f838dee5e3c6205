"""Failed fetches: one sentence with the reason and the way by hand, and no file left behind."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys

import pytest

from tests.support import PROJECT
from tests.support.hub import NAME
from tests.support.hub_client import BIG, BIG_SHAPE, BY_HAND, SMALL, refused

pytest.importorskip("huggingface_hub")


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
        f"wrong size: the hub announced {len(SMALL) + 1000} bytes and sent {len(SMALL)}; the part file was removed",
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
    refused(client.fetch(folder), folder, f"the disk is full: {folder} had no room for 0 MB; the part file was removed")


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
    assert (
        answer["error"].startswith(f"{NAME} was not fetched: Not a directory")
        and BY_HAND.format(hub.endpoint) in answer["error"]
    )


@pytest.mark.parametrize("package", ["huggingface_hub", "filelock"])
def test_without_huggingface_hub_everything_else_works(folder, fresh, package):
    setup = f"sys.modules[{package!r}] = None"
    refused(fresh("http://127.0.0.1:9", setup).fetch(folder), folder, "the package huggingface_hub is not installed")


def test_importing_needs_neither_huggingface_hub_nor_tqdm():
    script = (
        "import sys; sys.modules.update(huggingface_hub=None, tqdm=None, filelock=None);"
        "import clear_core.weights, clear_core.weights.__main__ as m; sys.exit(m.main(['list']))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True).returncode == 0
