"""Fetching: the real huggingface_hub client, in a process of its own, against a local stand-in for the hub."""

from __future__ import annotations

import os
import time

import pytest

from tests.support.hub import COMMIT, NAME
from tests.support.hub_client import BIG, BIG_SHAPE, BLOCK, SMALL, left, refused

pytest.importorskip("huggingface_hub")


def test_success_with_progress_and_no_second_time(folder, hub, client):
    hub.serve(BIG)
    answer = client.fetch(folder, BIG_SHAPE)
    assert answer["path"] == str(folder / NAME) and (folder / NAME).read_bytes() == BIG
    assert left(folder) == {NAME: len(BIG)} and os.listdir(folder) == [NAME]
    assert answer["seen"] == [[BLOCK, len(BIG)], [len(BIG), len(BIG)]]
    # The fetched revision is the one that the hub named.
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
    while left(folder).get("part") != BLOCK or not list(folder.rglob("*.record")):
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
    """Older clients then append the whole file to the part; newer clients start again."""
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
