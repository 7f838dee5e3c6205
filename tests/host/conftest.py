"""Fixtures of the host tests: a real ComfyUI booted once in this process, the pack loaded by the host's own loader.

They run in the host's interpreter; ``python3 dev.py test`` starts one process for every ComfyUI it knows of.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tests
from tests.host.support_comfy import (
    boot,
    control_cases,
    controlnets,
    devices,
    flux,
    golden,
    pictures,
    sampling,
    server,
    upscaling,
)

# Python looks for a folder without __init__.py anew whenever sys.path changes, and booting changes it; ComfyUI and some
# libraries have a package `tests` too.
tests.__path__ = list(tests.__path__)

CHECKOUTS = boot.find_comfyui()

if not CHECKOUTS:
    collect_ignore_glob = ["*"]


def pytest_report_header() -> str:
    if not CHECKOUTS:
        return "host tests are left out: COMFYUI_PATH names no ComfyUI and there is none at ~/ComfyUI"
    return f"host: ComfyUI at {CHECKOUTS[0]}"


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> boot.Host:
    """ComfyUI in this process (the first checkout found), on the CPU, in an empty folder with our pack installed."""
    base = boot.make_base(tmp_path_factory.mktemp("comfyui"))
    booted = boot.boot(CHECKOUTS[0], base)
    install_models(base)
    return booted


def install_models(base: Path) -> None:
    """The golden students, the tiny FLUX as a file, and weights that were "distilled" for it."""
    golden.install_students(base / "models" / "clear")
    flux.write_flux_file(base / "models" / "diffusion_models" / "tiny_flux.safetensors")
    flux.write_student_file(base / "models" / "clear" / "tiny" / "clear_local_4_down_2.safetensors", down_factor=2)


@pytest.fixture(scope="session")
def loaded_pack(host: boot.Host) -> boot.LoadedPack:
    """The pack, loaded once, and what loading it did to the process."""
    return host.load_pack(boot.install_pack(host.base))


@pytest.fixture(scope="session")
def pack(loaded_pack: boot.LoadedPack, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The pack's module as the host knows it; ``pack.clear_core`` is the copy that its nodes use."""
    kept = tmp_path_factory.mktemp("cache")
    assert loaded_pack.accepted, f"the host did not take the pack: {loaded_pack.logged}"
    core = boot.core_of(loaded_pack.module)
    # What these tests compile stays out of the user's own folder.
    importlib.import_module(f"{core.__name__}.attention.first_use").user_cache_folder = lambda: kept
    return loaded_pack.module


