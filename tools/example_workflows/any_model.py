"""The example workflows for other models than FLUX.1: from text to 4K, and a picture refined after another upscaler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .graph import Graph
from .models import (
    ESRGAN,
    FLUX2_KLEIN,
    FLUX2_VAE,
    KREA2,
    KREA2_TEXT,
    QWEN3,
    QWEN_IMAGE,
    QWEN_IMAGE_TEXT,
    QWEN_IMAGE_VAE,
    SDXL,
    VAE,
    Z_IMAGE,
    Model,
)
from .node import Node
from .parts import ANY_PICTURE, SCENE, result

WITHOUT_WINDOWS = (
    "No **CLEAR Attention** here: nobody has distilled windows for this model yet, and **CLEAR Upscale** works without "
    "it. Large stages then run in tiles that know where in the picture they lie."
)


@dataclass(frozen=True)
class Base:
    """A model as ComfyUI's own template uses it.

    Attributes:
        title: For people.
        stem: Of the example's name.
        model: Its file; a checkpoint if ``text`` is None.
        text: File of its text encoder, and the loader's type for it.
        vae: File of its VAE.
        size: (width, height) of the small picture in px.
        latent: Kind of the node that makes its empty latent.
        sampling: Widgets of its samplers: steps, cfg, sampler_name, scheduler.
        shift: Of its noise levels, by a node; None for the model's own.
        negative: Its negative prompt; None where cfg is 1.
        upscale_by: To about 4K.
        needs: First ComfyUI that is known to run it.
    """

    title: str
    stem: str
    model: Model
    text: tuple[Model, str] | None
    vae: Model | None
    size: tuple[int, int] = (1280, 720)
    latent: str = "EmptySD3LatentImage"
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])
    shift: float | None = None
    negative: str | None = None
    upscale_by: float = 3.0
    needs: str | None = None

    @property
    def models(self) -> list[Model]:
        """All of its files."""
        return [file for file in (self.model, self.text and self.text[0], self.vae) if file]


Z_IMAGE_TURBO = Base(
    "Z-Image-Turbo",
    "z_image_turbo",
    Z_IMAGE,
    (QWEN3, "lumina2"),
    VAE,
    sampling={"steps": 8, "sampler_name": "res_multistep"},
    shift=3.0,
)
QWEN = Base(
    "Qwen-Image",
    "qwen_image",
    QWEN_IMAGE,
    (QWEN_IMAGE_TEXT, "qwen_image"),
    QWEN_IMAGE_VAE,
    sampling={"steps": 30, "cfg": 4.0},
    shift=3.1,
    negative="low resolution, low quality, deformed limbs, oversaturated, blurred text",
)
KREA = Base(
    "Krea 2 Turbo", "krea_2", KREA2, (KREA2_TEXT, "krea2"), QWEN_IMAGE_VAE, sampling={"steps": 8}, needs="0.33.0"
)
KLEIN = Base(
    "FLUX.2 klein",
    "flux2_klein",
    FLUX2_KLEIN,
    (QWEN3, "flux2"),
    FLUX2_VAE,
    latent="EmptyFlux2LatentImage",
    sampling={"steps": 4},
)
SDXL_BASE = Base(
    "SDXL",
    "sdxl",
    SDXL,
    None,
    None,
    size=(1344, 768),
    latent="EmptyLatentImage",
    sampling={"steps": 25, "cfg": 7.0, "scheduler": "normal"},
    negative="text, watermark, blurry",
)


@dataclass(frozen=True)
class Loaded:
    """A base in a graph: its nodes, and (node, output) of what it gives."""

    nodes: list[Node]
    model: tuple[Node, str]
    clip: tuple[Node, str]
    vae: tuple[Node, str]


def load(graph: Graph, base: Base) -> Loaded:
    """Loaders, and the shift where the model has one."""
    if base.text is None or base.vae is None:
        checkpoint = graph.add("CheckpointLoaderSimple", models=[base.model], ckpt_name=base.model.name)
        return Loaded([checkpoint], (checkpoint, "MODEL"), (checkpoint, "CLIP"), (checkpoint, "VAE"))
    file, kind = base.text
    model = graph.add("UNETLoader", models=[base.model], unet_name=base.model.name)
    clip = graph.add("CLIPLoader", models=[file], clip_name=file.name, type=kind)
    vae = graph.add("VAELoader", models=[base.vae], vae_name=base.vae.name)
    nodes = [model, clip, vae]
    if base.shift is not None:
        title = f"Shift: {base.shift:g}"
        nodes.append(graph.add("ModelSamplingAuraFlow", title=title, model=model["MODEL"], shift=base.shift))
        return Loaded(nodes, (nodes[-1], "MODEL"), (clip, "CLIP"), (vae, "VAE"))
    return Loaded(nodes, (model, "MODEL"), (clip, "CLIP"), (vae, "VAE"))


def prompts(graph: Graph, base: Base, loaded: Loaded, text: str) -> list[Node]:
    """The prompt, and the negative one: with cfg 1 its zeros."""
    clip = loaded.clip[0][loaded.clip[1]]
    prompt = graph.add("CLIPTextEncode", title="Prompt", clip=clip, text=text)
    if base.negative is None:
        return [prompt, graph.add("ConditioningZeroOut", conditioning=prompt["CONDITIONING"])]
    return [prompt, graph.add("CLIPTextEncode", title="Negative prompt", clip=clip, text=base.negative)]


def note_text(heading: str, paragraphs: Sequence[str], models: Sequence[Model]) -> str:
    """As :func:`.parts.about`, of models that are not FLUX.1's."""
    listed = "\n".join(f"- {model.folder}: {model.listed}" for model in models)
    models_part = ["### Models, by folder", listed, "ComfyUI offers what is missing."]
    return "\n\n".join([f"## {heading}", *paragraphs, *models_part])


