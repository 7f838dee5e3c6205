"""Loading the pack adds its nodes to the process and changes nothing else."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.host.support_comfy import boot
from tests.host.support_comfy.sampling import conditioning, predict


def test_loading_is_silent(loaded_pack):
    assert loaded_pack.accepted
    assert loaded_pack.logged == []
    assert loaded_pack.warned == []


def test_loading_changes_no_setting_of_the_process(loaded_pack):
    assert loaded_pack.changed == {}


def test_loading_adds_our_nodes_only(host, pack):
    ours = {name for name, node in host.nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(pack.__name__)}
    assert "CLEARAttention" in ours
    assert all(name.startswith("CLEAR") for name in ours)


def test_nothing_of_the_pack_is_importable_by_its_bare_name(host, pack):
    """The project's root is not on sys.path there: an absolute import of ours would fail, or find another pack's."""
    assert "clear_core" not in sys.modules
    assert sys.modules["nodes"] is host.nodes


@pytest.mark.parametrize("backend", ["auto", "dense", pytest.param("flex", marks=pytest.mark.slow)])
def test_sampling_changes_no_global_torch_setting(backend, tiny_flux, clear_node):
    model = clear_node(tiny_flux(), radius=3, backend=backend)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 24, 32, generator=generator)
    text = conditioning(torch.randn(1, 9, 64, generator=generator), torch.randn(1, 32, generator=generator))
    before = boot.global_torch_settings()
    predict(model, x, 0.7, text)
    assert boot.differences(before, boot.global_torch_settings()) == {}


@pytest.mark.parametrize("version", ["0.8.2", "0.3.75", None], ids=lambda version: f"ComfyUI {version}")
def test_an_older_host_gets_no_nodes_and_one_sentence(version, host, pack, monkeypatch):
    """None: a host from before there was a version to ask for, and before V3 nodes."""
    if version:
        monkeypatch.setattr(sys.modules["comfyui_version"], "__version__", version)
    else:
        monkeypatch.setitem(sys.modules, "comfyui_version", None)
        monkeypatch.setitem(sys.modules, "comfy_api.latest", None)
    nodes_before = dict(host.nodes.NODE_CLASS_MAPPINGS)
    loaded = host.load_pack(boot.install_pack(host.base, f"clear-flux-on-{version}"))
    assert nodes_before == host.nodes.NODE_CLASS_MAPPINGS
    assert not hasattr(loaded.module, "comfy_entrypoint")
    (sentence,) = loaded.logged
    assert "CLEAR for FLUX" in sentence and "0.9.0" in sentence and (version or "older") in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert loaded.warned == [] and loaded.changed == {}
