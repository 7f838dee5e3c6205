"""Prompts, references and masks.

In every test the same graph runs with CLEARAttention and with the dense masked oracle in its place.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import run_node

RADIUS, SIGMA = 3, 0.6


@pytest.mark.row("Long prompts", "text of any length is seen by all")
@pytest.mark.parametrize("text", [1, 300])
def test_long_prompt(cell, model, clear_node, predict, text):
    x, positive = noise(12, 14), prompt(text)
    cell.oracle(
        predict(clear_node(model, radius=RADIUS), x, SIGMA, positive),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive),
        predict(model, x, SIGMA, positive),
    )


@pytest.mark.row("Kontext reference latents", "references of any number and size are seen by all and see all")
@pytest.mark.parametrize("method", ["offset", "index", "uxo"])
@pytest.mark.parametrize("count", [1, 3])
def test_kontext(cell, model, clear_node, predict, stock, count, method):
    x, positive = noise(12, 14), prompt()
    for number in range(count):
        (positive,) = run_node(
            stock("ReferenceLatent", "nodes_edit_model"),
            conditioning=positive,
            latent={"samples": noise(6 + 2 * number, 9, seed=number)},
        )
    (positive,) = run_node(
        stock("FluxKontextMultiReferenceLatentMethod", "nodes_flux"),
        conditioning=positive,
        reference_latents_method=method,
    )
    cell.oracle(
        predict(clear_node(model, radius=RADIUS), x, SIGMA, positive),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive),
        predict(model, x, SIGMA, positive),
    )


@pytest.mark.row("Redux", "its tokens are text, seen by all; their strength acts inside the windows")
@pytest.mark.parametrize("kind", ["multiply", "attn_bias"])
def test_redux(cell, model, clear_node, predict, stock, kind):
    class Style:
        def get_cond(self, _: object) -> torch.Tensor:
            return torch.randn(1, 29, 64, generator=torch.Generator().manual_seed(5))

    x = noise(12, 14)
    (positive,) = run_node(
        stock("StyleModelApply"),
        conditioning=prompt(),
        style_model=Style(),
        clip_vision_output=SimpleNamespace(),
        strength=0.4,
        strength_type=kind,
    )
    assert positive[0][0].shape[1] == 7 + 29
    cell.oracle(
        predict(clear_node(model, radius=RADIUS), x, SIGMA, positive),
        predict(with_oracle_windows(model, RADIUS), x, SIGMA, positive),
        predict(model, x, SIGMA, positive),
    )


@pytest.mark.row("Attention masks (regional prompts)", "act inside the windows, whatever they hide")
@pytest.mark.parametrize("kind", ["words by image column", "any pair"])
def test_attention_mask(cell, model, clear_node, predict, kind):
    x, text, (rows, columns) = noise(12, 14), 7, (6, 7)
    generator = torch.Generator().manual_seed(6)
    if kind == "any pair":
        bias = torch.randn(1, text + 42, text + 42, generator=generator)
    else:
        bias = torch.zeros(1, text + 42, text + 42)
        bias[:, text:, :text] = torch.randn(1, columns, text, generator=generator).repeat(1, rows, 1) * 2
    positive = prompt(text, attention_mask=bias, attention_mask_img_shape=(rows, columns))
    windows = with_oracle_windows(model, RADIUS)
    expected = predict(windows, x, SIGMA, positive)
    cell.oracle(
        predict(clear_node(model, radius=RADIUS), x, SIGMA, positive), expected, predict(model, x, SIGMA, positive)
    )
    assert (predict(windows, x, SIGMA, prompt(text)) - expected).norm() > 1e-2, "the mask does nothing"


@pytest.mark.row("Area conditioning", "every area gets the windows of its own size")
def test_areas(cell, model, clear_node, run, stock):
    latent = torch.zeros(1, 16, 16, 20)
    areas = prompt(9)
    for number, (y, x) in enumerate(((0, 0), (32, 48))):
        areas += run_node(
            stock("ConditioningSetArea"),
            conditioning=prompt(5 + number, seed=number),
            x=x,
            y=y,
            width=96,
            height=64,
            strength=1.0,
        )[0]
    cell.oracle(
        run(clear_node(model, radius=RADIUS), areas, latent),
        run(with_oracle_windows(model, RADIUS), areas, latent),
        run(model, areas, latent),
    )


@pytest.mark.row("Several prompts with masks in pixels", "the host blends whole frames; each has its windows")
def test_masked_prompts(cell, model, clear_node, run, stock):
    latent = torch.zeros(1, 16, 16, 20)
    left = torch.zeros(1, 128, 160)
    left[..., :70] = 1.0
    both = [
        entry
        for number, mask in enumerate((left, 1.0 - left))
        for entry in run_node(
            stock("ConditioningSetMask"),
            conditioning=prompt(5 + number, seed=number),
            mask=mask,
            strength=1.0,
            set_cond_area="default",
        )[0]
    ]
    cell.oracle(
        run(clear_node(model, radius=RADIUS), both, latent),
        run(with_oracle_windows(model, RADIUS), both, latent),
        run(model, both, latent),
    )


@pytest.mark.row("cfg above 1", "positive and negative prompt of any two lengths have the same windows")
@pytest.mark.parametrize("negative", [7, 4], ids=["one batch", "two calls"])
def test_cfg(cell, model, clear_node, run, negative):
    latent = torch.zeros(1, 16, 12, 14)
    prompts = {"positive": prompt(7), "latent": latent, "negative": prompt(negative, seed=9), "cfg": 3.0}
    cell.oracle(
        run(clear_node(model, radius=RADIUS), **prompts),
        run(with_oracle_windows(model, RADIUS), **prompts),
        run(model, **prompts),
    )


@pytest.mark.row("Inpainting mask, Differential Diffusion", "as with the stock model")
@ORDERS
def test_differential_diffusion(cell, model, clear_node, run, stock, order):
    node = stock("DifferentialDiffusion", "nodes_differential_diffusion")

    def differential(model: object) -> object:
        return run_node(node, model=model)[0]

    mask = torch.linspace(0, 1, 14).expand(1, 1, 12, 14)
    graph = {"positive": prompt(), "latent": noise(12, 14), "noise_mask": mask, "steps": 4}
    patched = in_order(order, model, lambda model: clear_node(model, radius=RADIUS), differential)
    cell.oracle(
        run(patched, **graph),
        run(differential(with_oracle_windows(model, RADIUS)), **graph),
        run(differential(model), **graph),
    )
