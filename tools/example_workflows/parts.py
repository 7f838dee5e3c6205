"""What the example workflows share: loaders and prompt, windows, a small picture, the result, the note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph
from .models import CLIP_L, FLUX_DEV, T5, VAE, Model, clear_weights
from .node import Node

SCENE = (
    "A wide alpine valley at first light, a wooden bridge over a clear river, wild flowers in the meadow, snow on "
    "the peaks, every leaf in focus, large format photograph"
)
ANY_PICTURE = "Say here in a sentence or two what your picture shows, and how: photograph, oil painting, pen drawing"

WINDOWS = "Attention in windows"

LICENCE = "FLUX.1-dev and what derives from it, the CLEAR weights among them, are under its non-commercial licence."


@dataclass(frozen=True)
class Parts:
    """Loaders and prompt, the start of every example."""

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
    """A picture of about one megapixel by the model without windows.

    Returns:
        The nodes of the prompt, and those that make the picture; the last one outputs it.
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
    """Saves the picture and shows the info text."""
    return [
        graph.add("SaveImage", images=upscale["image"], filename_prefix=prefix),
        graph.add("PreviewAny", title="What was done", source=upscale["info"]),
    ]


def about(heading: str, *paragraphs: str, models: Sequence[Model]) -> str:
    """The text of a note: heading, paragraphs, models, licence.

    No inline code: the newer front end draws it in blue on blue.
    """
    listed = [f"- {model.folder}: {model.listed}" for model in models]
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
