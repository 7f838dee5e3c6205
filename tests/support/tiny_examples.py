"""The example workflows at the size of a postage stamp, on the demo's tiny FLUX: what is sent and what is expected."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]

PICTURE = (96, 64)
"""Width and height in px of the picture that is to be enlarged."""

TENTH, WHOLE = 10, 64
"""What text makes here has a tenth of the examples' own sides, cut to multiples of 64 px."""

SIZES = {
    "clear_text_to_image_1k_to_4k": [(384, 192)],
    "clear_upscale_faithful": [(192, 128)],
    "clear_upscale_faithful.app": [(192, 128)],
    "clear_upscale_as_in_the_paper": [(384, 256)],
    "clear_8k_in_stages_with_tiles": [(768, 384)],
    "clear_controlnet_tile_4k": [(384, 256)],
    "clear_text_to_4k_with_guidance": [(384, 192)],
    "clear_8k_in_stages_with_guidance": [(768, 384)],
    "clear_2k_lora_in_late_stages": [(384, 192)],
    "clear_stock_nodes_1k_to_4k": [(384, 192)],
    "clear_low_vram_fp8": [(256, 128)],
    "clear_dense_beside_clear": [(192, 64), (192, 64)],
    "clear_z_image_turbo_to_4k": [(384, 192)],
    "clear_qwen_image_to_4k": [(384, 192)],
    "clear_krea_2_to_4k": [(384, 192)],
    "clear_flux2_klein_to_4k": [(384, 192)],
    "clear_sdxl_to_4k": [(384, 192)],
    "clear_refine_after_esrgan": [(384, 256)],
}
"""What each example saves, by its name."""

CAPTION = "a big red plain ball left, sea day"
STEPS = 2

MODEL, TEXT, PIXELS = ["tiny_model", 0], ["tiny_text", 0], ["tiny_text", 1]
LOADERS = {
    "DualCLIPLoader": (TEXT,),
    "CLIPLoader": (TEXT,),
    "VAELoader": (PIXELS,),
    "CheckpointLoaderSimple": (MODEL, TEXT, PIXELS),
}
"""What stands for the outputs of a loader."""

EMPTY = ("EmptySD3LatentImage", "EmptyLatentImage", "EmptyFlux2LatentImage")


def tiny(prompt: Prompt) -> Prompt:
    """What the front end sends, with the demo's files (in folders ``demo``), small sizes and few steps.

    Other models than FLUX.1 are the demo's too, and a picture is enlarged without an upscale model.
    """
    small = copy.deepcopy(prompt)
    stand_ins: dict[tuple[str, int], list[Any]] = {}
    for key, node in prompt.items():
        kind = node["class_type"]
        if kind in LOADERS:
            del small[key]
            stand_ins |= {(key, slot): found for slot, found in enumerate(LOADERS[kind]) if found}
        elif kind == "UpscaleModelLoader":
            del small[key]
    small |= {MODEL[0]: {"class_type": "UNETLoader", "inputs": {"weight_dtype": "default"}}}
    small |= {TEXT[0]: {"class_type": "TinyFluxTextAndPixels", "inputs": {}}}
    for node in small.values():
        inputs = node["inputs"]
        inputs.pop("upscale_model", None)
        inputs |= {
            name: stand_ins[tuple(value)]
            for name, value in inputs.items()
            if isinstance(value, list) and tuple(value) in stand_ins
        }
        if node["class_type"] == "UNETLoader":
            inputs["unet_name"] = "demo/tiny_flux.safetensors"
        elif node["class_type"] == "CLEARAttention":
            inputs["weights_name"] = f"demo/{inputs['weights_name']}"
        elif node["class_type"] == "ControlNetLoader":
            inputs["control_net_name"] = "demo/tiny_controlnet.safetensors"
        elif node["class_type"] == "CLIPTextEncode":
            inputs["text"] = CAPTION
        elif node["class_type"] == "LoraLoaderModelOnly":
            inputs["lora_name"] = "demo/tiny_lora.safetensors"
        elif node["class_type"] in (*EMPTY, "ImageScale"):
            node["class_type"] = EMPTY[0] if node["class_type"] in EMPTY else node["class_type"]
            inputs |= {side: inputs[side] // TENTH // WHOLE * WHOLE for side in ("width", "height")}
        elif node["class_type"] == "CLEARUpscale" and inputs["tile_width"]:
            inputs |= {name: inputs[name] // 10 // 16 * 16 for name in ("tile_width", "tile_height", "tile_overlap")}
        if "steps" in inputs:
            inputs["steps"] = STEPS
    return small


def write_controlnet(path: Path) -> None:
    """A ControlNet of the tiny FLUX's width in diffusers' layout, as the example's own is."""
    import torch
    from diffusers import FluxControlNetModel
    from safetensors.torch import save_file

    from demo.tiny_flux.model import CONFIG

    torch.manual_seed(0)
    model = FluxControlNetModel(**{**CONFIG, "num_layers": 1, "num_single_layers": 1})
    for block in (*model.controlnet_blocks, *model.controlnet_single_blocks):
        torch.nn.init.normal_(block.weight, std=0.02)  # they start at zero and would have no effect
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def write_lora(path: Path) -> None:
    """A LoRA of the tiny FLUX with diffusers' names, as the example's own is."""
    import torch
    from safetensors.torch import save_file

    from demo.tiny_flux.model import CONFIG

    torch.manual_seed(0)
    width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
    tensors: dict[str, torch.Tensor] = {}
    for kind, count in (("transformer_blocks", "num_layers"), ("single_transformer_blocks", "num_single_layers")):
        for block in range(CONFIG[count]):
            for part in ("to_q", "to_k", "to_v"):
                stem = f"transformer.{kind}.{block}.attn.{part}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, width)
                tensors[f"{stem}.lora_B.weight"] = torch.randn(width, 4) / 100
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def write_picture(path: Path) -> None:
    """A picture to enlarge, :data:`PICTURE` in size."""
    from PIL import Image

    Image.linear_gradient("L").resize(PICTURE).convert("RGB").save(path)
