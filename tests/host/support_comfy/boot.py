"""Boots a real ComfyUI inside the test process, on the CPU and in a folder of its own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT = Path(__file__).resolve().parents[3]

PACK_FOLDER = "clear-flux"
"""The pack's folder under custom_nodes, named as the registry's installer names it."""

# Folders that users have in a ComfyUI and that the host expects.
_FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "temp",
    "user",
    "models/clear/tiny",
    "models/diffusion_models",
    "models/text_encoders",
    "models/vae",
    "models/loras",
)

# Stock nodes beyond nodes.py that the tests put in their graphs.
_STOCK_EXTRAS = ("nodes_custom_sampler", "nodes_model_advanced", "nodes_model_merging", "nodes_flux", "nodes_sd3")


def find_comfyui() -> list[Path]:
    """Checkouts to test on: those named by COMFYUI_PATH (os.pathsep between them), else ~/ComfyUI if there is one."""
    named = os.environ.get("COMFYUI_PATH", "")
    if named:
        return [Path(part).expanduser().resolve() for part in named.split(os.pathsep) if part]
    home = Path.home() / "ComfyUI"
    return [home.resolve()] if (home / "main.py").is_file() else []


def make_base(base: Path) -> Path:
    """Lays out ``base`` as a --base-directory with nothing installed."""
    for folder in _FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    return base


def install_pack(base: Path, folder: str = PACK_FOLDER) -> Path:
    """Puts the pack into ``base``'s custom_nodes, by a link where the system lets us, and returns its folder."""
    target = base / "custom_nodes" / folder
    try:
        target.symlink_to(PROJECT, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(PROJECT, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "out"))
    return target


def global_torch_settings() -> dict[str, Any]:
    """Every process-wide setting of torch that a pack could change, and the random state."""
    import torch
    import torch._dynamo.config
    import torch._inductor.config

    cuda = torch.backends.cuda
    settings = {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "grad enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "cuda matmul tf32": cuda.matmul.allow_tf32,
        "cuda matmul fp16 reduction": cuda.matmul.allow_fp16_reduced_precision_reduction,
        "cuda matmul bf16 reduction": cuda.matmul.allow_bf16_reduced_precision_reduction,
        "flash sdp": cuda.flash_sdp_enabled(),
        "memory efficient sdp": cuda.mem_efficient_sdp_enabled(),
        "math sdp": cuda.math_sdp_enabled(),
        "cudnn sdp": cuda.cudnn_sdp_enabled(),
        "cudnn enabled": torch.backends.cudnn.enabled,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "random state": torch.get_rng_state().tolist(),
    }
    for name, config in (("dynamo", torch._dynamo.config), ("inductor", torch._inductor.config)):
        settings |= {f"{name} {key}": value for key, value in config.get_config_copy().items()}
    return settings


def process_settings() -> dict[str, Any]:
    """:func:`global_torch_settings`, the module search path and the environment."""
    return global_torch_settings() | {"sys.path": list(sys.path), "environment": dict(os.environ)}


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose value changed, with both values."""
    return {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }


class Recorder(logging.Handler):
    """Keeps every log record of the process while it is attached to the root logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __enter__(self) -> Recorder:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self)

    def messages(self, level: int = logging.WARNING) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= level]


@dataclass
class LoadedPack:
    """How loading the pack went.

    Attributes:
        module: The pack's own module, as the host imported it.
        accepted: The host's answer: whether it took the pack.
        logged: Log messages of level warning and above while it loaded.
        warned: Python warnings while it loaded.
        changed: Global torch settings, environment and sys.path entries that were different afterwards.
    """

    module: ModuleType
    accepted: bool
    logged: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass
class Host:
    """A booted ComfyUI.

    Attributes:
        version: "0.33.0".
        base: Its --base-directory; models go to ``base / "models"``.
        nodes, folder_paths: The host's own modules of that name.
    """

    version: str
    base: Path
    nodes: ModuleType
    folder_paths: ModuleType

    def stock(self, name: str) -> type:
        """A node class by the name it has in workflows, stock or ours."""
        return self.nodes.NODE_CLASS_MAPPINGS[name]

    def load_file(self, path: Path) -> None:
        """Loads a custom node of one file."""
        assert asyncio.run(self.nodes.load_custom_node(str(path), module_parent="custom_nodes"))

    def load_pack(self, folder: Path) -> LoadedPack:
        """Loads a pack through the host's own loader and notes what it did to the process on the way."""
        before = process_settings()
        with Recorder() as log, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            accepted = asyncio.run(self.nodes.load_custom_node(str(folder), module_parent="custom_nodes"))
        module = sys.modules[str(folder).replace(".", "_x_")]
        return LoadedPack(
            module,
            accepted,
            log.messages(),
            [str(item.message) for item in caught],
            differences(before, process_settings()),
        )


def boot(checkout: Path, base: Path) -> Host:
    """Starts the ComfyUI at ``checkout`` in this process, as its main.py does up to loading custom nodes.

    Args:
        checkout: A ComfyUI checkout whose requirements this interpreter has.
        base: Folder made by :func:`make_base`.
    """
    # Our own `nodes` package must not shadow the host's nodes.py.
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != PROJECT]
    sys.path.insert(0, str(checkout))
    arguments = sys.argv
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments
    import utils.extra_config  # noqa: F401, I001  (before nodes, which puts comfy/ and its utils.py first on the path)
    import comfyui_version
    import folder_paths
    import nodes
    import server

    if Path(nodes.__file__).resolve().parent != checkout:
        raise RuntimeError(f"`nodes` came from {nodes.__file__}; expected the host's own under {checkout}.")
    server.PromptServer(asyncio.new_event_loop())
    for name in _STOCK_EXTRAS:
        asyncio.run(nodes.load_custom_node(str(checkout / "comfy_extras" / f"{name}.py"), module_parent="comfy_extras"))
    return Host(comfyui_version.__version__, base, nodes, folder_paths)


def core_of(pack: ModuleType) -> ModuleType:
    """The pack's own copy of ``clear_core``, as the host imported it: the oracle for what its nodes do."""
    return importlib.import_module(f"{pack.__name__}.clear_core")
