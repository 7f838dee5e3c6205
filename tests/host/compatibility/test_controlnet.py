"""ControlNets.

Small ControlNets in the layouts of XLabs and of Union files, loaded by ComfyUI; more in tests/host/test_controlnet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.host.support_comfy.control_cases import PlainVAE
from tests.host.support_comfy.controlnets import oracle_control, write_latent_file, write_xlabs_file
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import window_mask, with_oracle_windows
from tests.host.support_comfy.sampling import run_node

RADIUS, SIGMA, TEXT, GRID = 3, 0.6, 7, (6, 7)


def with_window(model: Any, x: torch.Tensor, positive: list, predict: Callable) -> torch.Tensor:
    """Model and ControlNet under the window's dense mask."""
    masks = {text + 42: window_mask(text, GRID, 0, RADIUS) for text in (TEXT, TEXT + 1)}
    with oracle_control(masks):
        return predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive)


@pytest.fixture(params=["XLabs", "Union"])
def positive(request: pytest.FixtureRequest, stock: Callable[..., type], tmp_path: Any) -> list:
    """A prompt with a ControlNet applied to it by the stock nodes."""
    import comfy.controlnet

    write = write_xlabs_file if request.param == "XLabs" else write_latent_file
    control = comfy.controlnet.load_controlnet(str(write(tmp_path / "control.safetensors", seed=5)))
    if request.param == "Union":
        (control,) = run_node(stock("SetUnionControlNetType", "nodes_controlnet"), control_net=control, type="depth")
    image = torch.rand(1, 96, 112, 3, generator=torch.Generator().manual_seed(3))
    return run_node(
        stock("ControlNetApplyAdvanced"),
        positive=prompt(TEXT),
        negative=prompt(TEXT),
        control_net=control,
        image=image,
        strength=0.8,
        start_percent=0.0,
        end_percent=1.0,
        vae=PlainVAE() if control.latent_format else None,
    )[0]


@pytest.mark.row("ControlNet, controlnet off", "its residuals act on a CLEAR model as on a plain one")
def test_off(cell, model, clear_node, predict, positive):
    x = noise(12, 14)
    cell.oracle(
        predict(clear_node(model, radius=RADIUS, controlnet="off"), x, SIGMA, positive),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive),
        predict(model, x, SIGMA, positive),
    )


@pytest.mark.row("ControlNet, controlnet on", "its own blocks attend in the model's windows")
def test_on(cell, model, clear_node, predict, positive):
    x = noise(12, 14)
    # Without: the model's windows, and a ControlNet that has none.
    cell.oracle(
        predict(clear_node(model, radius=RADIUS, controlnet="on"), x, SIGMA, positive),
        with_window(model, x, positive, predict),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive),
    )


@pytest.mark.row("ControlNet, a radius past the grid", "the stock result")
def test_wide(cell, model, clear_node, predict, positive):
    x = noise(12, 14)
    cell.stock(
        predict(clear_node(model, radius=100, controlnet="on"), x, SIGMA, positive), predict(model, x, SIGMA, positive)
    )


@pytest.mark.row("Advanced-ControlNet", "its loader and its apply node do as the stock ones, windows included")
def test_advanced_controlnet(cell, host, model, clear_node, predict, stock, use_pack):
    use_pack("ComfyUI-Advanced-ControlNet")
    folder = host.base / "models" / "controlnet"
    folder.mkdir(exist_ok=True)
    file = write_xlabs_file(folder / "advanced.safetensors", seed=5)

    def applied(load: str, apply: str) -> list:
        (control,) = run_node(host.stock(load), **{"cnet" if "ACN" in load else "control_net_name": file.name})
        image = torch.rand(1, 96, 112, 3, generator=torch.Generator().manual_seed(3))
        return run_node(
            host.stock(apply),
            positive=prompt(TEXT),
            negative=prompt(TEXT),
            control_net=control,
            image=image,
            strength=0.8,
            start_percent=0.0,
            end_percent=1.0,
        )[0]

    x, windows = noise(12, 14), with_oracle_windows(model, RADIUS)
    plain = applied("ControlNetLoader", "ControlNetApplyAdvanced")
    advanced = applied("ACN_ControlNetLoaderAdvanced", "ACN_AdvancedControlNetApply_v2")
    cell.oracle(
        predict(clear_node(model, radius=RADIUS, controlnet="on"), x, SIGMA, advanced),
        with_window(model, x, plain, predict),
        predict(windows, x, SIGMA, plain),
    )
    cell.oracle(
        predict(clear_node(model, radius=RADIUS, controlnet="off"), x, SIGMA, advanced),
        predict(windows, x, SIGMA, plain),
        predict(model, x, SIGMA, plain),
    )
