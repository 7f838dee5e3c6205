"""CLEARUpscale with guidance and with a second model: what stock nodes and CLEARGuide make, stage by stage."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.host.support_comfy.sampling import run_node
from tests.host.support_comfy.upscaling import lanczos, stock_graph
from tests.host.test_upscale_stages import FIRST, SAVE, SECOND, UPSCALE, files, one_cache, saved_latent, with_widgets

__all__ = ["files", "one_cache"]


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(4))


def guided(host: Any, vae: Any, image: torch.Tensor, model: Any, size: tuple[int, int], **widgets: Any) -> Any:
    """The model that CLEARGuide gives for the enlarged picture."""
    with torch.inference_mode():
        (latent,) = run_node(host.stock("VAEEncode"), pixels=lanczos(host, image, size), vae=vae)
        return run_node(host.stock("CLEARGuide"), model=model, guide=latent, **widgets)[0]


@pytest.mark.parametrize(
    ("guide", "sampler", "denoise", "batch"),
    [("decay", "euler", 0.5, 1), ("shift", "heun", 1.0, 1), ("decay", "euler_ancestral", 1.0, 2)],
)
def test_a_guided_stage_is_the_stock_graph_with_a_guide(host, vae, upscale, tiny_flux, guide, sampler, denoise, batch):
    model, image, size = tiny_flux(), picture(96, 128, batch), (192, 256)
    changed = {"guide": guide, "guide_strength": "0.8", "denoise": denoise, "sampler_name": sampler, "seed": 11}
    out, latent, info = upscale(image, model, **changed)
    helped = guided(host, vae, image, model, size, schedule=guide, strength=0.8)
    made = {"seed": 11, "denoise": denoise, "sampler": sampler}
    expected, expected_latent = stock_graph(host, vae, image, helped, size, **made)
    assert torch.equal(latent, expected_latent) and torch.equal(out, expected)
    assert f"guided ({guide}, strength 0.8, level 1)" in info
    plain = stock_graph(host, vae, image, model, size, **made)[1]
    assert not torch.allclose(latent, plain, atol=1e-2)


@pytest.mark.parametrize("off", [{}, {"guide": "off"}, {"guide": "decay", "guide_strength": "0"}], ids=str)
def test_below_4096_px_and_off_it_is_sdedit(host, vae, upscale, tiny_flux, off):
    model, image = tiny_flux(), picture(64, 64)
    out, _, info = upscale(image, model, **off)
    assert torch.equal(out, stock_graph(host, vae, image, model, (128, 128))[0])
    assert "not guided" in info


def test_each_stage_has_its_strength(upscale, tiny_flux):
    model, image = tiny_flux(), picture(48, 48)
    stages = {"upscale_by": 4.0, "stage_denoise": "1.0, 0.6", "seed": 5}
    out, _, info = upscale(image, model, guide="shift", guide_strength="0, 1", **stages)
    first, second = info.splitlines()[:2]
    assert "not guided" in first and "guided (shift, strength 1, level 1)" in second
    middle, _, _ = upscale(image, model, denoise=1.0, guide="off", seed=5)
    alone, _, _ = upscale(middle, model, denoise=0.6, guide="shift", seed=6)
    assert torch.equal(out, alone)


def test_tiles_and_a_mask_go_with_guidance(upscale, tiny_flux):
    """One tile of the frame's size is the frame; smaller tiles are near it, and outside the mask nothing changes."""
    model, image = tiny_flux(), picture(64, 96)
    settings = {"guide": "decay", "denoise": 1.0}
    whole, _, _ = upscale(image, model, **settings)
    assert torch.equal(upscale(image, model, tile_width=192, tile_height=128, **settings)[0], whole)
    tiles, _, info = upscale(image, model, tile_width=96, tile_height=96, tile_overlap=32, **settings)
    assert "tiles of 96 x 96" in info and tiles.isfinite().all() and not torch.equal(tiles, whole)
    mask = torch.zeros(1, 64, 96)
    mask[:, :, :48] = 1
    part, _, _ = upscale(image, model, mask=mask, **settings)
    plain, _, _ = upscale(image, model, mask=torch.zeros(1, 64, 96), **settings)
    assert torch.equal(part[:, :, 160:], plain[:, :, 160:]) and not torch.equal(part[:, :, :80], plain[:, :, :80])


def test_tiles_beside_a_mask_are_sampled_if_a_guided_block_reaches_into_them(upscale, tiny_flux, monkeypatch, pack):
    """Level 2 takes means over 4 x 4 cells: the second tile begins at cell 14, and the mask ends in cell 12."""
    mask = torch.zeros(1, 16, 84)
    mask[:, :, :25] = 1
    settings = {"guide": "constant", "denoise": 1.0, "upscale_by": 4.0, "stages": 1, "mask": mask, "steps": 2}
    tiles = {"tile_width": 112, "tile_height": 64, "tile_overlap": 0}
    part, _, info = upscale(picture(16, 84), tiny_flux(), **settings, **tiles)
    assert "1 of them without a masked pixel and not sampled" in info and "level 2" in info
    module = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage_mask")
    monkeypatch.setattr(module, "shows_whole_frame", lambda model: True)
    whole, _, info = upscale(picture(16, 84), tiny_flux(), **settings, **tiles)
    assert "not sampled" not in info
    assert torch.equal(part, whole)


