"""Packs that compute the model by themselves.

They call FLUX's blocks without the options in which the window travels, or have no such blocks. There the rule is: the
result is what it is without CLEAR, and one line says that the window is not applied.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import run_node

RADIUS = 3
NOT_APPLIED = "as without CLEAR, and one line says that the window is not applied"


def bypassed(
    cell: Any,
    order: str,
    build: Callable[[], Any],
    clear_node: Any,
    other: Callable[[Any], Any],
    run: Callable[[Any], torch.Tensor],
    run_plainly: Callable[[Any], torch.Tensor] | None = None,
) -> None:
    """The row's rule; skips with the reason where the pack fails in this ComfyUI without CLEAR too.

    Args:
        build: Makes the same model every time; these packs leave state on it.
        run_plainly: Runs a model without the pack, where ``run`` itself is the pack's.
    """
    try:
        expected = run(other(build()))
    except (TypeError, AttributeError) as error:
        reason = of_another_host(str(error))
        if reason is None:
            raise
        pytest.skip(f"the pack fails here without CLEAR too: {reason}")
    patched = in_order(order, build(), lambda model: clear_node(model, radius=RADIUS), other)
    with Recorder() as log:
        cell.identical(run(patched), expected)
    cell.one_line(log.messages(), "not applied")
    assert not torch.equal((run_plainly or run)(build()), expected), "the pack does nothing"


def of_another_host(error: str) -> str | None:
    """What a pack misses that was made for an older ComfyUI, by its error message; None for any other error."""
    from comfy.ldm.flux import layers

    if added := re.search(r"got an unexpected keyword argument '(\w+)'", error):
        return f"it does not take {added[1]}, which ComfyUI has added"
    if (dropped := re.match(r"'(\w+)' object has no attribute '(\w+)'", error)) and hasattr(layers, dropped[1]):
        return f"it needs {dropped[2]}, which ComfyUI has dropped"
    return None


def with_teacache(host: Any, model: Any) -> Any:
    """A model with TeaCache at a threshold that skips steps."""
    return run_node(
        host.stock("TeaCache"),
        model=model,
        model_type="flux",
        rel_l1_thresh=10.0,
        start_percent=0.0,
        end_percent=1.0,
        cache_device="cpu",
    )[0]


def with_first_block_cache(host: Any, model: Any) -> Any:
    """A model with WaveSpeed's First Block Cache at a threshold that skips steps."""
    return run_node(
        host.stock("ApplyFBCacheOnModel"), model=model, object_to_patch="diffusion_model", residual_diff_threshold=0.4
    )[0]


@pytest.fixture
def build(tiny_flux: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: tiny_flux(depth=2, depth_single_blocks=1)


@pytest.mark.row("TeaCache", NOT_APPLIED)
@ORDERS
def test_teacache(cell, host, build, clear_node, run, use_pack, order):
    use_pack("ComfyUI-TeaCache", missing={"comfy.ldm.lightricks.model.precompute_freqs_cis": None})
    cell.note = "loaded with a stand-in for a video function that this ComfyUI has no more"

    cached = partial(with_teacache, host)
    bypassed(
        cell, order, build, clear_node, cached, lambda model: run(model, prompt(), torch.zeros(1, 16, 12, 14), steps=8)
    )


@pytest.mark.row("WaveSpeed: First Block Cache", NOT_APPLIED)
@ORDERS
def test_wavespeed(cell, host, build, clear_node, run, use_pack, order):
    use_pack("Comfy-WaveSpeed")

    cached = partial(with_first_block_cache, host)
    bypassed(
        cell, order, build, clear_node, cached, lambda model: run(model, prompt(), torch.zeros(1, 16, 12, 14), steps=8)
    )


@pytest.mark.row("PuLID (lldacing)", NOT_APPLIED)
@ORDERS
def test_pulid(cell, build, clear_node, run, use_pack, order):
    from comfy.patcher_extension import WrappersMP

    pulid = use_pack("ComfyUI_PuLID_Flux_ll", absent=("insightface", "facexlib", "onnxruntime")).pulidflux
    cell.note = "its hook is spared an argument that ComfyUI has added"

    class Layer(torch.nn.Module):
        def forward(self, embedding: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            return image.roll(1, dims=1) * embedding.mean()

    face_model = SimpleNamespace(model=SimpleNamespace(pulid_ca=[Layer()]))

    def outer_sample(executor: Callable, *args: Any, latent_shapes: Any = None, **kwargs: Any) -> torch.Tensor:
        return pulid.pulid_outer_sample_wrappers_with_override(executor, *args, **kwargs)

    def face(model: Any) -> Any:
        """What the node ApplyPulidFlux does once it has found a face."""
        model = model.clone()
        pulid.set_model_dit_patch_replace(
            model,
            {
                "pulid_model": face_model,
                "weight": 1.0,
                "embedding": torch.ones(1),
                "mask": None,
                "ca_idx": 0,
                "sigma_start": 1.0,
                "sigma_end": 0.0,
            },
            ("double_block", 0),
        )
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, pulid.wrappers_name, outer_sample)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, pulid.wrappers_name, pulid.pulid_apply_model_wrappers)
        return model

    bypassed(cell, order, build, clear_node, face, lambda model: run(model, prompt(), torch.zeros(1, 16, 12, 14)))


