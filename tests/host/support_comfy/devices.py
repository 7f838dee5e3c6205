"""Several devices for a host that has one: the CPU under several names, and the host's own clones on them."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from .sampling import run_node

NODE = "MultiGPU_WorkUnits"


def pretend_devices(host: Any, monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    """From here on the host finds ``count`` devices; skips the test if it is too old to have the node."""
    import comfy.model_management

    if importlib.util.find_spec("comfy.multigpu") is None:
        pytest.skip("this ComfyUI has no MultiGPU CFG Split")
    if NODE not in host.nodes.NODE_CLASS_MAPPINGS:
        host.load_file(Path(host.nodes.__file__).parent / "comfy_extras" / "nodes_multigpu.py")
    devices = [torch.device("cpu"), *(torch.device("cpu", index) for index in range(1, count))]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda **_: list(devices))
    return devices


def loaded_flux(host: Any, file: str = "tiny_flux.safetensors") -> Any:
    """The tiny FLUX as its stock loader gives it: the host can load it again for another device."""
    return run_node(host.stock("UNETLoader"), unet_name=file, weight_dtype="default")[0]


def on_devices(host: Any, model: Any, count: int) -> Any:
    """The model after MultiGPU CFG Split."""
    import comfy.model_management

    # The host keeps a model whose patchers have all gone in its list, and then its node fails at it.
    gc.collect()
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [each for each in loaded if each.model is not None]
    (split,) = run_node(host.stock(NODE), model=model, max_gpus=count)
    assert len(split.get_additional_models_with_key("multigpu")) == count - 1
    return split