@pytest.fixture(scope="session")
def server_base(host: boot.Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`running_server`: the same models as in this process, and the pack."""
    base = boot.make_base(tmp_path_factory.mktemp("server"))
    install_models(base)
    boot.install_pack(base)
    return base


@pytest.fixture(scope="session")
def running_server(server_base: Path) -> Iterator[server.Server]:
    """The same ComfyUI as a server of its own with the pack installed; its log holds complaints only."""
    with server.Server(CHECKOUTS[0], Path(sys.executable), server_base, log_level="WARNING") as running:
        yield running


@pytest.fixture(scope="session")
def clear_node(host: boot.Host, pack: ModuleType) -> Callable[..., Any]:
    """``clear_node(model, **widgets)`` runs CLEARAttention and returns the patched model.

    Without weights there is no overview, unless a test names a ``down_factor``: the oracles know plain windows.
    """

    def apply(model: Any, **widgets: Any) -> Any:
        if widgets.get("weights_name", "none") == "none":
            widgets = {"down_factor": 1, **widgets}
        return sampling.run_node(host.stock("CLEARAttention"), model=model, **widgets)[0]

    return apply


@pytest.fixture
def tiny_flux(host: boot.Host) -> Callable[..., Any]:
    """``tiny_flux(dtype=float32, seed=0, **config)`` gives a fresh ModelPatcher around a small random FLUX."""
    return flux.build_flux


@pytest.fixture
def golden_flux(host: boot.Host) -> Any:
    """A fresh ModelPatcher with the weights of the golden base."""
    return flux.golden_flux()


@pytest.fixture(scope="session")
def run_node() -> Callable[..., tuple[Any, ...]]:
    """``run_node(node_class, **inputs)`` runs a node as the host's executor does and returns its outputs."""
    return sampling.run_node


@pytest.fixture(scope="session")
def predict() -> Callable[..., Any]:
    """``predict(patcher, x, sigma, conditioning)`` is the velocity of one sampler call."""
    return sampling.predict


@pytest.fixture
def run(host: boot.Host) -> Callable[..., torch.Tensor]:
    """``run(model, positive, latent, ...)`` is the latent that the stock KSampler makes of it."""

    def sample(
        model: Any,
        positive: list,
        latent: torch.Tensor,
        negative: list | None = None,
        steps: int = 3,
        cfg: float = 1.0,
        denoise: float = 1.0,
        scheduler: str = "simple",
        **extra: Any,
    ) -> torch.Tensor:
        with torch.inference_mode():
            (out,) = sampling.run_node(
                host.stock("KSampler"),
                model=model,
                seed=7,
                steps=steps,
                cfg=cfg,
                sampler_name="euler",
                scheduler=scheduler,
                positive=positive,
                negative=positive if negative is None else negative,
                latent_image={"samples": latent, **extra},
                denoise=denoise,
            )
        return out["samples"]

    return sample


@pytest.fixture(scope="session")
def host_part(pack: ModuleType) -> Callable[[str], Any]:
    """``host_part(name)`` is a module of nodes/host."""
    return lambda name: importlib.import_module(f"{pack.__name__}.nodes.host.{name}")


@pytest.fixture(scope="session")
def core_part(pack: ModuleType) -> Callable[[str], Any]:
    """``core_part(name)`` is a module of clear_core as the pack has it."""
    return lambda name: importlib.import_module(f"{pack.__name__}.clear_core.{name}")


@pytest.fixture(scope="session")
def in_tiles(host_part: Callable[[str], Any]) -> Callable[..., Any]:
    """``in_tiles(model, grid, tile, overlap)`` is the model that runs a frame in tiles; sizes in tokens."""

    def install(model: Any, grid: tuple[int, int], tile: tuple[int, int], overlap: int = 2, on_tile: Any = None) -> Any:
        module = host_part("upscale.tiled_model")
        layout = module.TileLayout(grid, tile, overlap)
        return module.TiledModel(layout, on_tile or (lambda done, tiles: None)).install(model)

    return install


@pytest.fixture(scope="session")
def control_files(host: boot.Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of small FLUX ControlNets by their layout."""
    folder = tmp_path_factory.mktemp("controlnet")
    return {
        "xlabs": controlnets.write_xlabs_file(folder / "xlabs.safetensors", seed=5),
        "union": controlnets.write_union_file(folder / "union.safetensors", seed=6),
        "inpaint": controlnets.write_inpaint_file(folder / "inpaint.safetensors", seed=7),
    }


@pytest.fixture
def load(control_files: dict[str, Path]) -> Callable[[str], Any]:
    """``load(layout)`` is a ControlNet as the stock loader gives it, with its Union type set."""
    import comfy.controlnet

    def load_file(layout: str) -> Any:
        control = comfy.controlnet.load_controlnet(str(control_files[layout]))
        if layout == "union":
            control.set_extra_arg("control_type", [1])
        return control

    return load_file


@pytest.fixture
def applied(host: boot.Host) -> Callable[..., Any]:
    """``applied(control, *conds)`` is what the stock node ControlNetApplyAdvanced makes of each conditioning."""
    from nodes import ControlNetApplyAdvanced

    def apply(
        control: Any, *conds: list, strength: float = 0.8, start: float = 0.0, end: float = 1.0, seed: int = 3
    ) -> Any:
        image = torch.rand(1, 96, 120, 3, generator=torch.Generator().manual_seed(seed))
        positive, negative = ControlNetApplyAdvanced().apply_controlnet(
            conds[0],
            conds[-1],
            control,
            image,
            strength,
            start,
            end,
            vae=control_cases.PlainVAE() if control.latent_format else None,
        )
        return (positive, negative) if len(conds) > 1 else positive

    return apply


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=["2-devices", "3-devices"])
def count(request, host, monkeypatch) -> Iterator[int]:
    """How many devices the host finds; the test is skipped if it has no MultiGPU CFG Split."""
    devices.pretend_devices(host, monkeypatch, request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # A pool of threads for each device would wait for its turn on the same cores.
    yield request.param
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vae(host: boot.Host, pack: ModuleType) -> Any:
    """FLUX's small VAE with random weights."""
    pictures.write_vae_files(host.base / "models" / "vae_approx")
    (loaded,) = sampling.run_node(host.stock("VAELoader"), vae_name=pictures.VAE_NAME)
    return loaded


@pytest.fixture
def upscale(host: boot.Host, vae: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor, str]]:
    """``upscale(image, model, **inputs)`` is what CLEARUpscale puts out: picture, samples of the latent, info."""

    def run(image: torch.Tensor, model: Any, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, str]:
        inputs = {"positive": upscaling.prompt(), "vae": vae, "steps": 3, **inputs}
        with torch.inference_mode():
            out, latent, info = sampling.run_node(host.stock("CLEARUpscale"), image=image, model=model, **inputs)
        return out, latent["samples"], info

    return run


@pytest.fixture
def clear_folder(host, pack) -> Iterator[Path]:
    """models/clear, and afterwards only what was there before."""
    folder = host.base / "models" / "clear"
    before = set(folder.rglob("*"))
    yield folder
    for path in set(folder.rglob("*")) - before:
        path.unlink()