@pytest.mark.row("IP-Adapter-Flux (Shakker Labs)", NOT_APPLIED)
@ORDERS
def test_ip_adapter(cell, build, clear_node, run, use_pack, order):
    pack = use_pack("ComfyUI-IPAdapter-Flux")
    generator = torch.Generator().manual_seed(8)
    names = ("double_blocks.0", "double_blocks.1", "single_blocks.0")
    layers = {
        name: pack.ipadapter_flux.IPAFluxAttnProcessor2_0(
            hidden_size=256, cross_attention_dim=64, num_tokens=4, scale=1.0, timestep_range=(1.0, 0.0)
        )
        for name in names
    }
    for layer in layers.values():
        for weight in layer.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    image = torch.randn(1, 4, 64, generator=generator)

    def adapted(model: Any) -> Any:
        model = model.clone()
        pack.ipadapter_flux.FluxUpdateModules(model, layers, image, False)
        return model

    bypassed(cell, order, build, clear_node, adapted, lambda model: run(model, prompt(), torch.zeros(1, 16, 12, 14)))


@pytest.mark.row("NAG (ChenDarYen)", NOT_APPLIED)
def test_nag_pack(cell, host, build, clear_node, run, use_pack):
    from comfy.ldm.flux import layers

    blocks = {name: getattr(layers, name) for name in ("DoubleStreamBlock", "SingleStreamBlock")}
    use_pack("ComfyUI-NAG", missing={f"comfy.ldm.chroma.layers.{name}": block for name, block in blocks.items()})
    cell.note = "loaded with stand-ins for Chroma's blocks, which this ComfyUI has no more"

    def run_guided(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            (out,) = run_node(
                host.stock("KSamplerWithNAG"),
                model=model,
                seed=7,
                steps=2,
                cfg=1.0,
                nag_scale=5.0,
                nag_tau=2.5,
                nag_alpha=0.25,
                nag_sigma_end=0.0,
                sampler_name="euler",
                scheduler="simple",
                positive=prompt(),
                negative=prompt(),
                nag_negative=prompt(seed=9),
                latent_image={"samples": torch.zeros(1, 16, 12, 14)},
                denoise=1.0,
            )
        return out["samples"]

    bypassed(
        cell,
        "CLEAR last",
        build,
        clear_node,
        lambda model: model,
        run_guided,
        lambda model: run(model, prompt(), torch.zeros(1, 16, 12, 14), steps=2),
    )


@pytest.mark.row("Nunchaku", "refused in one sentence, when the node runs")
def test_nunchaku(cell, model, clear_node, use_pack):
    """The pack's own wrapper around a stand-in for its quantised model, which no CPU can run."""
    pack = use_pack("ComfyUI-nunchaku", absent=("nunchaku", "insightface", "facexlib"))
    model.model.diffusion_model = pack.nodes.models.flux.ComfyFluxWrapper(torch.nn.Linear(2, 2), config={})
    with pytest.raises(ValueError, match="Nunchaku") as refused:
        clear_node(model, radius=RADIUS)
    cell.one_line([f"CLEAR: {refused.value}"], "ComfyFluxWrapper", "CLEAR cannot reach it")


@pytest.mark.row("Such packs in long sequences, whose blocks run in chunks", NOT_APPLIED)
def test_chunked_blocks(cell, build, clear_node, predict, pack):
    """A pack's forward asks replaced blocks for less than the host's does; ours are there in long sequences."""

    def own_forward(
        self: Any,
        img: torch.Tensor,
        img_ids: torch.Tensor,
        txt: torch.Tensor,
        txt_ids: torch.Tensor,
        timesteps: torch.Tensor,
        y: torch.Tensor,
        guidance: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        attn_mask: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        from comfy.ldm.flux.layers import timestep_embedding

        img, txt = self.img_in(img), self.txt_in(txt)
        vec = self.time_in(timestep_embedding(timesteps, 256)) + self.vector_in(y)
        vec = vec + self.guidance_in(timestep_embedding(guidance, 256))
        args = {"vec": vec, "pe": self.pe_embedder(torch.cat((txt_ids, img_ids), dim=1)), "attn_mask": attn_mask}
        replaced = (transformer_options or {}).get("patches_replace", {}).get("dit", {})
        for index, block in enumerate(self.double_blocks):
            if ("double_block", index) in replaced:
                out = replaced["double_block", index](dict(img=img, txt=txt, **args), {"original_block": block})
                img, txt = out["img"], out["txt"]
            else:
                img, txt = block(img=img, txt=txt, **args)
        img = torch.cat((txt, img), 1)
        for index, block in enumerate(self.single_blocks):
            if ("single_block", index) in replaced:
                img = replaced["single_block", index](dict(img=img, **args), {"original_block": block})["img"]
            else:
                img = block(img, **args)
        return self.final_layer(img[:, txt.shape[1] :], vec)

    def bypassing(model: Any) -> Any:
        model = model.clone()
        flux = model.model.diffusion_model
        model.add_object_patch("diffusion_model.forward_orig", own_forward.__get__(flux))
        return model

    memory = importlib.import_module(f"{pack.__name__}.nodes.host.model.memory")
    x, patched = noise(12, 14), clear_node(build(), radius=RADIUS)
    memory.MemoryPatch(chunk=16).install(patched)
    expected = predict(bypassing(build()), x, 0.6, prompt())
    with Recorder() as log:
        cell.stock(predict(bypassing(patched), x, 0.6, prompt()), expected)
    cell.one_line(log.messages(), "not applied")
