"""The example workflows: the nodes of each, and its note."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .any_model import flux2_klein_4k, krea_2_4k, qwen_image_4k, refine, sdxl_4k, z_image_4k
from .graph import Graph
from .guided import guided_4k, guided_8k, late_lora
from .models import CLIP_L, FLUX_DEV, T5, T5_FP8, VAE, clear_weights
from .node import Node
from .parts import SCENE, WINDOWS, about, begin, result, small_picture, windows
from .upscaling import controlnet, eight_k, upscale_faithful, upscale_faithful_app, upscale_paper


def text_to_image() -> Graph:
    graph = Graph("clear_text_to_image_1k_to_4k")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, "clear_local_16")
    upscale = graph.add(
        "CLEARUpscale",
        image=small[-1]["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        upscale_by=3.0,
        steps=14,
    )
    note = graph.note(
        about(
            "From text to 3840 x 2160",
            "FLUX is at home at about one megapixel. So the picture is composed there, by the model as it is, and "
            "**CLEAR "
            "Upscale** makes it 3 times larger and redoes its detail, in two stages.",
            "In the stages every part of the picture attends to the prompt and to a circle around itself, not to the "
            "whole "
            "picture: that is **CLEAR Attention**. It is what keeps 4K affordable without cutting the picture into "
            "tiles.",
            "- *stage_denoise* says how much each stage redoes. Lower numbers stay closer to the small picture.\n"
            "- *upscale_by* 2 is a good first try. That is a single stage, and *denoise* says how much it redoes.\n"
            "- If memory runs out, set *tile_width* and *tile_height* to 1024.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights("clear_local_16")],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. Large", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_4K")))
    return graph


def stock_nodes() -> Graph:
    graph = Graph("clear_stock_nodes_1k_to_4k")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, "clear_local_16")
    shift = graph.add("ModelSamplingAuraFlow", title="FLUX.1-dev's shift: 3", model=clear["MODEL"])
    guider = graph.add("BasicGuider", model=shift["MODEL"], conditioning=parts.guidance["CONDITIONING"])
    euler = graph.add("KSamplerSelect")

    def stage(picture: Node, scale: float, denoise: float, seed: int) -> list[Node]:
        larger = graph.add("ImageScaleBy", image=picture["IMAGE"], scale_by=scale)
        latent = graph.add("VAEEncode", pixels=larger["IMAGE"], vae=parts.vae["VAE"])
        noise = graph.add("RandomNoise", noise_seed=seed)
        sigmas = graph.add(
            "BasicScheduler", title=f"14 steps at denoise {denoise:g}", model=shift["MODEL"], steps=14, denoise=denoise
        )
        sampler = graph.add(
            "SamplerCustomAdvanced",
            noise=noise["NOISE"],
            guider=guider["GUIDER"],
            sampler=euler["SAMPLER"],
            sigmas=sigmas["SIGMAS"],
            latent_image=latent["LATENT"],
        )
        return [
            larger,
            latent,
            noise,
            sigmas,
            sampler,
            graph.add("VAEDecodeTiled", samples=sampler["output"], vae=parts.vae["VAE"]),
        ]

    middle = stage(small[-1], 2.0, 0.7, 1)
    large = stage(middle[-1], 1.5, 0.5, 2)
    save = graph.add("SaveImage", images=large[-1]["IMAGE"], filename_prefix="CLEAR_stock_4K")
    note = graph.note(
        about(
            "To 3840 x 2160 with stock nodes",
            "What **CLEAR Upscale** does, spelled out: enlarge, encode, add noise, denoise with windows, decode, and "
            "again. "
            "**CLEAR Attention** is the only node here that is not ComfyUI's own.",
            "- The published recipe says 20 steps at strength 0.7; in ComfyUI's terms these are 14 steps at denoise "
            "0.7.\n"
            "- The shift is FLUX.1-dev's own, 3. The ModelSamplingFlux node is of no use here: its shift grows with "
            "the "
            "area.\n"
            "- There are no tiles while sampling here, and colours are not held; the node has both.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights("clear_local_16")],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. To 2560 x 1440", middle[:3], middle[3:]), ("3. To 3840 x 2160", large[:3], large[3:]))
    graph.column(("Result", [save]), ("For both stages", [shift, guider, euler]))
    return graph


def low_vram() -> Graph:
    graph = Graph("clear_low_vram_fp8")
    parts = begin(graph, SCENE, 3.5, "fp8_e4m3fn", T5_FP8)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, "clear_local_16")
    upscale = graph.add(
        "CLEARUpscale",
        image=small[-1]["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        upscale_by=2.0,
        steps=10,
        denoise=0.5,
    )
    note = graph.note(
        about(
            "For small cards",
            "The weights are kept in fp8 (*weight_dtype* on the loader), which halves them, and the text encoder is "
            "an fp8 "
            "file. What does not fit the card waits in main memory and is sent over as needed, which takes time. By "
            "calculation "
            "2560 x 1440 fits a card of 8 GB.",
            "- *tile_width* and *tile_height* 0: whole where it fits the card, else the largest tiles that fit. Out of "
            "memory all the same? Set both to 1024.\n"
            "- To load less from disk, take a FLUX file that is fp8 already.\n"
            "- **GGUF** is smaller still: install the pack ComfyUI-GGUF and put its Unet Loader (GGUF) in place of the "
            "first loader. CLEAR Attention works on it as it is.",
            models=[FLUX_DEV, CLIP_L, T5_FP8, VAE, clear_weights("clear_local_16")],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. To 2560 x 1440", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_low_VRAM")))
    return graph


def side_by_side() -> Graph:
    graph = Graph("clear_dense_beside_clear")
    parts = begin(graph, SCENE, 3.5)
    size = graph.add("EmptySD3LatentImage", title="2048 x 1152", width=2048, height=1152)
    nothing = graph.add("ConditioningZeroOut", conditioning=parts.prompt["CONDITIONING"])
    clear = windows(graph, parts, "clear_local_16")

    def picture(model: Node, title: str, prefix: str) -> list[Node]:
        sampler = graph.add(
            "KSampler",
            title=title,
            model=model["MODEL"],
            positive=parts.guidance["CONDITIONING"],
            negative=nothing["CONDITIONING"],
            latent_image=size["LATENT"],
        )
        decoded = graph.add("VAEDecode", samples=sampler["LATENT"], vae=parts.vae["VAE"])
        return [sampler, decoded, graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix=prefix)]

    dense = picture(parts.flux, "Dense: everything sees everything", "dense")
    windowed = picture(clear, "CLEAR: the prompt and a circle", "CLEAR")
    inspect = graph.add("CLEARInspect", model=clear["MODEL"], image=windowed[1]["IMAGE"])
    note = graph.note(
        about(
            "Dense and CLEAR, side by side",
            "The same prompt, seed and size twice: by the model as it is, and with windows. Compare the pictures, and "
            "the "
            "seconds per step that ComfyUI's log shows. **CLEAR Inspect** then draws the window over the picture, at "
            "its "
            "true size, and says what it saves from 1K to 8K.",
            "- At about one megapixel windows gain little; from 2 megapixels on the difference grows with every size.\n"
            "- Pictures differ in their details: the windows are another way of looking, and above 2 megapixels the "
            "positions are stretched, which FLUX as it is does not do.\n"
            "- Straight from text to a large size is not what to do for the best pictures; see "
            "*clear_text_to_image_1k_to_4k*.\n"
            "- To see one alone, mute all nodes of the other group.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights("clear_local_16")],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", [parts.prompt, parts.guidance, size, nothing]))
    graph.column((WINDOWS, [clear]), ("What that means", [inspect]))
    graph.column(("Dense", dense[:2], dense[2:]), ("CLEAR", windowed[:2], windowed[2:]))
    return graph


EXAMPLES: Sequence[Callable[[], Graph]] = (
    text_to_image,
    upscale_faithful,
    upscale_faithful_app,
    upscale_paper,
    eight_k,
    controlnet,
    guided_4k,
    guided_8k,
    late_lora,
    stock_nodes,
    low_vram,
    side_by_side,
    z_image_4k,
    qwen_image_4k,
    krea_2_4k,
    flux2_klein_4k,
    sdxl_4k,
    refine,
)
