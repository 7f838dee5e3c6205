"""The pack comes and goes: requirements, a folder of another name, one use, and no trace when the folder is removed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

from tests.host.support_comfy import boot, flux
from tests.host.support_comfy.boot import PROJECT
from tests.host.support_comfy.server import Server, output_files

# Nobody's folder need be called as the registry's installer calls it. (A space in it the host itself cannot serve.)
FOLDER = "my_windows_for_flux"
CHECKOUT = boot.find_comfyui()[0]

WORKFLOW = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "tiny_flux.safetensors", "weight_dtype": "default"}},
    "2": {"class_type": "CLEARAttention", "inputs": {"model": ["1", 0], "radius": 4}},
    "3": {"class_type": "ClearTestConditioning", "inputs": {"seed": 1, "tokens": 24, "guidance": 3.5}},
    "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["2", 0],
            "positive": ["3", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 7,
            "steps": 1,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "latents/clear"}},
}

# What only a checkout for development has.
WORKSHOP = shutil.ignore_patterns(".git", ".venv", ".pytest_cache", "__pycache__", "out", "build", "*.egg-info")


def test_the_requirements_change_no_installed_package():
    """pip's own plan for this host's environment: whatever is there stays at its version."""
    plan = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--quiet",
            "--report",
            "-",
            "--disable-pip-version-check",
            "-r",
            str(PROJECT / "requirements.txt"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {item["metadata"]["name"].lower().replace("_", "-") for item in json.loads(plan.stdout)["install"]}
    installed = {found.metadata["Name"].lower().replace("_", "-") for found in distributions()}
    assert wanted & installed == set()
    assert not any(name.startswith(("torch", "nvidia", "triton")) for name in wanted)


def files_in(base: Path, but: Path) -> set[str]:
    """Everything in a server's folder except one folder, Python's own caches and the host's diaries."""
    return {
        str(path.relative_to(base))
        for path in base.rglob("*")
        if but not in (path, *path.parents)
        and "__pycache__" not in path.parts
        and not path.name.endswith((".log", ".db", ".db-journal", ".db-wal", ".db-shm", ".lock"))
    }


def status_of(server: Server, path: str) -> int:
    try:
        server.get(path)
    except HTTPError as error:
        return error.code
    except json.JSONDecodeError:
        pass  # a page, and not data
    return 200


def test_a_copy_under_another_name_is_used_and_leaves_nothing(host, tmp_path):
    base = boot.make_base(tmp_path)
    shutil.rmtree(base / "models" / "clear")
    flux.write_flux_file(base / "models" / "diffusion_models" / "tiny_flux.safetensors")
    folder = base / "custom_nodes" / FOLDER
    shutil.copytree(PROJECT, folder, ignore=WORKSHOP)
    script = f"/extensions/{quote(FOLDER)}/js/get_weights.js"

    with Server(CHECKOUT, Path(sys.executable), base, log_level="WARNING") as server:
        assert server.boot_log.lower().count("clear") == 0, server.boot_log
        before = files_in(base, folder)
        assert {"CLEARAttention", "CLEARUpscale"} <= server.get("/object_info").keys()
        scripts = [path for path in server.get("/extensions") if "get_weights" in path]
        assert len(scripts) == 1, "each script is served once"
        assert status_of(server, script) == 200
        assert status_of(server, "/clear_flux/pack") == 200
        (latent,) = output_files(server.run(WORKFLOW), base)
        latent.unlink()
        latent.parent.rmdir()
        assert files_in(base, folder) - before <= {"output"}

    shutil.rmtree(folder)
    with Server(CHECKOUT, Path(sys.executable), base, log_level="WARNING") as server:
        assert [name for name in server.get("/object_info") if name.startswith("CLEAR")] == []
        assert [path for path in server.get("/extensions") if "windows" in path or "clear" in path.lower()] == []
        assert {
            status_of(server, path) for path in (script, "/clear_flux/pack", "/clear_flux/weights", "/clear_flux/cost")
        } == {404}
        assert server.boot_log.lower().count("clear") == 0, server.boot_log
        assert "clear" not in json.dumps(server.get("/settings")).lower()
    assert [path for path in files_in(base, folder) if "clear" in path.lower() or FOLDER in path] == []


# As saved by the pack's first version with graphs: fewer widgets, and optional inputs that came later are missing.
OLD_NODE = {"model": ["1", 0], "weights_name": "none", "strength": 1.0, "radius": 8}


@pytest.mark.parametrize("kept", range(1, len(OLD_NODE) + 1))
def test_an_old_api_graph_with_fewer_inputs_runs(kept, host, pack, tiny_flux):
    """An input that a graph leaves out takes the default that keeps the graph's meaning."""
    from tests.host.support_comfy.sampling import run_node

    model = tiny_flux()
    given = dict(list(OLD_NODE.items())[:kept]) | {"model": model}
    spelled = {
        "weights_name": "none",
        "strength": 1.0,
        "radius": given.get("radius", 0),
        "ntk_factor": 0.0,
        "proportional_attention": "auto",
        "start_percent": 0.0,
        "end_percent": 1.0,
        "dense_blocks": "",
        "min_tokens": 0,
        "controlnet": "auto",
        "backend": "auto",
        "down_factor": 0,
        "ntk": "constant",
    }
    (short,) = run_node(host.stock("CLEARAttention"), **given)
    (full,) = run_node(host.stock("CLEARAttention"), model=model, **spelled)
    assert settings_of(short) == settings_of(full)


def settings_of(model: object) -> object:
    """The settings that a patched model carries."""
    from comfy.patcher_extension import WrappersMP

    (patch,) = model.get_wrappers(WrappersMP.APPLY_MODEL, "clear_flux")
    return patch.settings