def test_later_stages_take_their_own_model(upscale, tiny_flux, clear_node):
    model, other = tiny_flux(), clear_node(tiny_flux(seed=1), radius=3)
    image, stages = picture(48, 48), {"upscale_by": 4.0, "stage_denoise": "0.7, 0.6", "seed": 5}
    out, _, info = upscale(image, model, later_model=other, **stages)
    middle, _, _ = upscale(image, model, denoise=0.7, seed=5)
    alone, _, _ = upscale(middle, other, denoise=0.6, seed=6)
    assert torch.equal(out, alone)
    lines = info.splitlines()
    assert "attention: dense, no windows: there is no CLEARAttention before this node" in lines
    assert any(line.startswith("later_model attention: CLEAR, radius 3") for line in lines)
    single, _, _ = upscale(image, model, later_model=other, seed=5)
    assert torch.equal(single, upscale(image, model, seed=5)[0]), "one stage has no later one"


def test_a_later_model_that_cannot_be_used_is_refused_before_any_work(upscale, tiny_flux, monkeypatch, pack):
    other = tiny_flux(in_channels=32, out_channels=32)
    other.model.latent_format.latent_channels = 32
    stage = importlib.import_module(f"{pack.__name__}.nodes.host.upscale.stage")
    monkeypatch.setattr(stage, "enlarge", lambda *args: pytest.fail("work had begun"))
    with pytest.raises(ValueError, match="^later_model cannot be used: .* the model takes a picture's of 32 channels"):
        upscale(picture(48, 48), tiny_flux(), later_model=other, upscale_by=4.0)


def test_in_a_graph_each_stage_has_its_model_and_its_guide(host, one_cache):
    graph = with_widgets(guide="decay", guide_strength="0, 1", later_model=["other", 0])
    graph["other"] = {
        "class_type": "CLEARAttention",
        "inputs": {"model": ["1", 0], "weights_name": "none", "radius": 2},
    }
    assert one_cache.run(graph, [SAVE]), one_cache.told
    first = saved_latent(host)
    assert one_cache.executed.index(FIRST) < one_cache.executed.index(SECOND)
    changed = copy.deepcopy(graph)
    changed["other"]["inputs"]["radius"] = 1
    assert one_cache.run(changed, [SAVE]), one_cache.told
    assert FIRST not in one_cache.executed and SECOND in one_cache.executed
    assert not torch.equal(saved_latent(host), first)
    unguided = copy.deepcopy(graph)
    unguided[UPSCALE]["inputs"]["guide_strength"] = "0, 0"
    assert one_cache.run(unguided, [SAVE]), one_cache.told
    assert FIRST not in one_cache.executed and not torch.equal(saved_latent(host), first)


def weights_added(patched: Any) -> dict[str, torch.Tensor]:
    """What a model's patches add to its weights."""
    import comfy.lora

    zeros = {
        key: torch.zeros_like(value) for key, value in patched.model.state_dict().items() if key in patched.patches
    }
    return {key: comfy.lora.calculate_weight(patched.patches[key], zero, key) for key, zero in zeros.items()}


def test_a_lora_of_uraes_names_reaches_the_later_model(host, upscale, tiny_flux, clear_node, caplog):
    """URAE's files have diffusers' names: queries, keys, values and outputs of all blocks (its notebook for 4K)."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for kind, parts in (
        ("transformer_blocks", ("to_q", "to_k", "to_v", "to_out.0")),
        ("single_transformer_blocks", ("to_q", "to_k", "to_v")),
    ):
        for block in range(2):
            for part in parts:
                stem = f"transformer.{kind}.{block}.attn.{part}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, 256, generator=generator)
                tensors[f"{stem}.lora_B.weight"] = torch.randn(256, 4, generator=generator) / 10
    folder = host.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "urae_names.safetensors")
    model = clear_node(tiny_flux(), radius=3)
    inputs = {"lora_name": "urae_names.safetensors", "strength_model": 1.0}
    (lora,) = run_node(host.stock("LoraLoaderModelOnly"), model=model, **inputs)
    assert "not loaded" not in caplog.text
    added = weights_added(lora)
    assert len(added) == 2 * 2 + 2, "joined queries, keys and values, and the outputs of double blocks"

    def product(kind: str, block: int, part: str) -> torch.Tensor:
        stem = f"transformer.{kind}.{block}.attn.{part}"
        return tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]

    for block in range(2):
        joined = torch.cat([product("transformer_blocks", block, part) for part in ("to_q", "to_k", "to_v")])
        stem = f"diffusion_model.double_blocks.{block}.img_attn"
        torch.testing.assert_close(added[f"{stem}.qkv.weight"], joined)
        torch.testing.assert_close(added[f"{stem}.proj.weight"], product("transformer_blocks", block, "to_out.0"))
        joined = torch.cat([product("single_transformer_blocks", block, part) for part in ("to_q", "to_k", "to_v")])
        found = added[f"diffusion_model.single_blocks.{block}.linear1.weight"]
        torch.testing.assert_close(found[: 3 * 256], joined)
        assert not found[3 * 256 :].any(), "the MLP's part stays"
    out, _, info = upscale(picture(32, 32), model, later_model=lora, upscale_by=4.0)
    assert "later_model attention: CLEAR, radius 3" in info
    assert not torch.equal(out, upscale(picture(32, 32), model, upscale_by=4.0)[0])