def text_to_4k(base: Base) -> Graph:
    """From text to a small picture by the model's own template, and to about 4K in stages."""
    graph = Graph(f"clear_{base.stem}_to_4k", needs=base.needs)
    loaded = load(graph, base)
    prompt, negative = prompts(graph, base, loaded, SCENE)
    width, height = base.size
    empty = graph.add(base.latent, title=f"Small size: {width} x {height}", width=width, height=height)
    inputs = {
        "model": loaded.model[0][loaded.model[1]],
        "positive": prompt["CONDITIONING"],
        "negative": negative["CONDITIONING"],
    }
    sampler = graph.add("KSampler", title="Small picture", latent_image=empty["LATENT"], **inputs, **base.sampling)
    vae = loaded.vae[0][loaded.vae[1]]
    picture = graph.add("VAEDecode", samples=sampler["LATENT"], vae=vae)
    upscale = graph.add(
        "CLEARUpscale",
        image=picture["IMAGE"],
        vae=vae,
        **inputs,
        upscale_by=base.upscale_by,
        stage_denoise="0.5, 0.35",
        **base.sampling,
    )
    large = f"{round(width * base.upscale_by)} x {round(height * base.upscale_by)}"
    note = graph.note(
        note_text(
            f"{base.title}, from text to {large}",
            [
                "The picture is composed at about one megapixel, where the model is at home. **CLEAR Upscale** makes "
                f"it {base.upscale_by:g} times larger in two stages, and each stage redoes its detail.",
                WITHOUT_WINDOWS,
                "- *stage_denoise* says how much each stage redoes. Lower numbers stay closer to the small picture.\n"
                "- *tile_width* and *tile_height* 0: whole where it fits the card, else the largest tiles that fit. If "
                "memory runs out, set both to 1024.\n"
                "- Sampler, steps and cfg are those of ComfyUI's own template for this model.",
            ],
            base.models,
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", loaded.nodes), ("What to show", [prompt, negative]))
    graph.column(("1. Small", [empty, sampler, picture]))
    graph.column(("2. Large", [upscale]))
    graph.column(("Result", result(graph, upscale, f"CLEAR_{base.stem}_4K")))
    return graph


def refine() -> Graph:
    """A picture made larger by an ESRGAN model, and refined at a low strength."""
    base = Z_IMAGE_TURBO
    graph = Graph("clear_refine_after_esrgan")
    loaded = load(graph, base)
    prompt, negative = prompts(graph, base, loaded, ANY_PICTURE)
    picture = graph.add("LoadImage", title="Your picture")
    esrgan = graph.add("UpscaleModelLoader", models=[ESRGAN], model_name=ESRGAN.name)
    upscale = graph.add(
        "CLEARUpscale",
        image=picture["IMAGE"],
        model=loaded.model[0][loaded.model[1]],
        vae=loaded.vae[0][loaded.vae[1]],
        positive=prompt["CONDITIONING"],
        negative=negative["CONDITIONING"],
        upscale_model=esrgan["UPSCALE_MODEL"],
        upscale_by=4.0,
        stages=1,
        denoise=0.2,
        color_fix="wavelet",
        **base.sampling,
    )
    note = graph.note(
        note_text(
            "Four times as large by ESRGAN, then refined",
            [
                "The upscale model makes the picture larger and sharp; the diffusion model then redoes a little of it, "
                "*denoise* 0.2, which takes away what such models leave behind: smeared leaves, waxy skin, rings.",
                "- *denoise* 0.15 to 0.3 keeps every thing in its place; above, it begins to invent.\n"
                "- **After SeedVR2**, or any other upscaler of a graph: connect its picture to *image*, take the "
                "upscale model off, and set *upscale_by* to 1.\n"
                "- *color_fix* wavelet holds the coarse colours.\n"
                "- Any other model does this too: exchange the loaders, and take its steps, cfg and sampler.",
            ],
            [*base.models, ESRGAN],
        )
    )
    graph.column(("About", [note]))
    graph.column(("Models", [*loaded.nodes, esrgan]))
    graph.column(("Your picture", [picture, prompt, negative]))
    graph.column(("Enlarge and refine", [upscale]))
    graph.column(("Result", result(graph, upscale, "CLEAR_refined")))
    return graph


def z_image_4k() -> Graph:
    return text_to_4k(Z_IMAGE_TURBO)


def qwen_image_4k() -> Graph:
    return text_to_4k(QWEN)


def krea_2_4k() -> Graph:
    return text_to_4k(KREA)


def flux2_klein_4k() -> Graph:
    return text_to_4k(KLEIN)


def sdxl_4k() -> Graph:
    return text_to_4k(SDXL_BASE)
