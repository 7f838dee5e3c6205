"""A long session in a server of its own: memory, threads, hooks, wrappers and results stay as they were.

``CLEAR_SOAK_PROMPTS`` sets another number of prompts, above 30.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.host.support_comfy import controlnets, flux
from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.pictures import write_halves, write_picture, write_upscale_model
from tests.host.support_comfy.server import RefusedPromptError, Server, error_message, output_files
from tests.host.support_comfy.soak_graphs import SIZES, Job
from tests.host.support_comfy.soak_prompts import prompts, reference, unused

PROMPTS = int(os.environ.get("CLEAR_SOAK_PROMPTS", "300"))
WARM = 30
"""Prompts after which nothing may grow: by then every kind of prompt has run once."""

KEPT = {"RunPlan", "Stage"}
"""Of ours, by design: the plans of the last 64 runs."""

OF_THE_HOST = {"tqdm_monitor"}
"""Threads that begin with the first prompt."""

ON_MODELS = ("put_on", "hooks", "own_forwards")
"""What a run may not change on the models that it uses."""

MOST_FAILURES = 5

SEED = 20261126
SUPPORT = Path(__file__).parent / "support_comfy"


@pytest.fixture(scope="module")
def soak_server(server_base: Path) -> Iterator[Server]:
    """A server with every file that the prompts name and the probe; its log holds complaints only."""
    models, custom = server_base / "models", server_base / "custom_nodes"
    flux.write_flux_file(models / "diffusion_models" / "other_flux.safetensors", seed=3)
    write_upscale_model(models / "upscale_models" / "small.safetensors")
    (models / "controlnet").mkdir(exist_ok=True)
    controlnets.write_xlabs_file(models / "controlnet" / "xlabs.safetensors", seed=5)
    trained = PROJECT / "demo" / "tiny_flux"
    for source, folder in (
        (trained / "tiny_flux.safetensors", "diffusion_models"),
        (trained / "windows" / "clear_local_8.safetensors", "clear"),
    ):
        (models / folder / "trained").mkdir(exist_ok=True)
        shutil.copyfile(source, models / folder / "trained" / source.name)
    for size in SIZES:
        width, height = map(int, size.split("x"))
        write_picture(server_base / "input" / f"{size}.png", height, width)
    write_halves(server_base / "input" / "left.png")
    helper = PROJECT / "demo" / "comfyui" / "tiny_flux_text_and_pixels.py"
    (custom / helper.name).symlink_to(helper)  # it finds the demo from its real place
    for name in ("test_only_pixels.py", "probe_node.py"):
        shutil.copyfile(SUPPORT / name, custom / name)
    checkout, python = Path(sys.modules["nodes"].__file__).parent, Path(sys.executable)
    # glibc keeps a heap for every thread, and each of them what others freed; in one heap, memory is what is held.
    one_heap = {"MALLOC_ARENA_MAX": "1"}
    with Server(checkout, python, server_base, "WARNING", environment=one_heap) as running:
        yield running
    for name in (helper.name, "test_only_pixels.py", "probe_node.py"):
        (custom / name).unlink()


def result_of(server: Server, job: Job) -> str:
    """Runs a prompt, checks how it ended, and returns a digest of its results: latents and pixels, bit by bit."""

    def interrupt() -> None:
        if job.ends == "interrupt" and server.get("/clear_test/now")["waiting"]:
            server.tell("/interrupt")

    try:
        entry = server.run(job.graph, pause=0.02, meanwhile=interrupt)
    except RefusedPromptError as refusal:
        assert job.ends == "refused" and all(word in str(refusal) for word in job.words), refusal
        return str(refusal.errors["node_errors"])
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    told = error_message(entry)
    if job.ends == "success":
        assert entry["status"]["status_str"] == "success", told
        files = output_files(entry, server.base)
        assert len(files) == job.files, files
        digest = hashlib.sha256()
        for file in files:
            if file.suffix == ".latent":
                latent = load_file(file)["latent_tensor"]
                assert latent.isfinite().all()
                digest.update(latent.numpy().tobytes())
            else:
                digest.update(Image.open(file).tobytes())
        return digest.hexdigest()
    assert entry["status"]["status_str"] == "error", "it was expected to fail"
    if job.ends == "interrupt":
        assert "execution_interrupted" in kinds and not told, (kinds, told)
        return "interrupted"
    sentence, *more = told.splitlines()
    assert all(word in sentence for word in job.words), told
    assert not more or sentence.startswith("Out of memory"), told  # The host adds a hint of its own to these.
    return told


def free(server: Server) -> None:
    """Makes the server forget its models, cached results and history."""
    server.tell("/history", {"clear": True})
    server.tell("/free", {"unload_models": True, "free_memory": True})
    for _ in range(100):
        time.sleep(0.5)  # Models go first; cached results, at once after them.
        if server.get("/clear_test/now")["loaded"] == 0:
            break
    time.sleep(0.5)


def measured(server: Server) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The reference's result, the state while the server holds its models and results, and the state without them.

    The models are there before the run, and nothing of it may stay on them, where later runs would find it.
    """
    free(server)
    server.get("/clear_test/state")  # Empties caches of functions: what they hold now is another prompt's.
    server.run(unused())
    new = server.get("/clear_test/state")
    result = result_of(server, reference())
    held = server.get("/clear_test/state")
    left = [f"{what}: {new[what]} to {held[what]}" for what in ON_MODELS if held[what] != new[what]]
    assert not left, f"a run leaves on its models {left}"
    free(server)
    return result, held, server.get("/clear_test/state")


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {key: (before.get(key, 0), count) for key, count in after.items() if count > before.get(key, 0)}


