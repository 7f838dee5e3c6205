"""The kinds of nodes in the examples: sockets, widgets with their defaults, size on the canvas.

The host tests compare this list with the schemas of a running server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clear_core.sdedit import DEFAULT_OVERLAP

CONTROL = "control_after_generate"
"""The front end's extra widget after a seed: saved as a value of its own, not sent to the server."""

UPLOAD = "upload"
"""The button of LoadImage: saved as a value of its own, not sent to the server."""

PACK, CORE = "clear-flux", "comfy-core"
CORE_VERSION = "0.9.0"
"""The oldest ComfyUI that the pack supports; it has all these nodes."""


@dataclass(frozen=True)
class Kind:
    """One kind of node.

    Attributes:
        inputs: Sockets, name to type, in order.
        outputs: (name, type), in order.
        widgets: Name to default, in saved order.
        size: Width and height in px, not smaller than the front end makes it.
        pack: Registry name of its pack; "" for nodes of the front end alone.
    """

    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    outputs: tuple[tuple[str, str], ...] = ()
    widgets: Mapping[str, Any] = field(default_factory=dict[str, Any])
    size: tuple[int, int] = (320, 60)
    pack: str = CORE


KINDS: Mapping[str, Kind] = {
    "CLEARAttention": Kind(
        {"model": "MODEL"},
        (("MODEL", "MODEL"),),
        {
            "weights_name": "clear_local_16.safetensors",
            "strength": 1.0,
            "radius": 0,
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
        },
        (360, 450),
        PACK,
    ),
    "CLEARUpscale": Kind(
        {
            "image": "IMAGE",
            "model": "MODEL",
            "positive": "CONDITIONING",
            "vae": "VAE",
            "negative": "CONDITIONING",
            "upscale_model": "UPSCALE_MODEL",
            "mask": "MASK",
            "later_model": "MODEL",
        },
        (("image", "IMAGE"), ("latent", "LATENT"), ("info", "STRING")),
        {
            "upscale_by": 2.0,
            "seed": 1,
            CONTROL: "fixed",
            "steps": 20,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 0.5,
            "stages": 0,
            "stage_denoise": "0.7, 0.5",
            "tile_width": 0,
            "tile_height": 0,
            "tile_overlap": DEFAULT_OVERLAP,
            "color_fix": "none",
            "shift": 0.0,
            "guide": "auto",
            "guide_strength": "1.0",
            "vae_tile_size": 0,
        },
        (360, 720),
        PACK,
    ),
    "CLEARGuide": Kind(
        {"model": "MODEL", "guide": "LATENT"},
        (("MODEL", "MODEL"),),
        {"schedule": "shift", "strength": 1.0, "level": 1, "start_percent": 0.0, "end_percent": 1.0},
        (360, 230),
        PACK,
    ),
    "CLEARGuideRecord": Kind({"model": "MODEL"}, (("MODEL", "MODEL"), ("record", "CLEAR_RECORD")), {}, (340, 60), PACK),
    "CLEARGuideAlign": Kind(
        {"model": "MODEL", "record": "CLEAR_RECORD", "latent": "LATENT"},
        (("MODEL", "MODEL"),),
        {"direction": 1.0, "acceleration": 0.5, "cutoff": 0.2, "start_percent": 0.0, "end_percent": 1.0},
        (360, 250),
        PACK,
    ),
    "CLEARInspect": Kind(
        {"model": "MODEL", "image": "IMAGE", "latent": "LATENT"},
        (("image", "IMAGE"), ("text", "STRING")),
        {"upscale_by": 1.0},
        (360, 520),
        PACK,
    ),
    "UNETLoader": Kind(
        {}, (("MODEL", "MODEL"),), {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}, (340, 82)
    ),
    "DualCLIPLoader": Kind(
        {},
        (("CLIP", "CLIP"),),
        {
            "clip_name1": "clip_l.safetensors",
            "clip_name2": "t5xxl_fp16.safetensors",
            "type": "flux",
            "device": "default",
        },
        (340, 130),
    ),
    "CLIPLoader": Kind(
        {}, (("CLIP", "CLIP"),), {"clip_name": "", "type": "stable_diffusion", "device": "default"}, (340, 106)
    ),
    "CheckpointLoaderSimple": Kind(
        {}, (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")), {"ckpt_name": ""}, (340, 98)
    ),
    "UpscaleModelLoader": Kind({}, (("UPSCALE_MODEL", "UPSCALE_MODEL"),), {"model_name": ""}, (340, 58)),
    "VAELoader": Kind({}, (("VAE", "VAE"),), {"vae_name": "ae.safetensors"}, (340, 58)),
    "ControlNetLoader": Kind({}, (("CONTROL_NET", "CONTROL_NET"),), {"control_net_name": ""}, (340, 58)),
    "CLIPTextEncode": Kind({"clip": "CLIP"}, (("CONDITIONING", "CONDITIONING"),), {"text": ""}, (340, 160)),
    "FluxGuidance": Kind(
        {"conditioning": "CONDITIONING"}, (("CONDITIONING", "CONDITIONING"),), {"guidance": 3.5}, (340, 58)
    ),
    "ConditioningZeroOut": Kind({"conditioning": "CONDITIONING"}, (("CONDITIONING", "CONDITIONING"),), {}, (340, 26)),
    "ControlNetApplyAdvanced": Kind(
        {
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "control_net": "CONTROL_NET",
            "image": "IMAGE",
            "vae": "VAE",
        },
        (("positive", "CONDITIONING"), ("negative", "CONDITIONING")),
        {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0},
        (340, 186),
    ),
    "LoadImage": Kind(
        {}, (("IMAGE", "IMAGE"), ("MASK", "MASK")), {"image": "example.png", UPLOAD: "image"}, (340, 340)
    ),
    "SaveImage": Kind({"images": "IMAGE"}, (), {"filename_prefix": "CLEAR"}, (400, 400)),
    "PreviewAny": Kind({"source": "*"}, (), {}, (400, 260)),
    "ImageScaleBy": Kind(
        {"image": "IMAGE"}, (("IMAGE", "IMAGE"),), {"upscale_method": "lanczos", "scale_by": 2.0}, (320, 82)
    ),
    "ImageScale": Kind(
        {"image": "IMAGE"},
        (("IMAGE", "IMAGE"),),
        {"upscale_method": "bicubic", "width": 3840, "height": 2160, "crop": "disabled"},
        (320, 130),
    ),
    "LoraLoaderModelOnly": Kind(
        {"model": "MODEL"}, (("MODEL", "MODEL"),), {"lora_name": "", "strength_model": 1.0}, (340, 82)
    ),
    "EmptySD3LatentImage": Kind(
        {}, (("LATENT", "LATENT"),), {"width": 1280, "height": 720, "batch_size": 1}, (340, 106)
    ),
    "EmptyLatentImage": Kind({}, (("LATENT", "LATENT"),), {"width": 1344, "height": 768, "batch_size": 1}, (340, 106)),
    "EmptyFlux2LatentImage": Kind(
        {}, (("LATENT", "LATENT"),), {"width": 1280, "height": 720, "batch_size": 1}, (340, 106)
    ),
    "VAEEncode": Kind({"pixels": "IMAGE", "vae": "VAE"}, (("LATENT", "LATENT"),), {}, (320, 46)),
    "VAEDecode": Kind({"samples": "LATENT", "vae": "VAE"}, (("IMAGE", "IMAGE"),), {}, (320, 46)),
    "VAEDecodeTiled": Kind(
        {"samples": "LATENT", "vae": "VAE"},
        (("IMAGE", "IMAGE"),),
        {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8},
        (320, 150),
    ),
    "KSampler": Kind(
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        (("LATENT", "LATENT"),),
        {
            "seed": 20250115,
            CONTROL: "fixed",
            "steps": 20,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
        },
        (320, 262),
    ),
    "ModelSamplingAuraFlow": Kind({"model": "MODEL"}, (("MODEL", "MODEL"),), {"shift": 3.0}, (320, 58)),
    "BasicScheduler": Kind(
        {"model": "MODEL"}, (("SIGMAS", "SIGMAS"),), {"scheduler": "simple", "steps": 20, "denoise": 1.0}, (320, 106)
    ),
    "BasicGuider": Kind({"model": "MODEL", "conditioning": "CONDITIONING"}, (("GUIDER", "GUIDER"),), {}, (320, 46)),
    "RandomNoise": Kind({}, (("NOISE", "NOISE"),), {"noise_seed": 1, CONTROL: "fixed"}, (320, 82)),
    "KSamplerSelect": Kind({}, (("SAMPLER", "SAMPLER"),), {"sampler_name": "euler"}, (320, 58)),
    "SamplerCustomAdvanced": Kind(
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        (("output", "LATENT"), ("denoised_output", "LATENT")),
        {},
        (320, 126),
    ),
    "MarkdownNote": Kind({}, (), {"": ""}, (440, 300), pack=""),
}
