"""The example workflows with guidance: from noise to 4K, in stages to 8K, and with another model in later stages."""

from __future__ import annotations

from .graph import Graph
from .models import CLIP_L, FLUX_DEV, T5, URAE_2K, VAE, clear_weights
from .parts import SCENE, WINDOWS, about, begin, result, small_picture, windows

STEM = "clear_local_16"

EVIDENCE = (
    "The method is I-Max's ([paper](https://arxiv.org/abs/2410.07536)). What it does was measured on the small demo "
    "model alone (demo/experiments in this pack), not on FLUX.1."
)


def guided_4k() -> Graph:
    graph = Graph("clear_text_to_4k_with_guidance")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    larger = graph.add("ImageScale", title="Enlarge: 3840 x 2160", image=small[-1]["IMAGE"], width=3840, height=2160)
    latent = graph.add("VAEEncode", pixels=larger["IMAGE"], vae=parts.vae["VAE"])
    clear = windows(graph, parts, STEM)
    guide = graph.add("CLEARGuide", model=clear["MODEL"], guide=latent["LATENT"], level=2)
    shift = graph.add("ModelSamplingAuraFlow", title="Shift from noise: 6", model=guide["MODEL"], shift=6.0)
    size = graph.add("EmptySD3LatentImage", title="Large size: 3840 x 2160", width=3840, height=2160)
    sampler = graph.add(
        "KSampler",
        title="Large picture: from pure noise",
        model=shift["MODEL"],
        positive=parts.guidance["CONDITIONING"],
        negative=small[0]["CONDITIONING"],
        latent_image=size["LATENT"],
    )
    picture = graph.add("VAEDecodeTiled", samples=sampler["LATENT"], vae=parts.vae["VAE"])
    save = graph.add("SaveImage", images=picture["IMAGE"], filename_prefix="CLEAR_guided_4K")
    note = graph.note(
        about(
            "3840 x 2160 from pure noise, with guidance",
            "The small picture is composed first. The large one begins with noise alone, and **CLEAR Guide** keeps the "
            "small one's layout: it moves each prediction towards the enlarged small picture, first in everything, "
            "towards the end in its coarse parts alone. So nothing is doubled.",
            "- *level* 2 counts squares of 4 x 4 latent cells as coarse, since the picture is enlarged 3 times; 1 is "
            "for twice.\n"
            "- *schedule* constant holds the coarse parts alone, which gives crisper and rougher detail; decay lets go "
            "towards the end.\n"
            "- Closer to the small picture and cheaper: *clear_text_to_image_1k_to_4k*, which starts from the picture "
            "with some noise.",
            EVIDENCE,
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights(STEM)],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. The guide", [larger, latent, guide, shift]))
    graph.column(("3. Large, from noise", [size, sampler, picture]))
    graph.column(("Result", [save]))
    return graph


def guided_8k() -> Graph:
    graph = Graph("clear_8k_in_stages_with_guidance")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, STEM)
    upscale = graph.add(
        "CLEARUpscale",
        image=small[-1]["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        upscale_by=6.0,
        steps=20,
        stage_denoise="0.7, 0.7, 0.7",
        guide="shift",
    )
    note = graph.note(
        about(
            "7680 x 4320 in stages, each guided",
            "Three stages that redo a lot, *denoise* 0.7 each. Each is guided by the picture that it enlarges "
            "(*guide*: shift), so that things stay where they are and do not double, which they tend to do past 4096 "
            "pixels.",
            "- *guide_strength* 0, 1 leaves the first stage unguided; 0.5 everywhere is half the hold.\n"
            "- *guide* auto, the default, guides above 4096 pixels only.\n"
            "- *tile_width* and *tile_height* 0 take the whole picture where it fits the card, else the largest tiles "
            "that fit. Guidance sees the whole picture in either case.",
            EVIDENCE,
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights(STEM)],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. Large, in three guided stages", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_guided_8K")))
    return graph


def late_lora() -> Graph:
    graph = Graph("clear_2k_lora_in_late_stages")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, STEM)
    lora = graph.add(
        "LoraLoaderModelOnly", models=[URAE_2K], title="URAE's 2K LoRA", model=clear["MODEL"], lora_name=URAE_2K.name
    )
    upscale = graph.add(
        "CLEARUpscale",
        image=small[-1]["IMAGE"],
        model=clear["MODEL"],
        later_model=lora["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        upscale_by=3.0,
        steps=14,
    )
    note = graph.note(
        about(
            "A LoRA for large pictures, in the late stage alone",
            "**CLEAR Upscale** takes a second model: *later_model* samples in the stages after the first. Here it is "
            "the same model with URAE's LoRA ([paper](https://arxiv.org/abs/2503.16322), "
            "[code](https://github.com/Huage001/URAE)), which its authors trained for 2K.",
            "- Any LoRA or fine-tune of FLUX.1 can stand here, with windows or without.\n"
            "- Its authors sample at guidance 3.5; their minor-component adapters for 4K also exist as a LoRA "
            "(urae_4k_adapter_lora_conversion_dev).\n"
            "- That ComfyUI loads a LoRA of these names onto CLEAR's model is tested; what this one does to pictures "
            "together with windows has not been measured.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, URAE_2K, clear_weights(STEM)],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear, lora]))
    graph.column(("2. Large, in two stages", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_late_LoRA")))
    return graph