def told_state(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in ("kinds", "own")}


def compare(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is left over in ``after``, a line each."""
    left = []
    for what in ("tensors", "tensor_bytes", "modules", "hooks", "own_forwards", "loaded"):
        if after[what] > before[what]:
            left.append(f"{what}: {before[what]} to {after[what]}")
    for what in ("threads", "patches", "progress_hook", "changed", "settings"):
        if after[what] != before[what]:
            left.append(f"{what}: {before[what]} to {after[what]}")
    own = {kind: counts for kind, counts in grown(before["own"], after["own"]).items() if kind not in KEPT}
    if own:
        left.append(f"objects of this pack: {own}")
    for what in ("resident", "objects"):
        if after[what] > 1.02 * before[what]:
            left.append(f"{what}: {before[what]} to {after[what]}, {after[what] / before[what] - 1:.1%} more")
    return [f"{name}: {line}" for line in left]


@pytest.mark.slow
def test_a_long_session_leaves_nothing_behind(soak_server):
    server = soak_server
    threads = server.get("/clear_test/state")["threads"]  # Functions of the host are compared with the first state.
    seen: dict[str, str] = {}
    first = None
    began = time.monotonic()
    states, failures = [], list[str]()
    for number, job in enumerate(islice(prompts(SEED), PROMPTS), start=1):
        if number in (1, WARM, PROMPTS):
            result, held, empty = measured(server)
            states.append((number, held, empty))
            first = first or result
            assert result == first, f"prompt {number}: the reference is not what it was"
            print(f"{number}: {time.monotonic() - began:.0f} s, held {told_state(held)}, empty {told_state(empty)}")
            continue
        try:
            result = result_of(server, job)
            before = seen.setdefault(job.key, result)
            assert result == before or not job.repeats, "another result than before"
        except Exception as error:
            failures.append(f"prompt {number} ({job.kind}): {error}\n{json.dumps(job.graph)}")
            assert len(failures) < MOST_FAILURES, "\n".join(failures)
        print(f"{number} {job.kind} {time.monotonic() - began:.1f} s")
    assert not failures, "\n".join(failures)
    _, (_, held, empty), (_, last_held, last_empty) = states
    left = compare("with models", held, last_held) + compare("without models", empty, last_empty)
    more = sorted(grown(empty["kinds"], last_empty["kinds"]).items(), key=lambda item: item[1][0] - item[1][1])
    assert not left, "\n".join([*left, f"kinds: {more[:20]}"])
    assert last_empty["changed"] == last_empty["unbounded"] == []
    assert set(Counter(last_empty["threads"]) - Counter(threads)) <= OF_THE_HOST
    assert held["hooks"] == held["own_forwards"] == 0
