"""The example workflows: what is in each, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .graph import Graph, Model, Node
from .models import CLIP_L, CONTROLNET, FLUX_DEV, T5, T5_FP8, VAE, clear_weights

SCENE = (
    "A wide alpine valley at first light, a wooden bridge over a clear river, wild flowers in the meadow, snow on "
    "the peaks, every leaf in focus, large format photograph"
)
ANY_PICTURE = "Say here in a sentence or two what your picture shows, and how: photograph, oil painting, pen drawing"

WINDOWS = "Attention in windows"

LICENCE = "FLUX.1-dev and what derives from it, the CLEAR weights among them, are under its non-commercial licence."


@dataclass(frozen=True)
class Parts:
    """What every example begins with."""

    flux: Node
    clip: Node
    vae: Node
    prompt: Node
    guidance: Node

    @property
    def loaders(self) -> list[Node]:
        return [self.flux, self.clip, self.vae]


def begin(graph: Graph, text: str, guidance: float, weight_dtype: str = "default", t5: Model = T5) -> Parts:
    """Loaders and prompt."""
    flux = graph.add("UNETLoader", models=[FLUX_DEV], weight_dtype=weight_dtype)
    clip = graph.add("DualCLIPLoader", models=[CLIP_L, t5], clip_name2=t5.name)
    vae = graph.add("VAELoader", models=[VAE])
    prompt = graph.add("CLIPTextEncode", title="Prompt", clip=clip["CLIP"], text=text)
    return Parts(
        flux, clip, vae, prompt, graph.add("FluxGuidance", conditioning=prompt["CONDITIONING"], guidance=guidance)
    )


def windows(graph: Graph, parts: Parts, stem: str) -> Node:
    """The model with windows."""
    weights = clear_weights(stem)
    return graph.add("CLEARAttention", models=[weights], model=parts.flux["MODEL"], weights_name=weights.name)


def small_picture(graph: Graph, parts: Parts, size: tuple[int, int], title: str) -> tuple[list[Node], list[Node]]:
    """A picture of about one megapixel by the model as it is.

    Returns:
        The nodes that say what to show, and those that make the picture; the last one puts it out.
    """
    width, height = size
    empty = graph.add("EmptySD3LatentImage", title=f"Small size: {width} x {height}", width=width, height=height)
    nothing = graph.add("ConditioningZeroOut", conditioning=parts.prompt["CONDITIONING"])
    sampler = graph.add(
        "KSampler",
        title=title,
        model=parts.flux["MODEL"],
        positive=parts.guidance["CONDITIONING"],
        negative=nothing["CONDITIONING"],
        latent_image=empty["LATENT"],
    )
    picture = graph.add("VAEDecode", samples=sampler["LATENT"], vae=parts.vae["VAE"])
    return [parts.prompt, parts.guidance, empty], [nothing, sampler, picture]


def result(graph: Graph, upscale: Node, prefix: str) -> list[Node]:
    """Saves the picture and shows what was done."""
    return [
        graph.add("SaveImage", images=upscale["image"], filename_prefix=prefix),
        graph.add("PreviewAny", title="What was done", source=upscale["info"]),
    ]


def about(heading: str, *paragraphs: str, models: Sequence[Model]) -> str:
    """The text of a note: heading, paragraphs, models, licence.

    No inline code: the newer front end draws it in blue on blue.
    """
    listed = [f"- {model.folder}: [{model.name}]({model.url}) ({model.weight})" for model in models]
    return "\n\n".join(
        [
            f"## {heading}",
            *paragraphs,
            "### Models, by folder",
            "\n".join(listed),
            "ComfyUI offers what is missing. **Get weights** on CLEAR Attention fetches the CLEAR weights.",
            LICENCE,
        ]
    )


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
            "FLUX is at home at about one megapixel. So the picture is composed there, by the model as it is, and **CLEAR "
            "Upscale** makes it 3 times larger and redoes its detail, in two stages.",
            "In the stages every part of the picture attends to the prompt and to a circle around itself, not to the whole "
            "picture: that is **CLEAR Attention**. It is what keeps 4K affordable without cutting the picture into tiles.",
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


def upscale_any(
    name: str, heading: str, stem: str, guidance: float, paragraphs: Sequence[str], **widgets: object
) -> Graph:
    """Any picture, made larger by the node."""
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
    graph.column(("Result", result(graph, upscale, name.replace("clear", "CLEAR", 1))))
    return graph


def upscale_faithful() -> Graph:
    return upscale_any(
        "clear_upscale_faithful",
        "Any picture, twice as large, faithfully",
        "clear_local_16",
        3.5,
        [
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
            "- The stretched positions (NTK factor 10) and the sharper attention of the recipe are what CLEAR Attention "
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
            "The small picture becomes 6 times as wide and high, in three stages that redo less and less. Each stage is "
            "cut into overlapping tiles of 2048 px, so that memory does not grow with the picture. Tiles are blended at "
            "every step, and each knows where in the whole picture it lies: there are no seams to hide afterwards.",
            "- A large card can do without: *tile_width* and *tile_height* 0 take the whole picture where it fits, else the "
            "largest tiles that fit.\n"
            "- Finished stages are kept: run again with the same settings after an error, or with another last number in "
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
            "A ControlNet that was trained on blurred and damaged pictures (for FLUX the part of the old tile ControlNet) "
            "holds the result to your picture. So *denoise* may be high: much new detail, and still the same picture.",
            "- A ControlNet attends as well, and left as it is would soon cost more than the model. Above 2 megapixels "
            "**CLEAR Attention** gives it the same windows (*controlnet*: auto).\n"
            "- *strength* and *end_percent* on the ControlNet: lower gives FLUX more freedom.\n"
            "- Other FLUX ControlNets work the same way; a Union one wants SetUnionControlNetType (tile) after its loader.\n"
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
            "What **CLEAR Upscale** does, spelled out: enlarge, encode, add noise, denoise with windows, decode, and again. "
            "**CLEAR Attention** is the only node here that is not ComfyUI's own.",
            "- The published recipe says 20 steps at strength 0.7; in ComfyUI's terms these are 14 steps at denoise 0.7.\n"
            "- The shift is FLUX.1-dev's own, 3. The ModelSamplingFlux node is of no use here: its shift grows with the "
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
            "The weights are kept in fp8 (*weight_dtype* on the loader), which halves them, and the text encoder is an fp8 "
            "file. What does not fit the card waits in main memory and is sent over as needed, which takes time. By calculation "
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
            "The same prompt, seed and size twice: by the model as it is, and with windows. Compare the pictures, and the "
            "seconds per step that ComfyUI's log shows. **CLEAR Inspect** then draws the window over the picture, at its "
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
    upscale_paper,
    eight_k,
    controlnet,
    stock_nodes,
    low_vram,
    side_by_side,
)
