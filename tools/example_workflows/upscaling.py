"""The example workflows that enlarge: any picture, in stages and tiles, with a ControlNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .graph import Graph
from .models import CLIP_L, CONTROLNET, FLUX_DEV, T5, VAE, clear_weights
from .node import App
from .parts import ANY_PICTURE, SCENE, WINDOWS, about, begin, result, small_picture, windows


def upscale_any(
    name: str, heading: str, stem: str, guidance: float, paragraphs: Sequence[str], **widgets: Any
) -> Graph:
    """Any picture, made larger by the node; as an app if the name ends with ``.app``."""
    graph = Graph(name)
    parts = begin(graph, ANY_PICTURE, guidance)
    picture = graph.add("LoadImage", title="Your picture")
    clear = windows(graph, parts, stem)
    upscale = graph.add(
        "CLEARUpscale",
        image=picture["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        **widgets,
    )
    note = graph.note(about(heading, *paragraphs, models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights(stem)]))
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), (WINDOWS, [clear]))
    graph.column(("Your picture", [picture, parts.prompt, parts.guidance]))
    graph.column(("Enlarge", [upscale]))
    shown = result(graph, upscale, name.removesuffix(".app").replace("clear", "CLEAR", 1))
    graph.column(("Result", shown))
    if name.endswith(".app"):
        # The form shows about 32 letters of each.
        inputs = {
            (picture, "image"): "Your picture",
            (parts.prompt, "text"): "What the picture shows",
            (upscale, "upscale_by"): "Size: times as wide and high",
            (upscale, "denoise"): "Strength: 0.2 little, 0.5 a lot",
        }
        graph.app = App(inputs, shown[:1])
    return graph


def upscale_faithful(name: str = "clear_upscale_faithful", *paragraphs: str) -> Graph:
    return upscale_any(
        name,
        "Any picture, twice as large, faithfully",
        "clear_local_16",
        3.5,
        [
            *paragraphs,
            "The picture is enlarged, a little noise is added, and FLUX takes it away again. At *denoise* 0.35 things "
            "stay what and where they are; texture and edges become crisp.",
            "- Say in the prompt what the picture shows; the better it fits, the better the detail.\n"
            "- *denoise* 0.2 changes hardly anything, 0.5 begins to invent.\n"
            "- *upscale_by* above 2 goes in stages, each with the same *denoise*, since *stage_denoise* is empty.\n"
            "- An upscale model (ESRGAN and the like) on *upscale_model* gives a sharper start.\n"
            "- If colours drift, set *color_fix* to wavelet.",
        ],
        upscale_by=2.0,
        steps=10,
        denoise=0.35,
        stage_denoise="",
    )


def upscale_faithful_app() -> Graph:
    return upscale_faithful(
        "clear_upscale_faithful.app",
        "This is the graph behind the app: ComfyUI's App mode shows the picture, its prompt, the size and the strength "
        "alone. Whatever you change here, the app does as well.",
    )


def upscale_paper() -> Graph:
    return upscale_any(
        "clear_upscale_as_in_the_paper",
        "Any picture, four times as large, as the authors do it",
        "clear_local_8_down_4",
        7.5,
        [
            "The recipe of CLEAR's authors ([paper](https://arxiv.org/abs/2412.16112), "
            "[code](https://github.com/Huage001/CLEAR)): double the size, redo at strength 0.7 with guidance 7.5, and "
            "again. It invents a lot of detail: meant for pictures that FLUX itself made, with their own prompt.",
            "- 20 steps at strength 0.7 are, in ComfyUI's terms, 14 *steps* at *denoise* 0.7.\n"
            "- The stretched positions (NTK factor 10) and the sharper attention of the recipe are what CLEAR "
            "Attention "
            "does by itself above 2 megapixels.\n"
            "- These weights see, beside the circle, a coarse overview of the whole picture. Its cost grows with the "
            "square of the area: take *clear_local_16* beyond 4K.",
        ],
        upscale_by=4.0,
        steps=14,
        denoise=0.7,
        stage_denoise="",
    )


def eight_k() -> Graph:
    graph = Graph("clear_8k_in_stages_with_tiles")
    parts = begin(graph, SCENE, 3.5)
    prompt, small = small_picture(graph, parts, (1280, 720), "Small picture: the model as it is")
    clear = windows(graph, parts, "clear_local_16")
    upscale = graph.add(
        "CLEARUpscale",
        image=small[-1]["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        upscale_by=6.0,
        steps=14,
        stage_denoise="0.7, 0.5, 0.35",
        tile_width=2048,
        tile_height=2048,
        tile_overlap=256,
        color_fix="wavelet",
    )
    note = graph.note(
        about(
            "7680 x 4320, in three stages",
            "The small picture becomes 6 times as wide and high, in three stages that redo less and less. Each stage "
            "is "
            "cut into overlapping tiles of 2048 px, so that memory does not grow with the picture. Tiles are blended "
            "at "
            "every step, and each knows where in the whole picture it lies: there are no seams to hide afterwards.",
            "- A large card can do without: *tile_width* and *tile_height* 0 take the whole picture where it fits, "
            "else the "
            "largest tiles that fit.\n"
            "- Finished stages are kept: run again with the same settings after an error, or with another last number "
            "in "
            "*stage_denoise*, and it goes on after them.\n"
            "- *color_fix* wavelet holds the coarse colours to those of the stage before.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, clear_weights("clear_local_16")],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", parts.loaders), ("What to show", prompt))
    graph.column(("1. Small", small), (WINDOWS, [clear]))
    graph.column(("2. Large, in three stages and in tiles", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_8K")))
    return graph


def controlnet() -> Graph:
    graph = Graph("clear_controlnet_tile_4k")
    parts = begin(graph, ANY_PICTURE, 3.5)
    loader = graph.add("ControlNetLoader", models=[CONTROLNET], control_net_name=CONTROLNET.name)
    picture = graph.add("LoadImage", title="Your picture")
    nothing = graph.add("ConditioningZeroOut", conditioning=parts.prompt["CONDITIONING"])
    hold = graph.add(
        "ControlNetApplyAdvanced",
        title="Hold to the picture",
        strength=0.6,
        end_percent=0.8,
        positive=parts.guidance["CONDITIONING"],
        negative=nothing["CONDITIONING"],
        control_net=loader["CONTROL_NET"],
        image=picture["IMAGE"],
        vae=parts.vae["VAE"],
    )
    clear = windows(graph, parts, "clear_local_16")
    upscale = graph.add(
        "CLEARUpscale",
        image=picture["IMAGE"],
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=hold["positive"],
        negative=hold["negative"],
        upscale_by=4.0,
        steps=14,
        denoise=0.7,
        stage_denoise="",
    )
    note = graph.note(
        about(
            "Four times as large, held by a ControlNet",
            "A ControlNet that was trained on blurred and damaged pictures (for FLUX the part of the old tile "
            "ControlNet) "
            "holds the result to your picture. So *denoise* may be high: much new detail, and still the same picture.",
            "- A ControlNet attends as well, and left as it is would soon cost more than the model. Above 2 megapixels "
            "**CLEAR Attention** gives it the same windows (*controlnet*: auto).\n"
            "- *strength* and *end_percent* on the ControlNet: lower gives FLUX more freedom.\n"
            "- Other FLUX ControlNets work the same way; a Union one wants SetUnionControlNetType (tile) after its "
            "loader.\n"
            f"- The file is called *{CONTROLNET.url.rsplit('/', 1)[1]}* where it lies; save it as *{CONTROLNET.name}*.",
            models=[FLUX_DEV, CLIP_L, T5, VAE, CONTROLNET, clear_weights("clear_local_16")],
        ),
        height=660,
    )
    graph.column(("About", [note]))
    graph.column(("Models", [*parts.loaders, loader]), (WINDOWS, [clear]))
    graph.column(("Your picture", [picture, parts.prompt, parts.guidance]), ("ControlNet", [nothing, hold]))
    graph.column(("Enlarge", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_ControlNet_4K")))
    return graph
