"""Prompts of a long session, drawn from a few sizes, models and settings.

Some give pictures; others end in an error, in a simulated lack of memory, or by an interrupt.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from .sampling import Graph
from .soak_graphs import (
    BASES,
    CLEAR,
    IMAGE,
    MODEL,
    NEGATIVE,
    POSITIVE,
    STUDENT,
    TILES,
    TRAINED,
    TRAINED_STUDENT,
    VAE,
    WORK,
    Job,
    common,
    node,
    upscale,
)


def reference() -> Job:
    """The prompt that runs first, in between and last: two stages in tiles with distilled weights."""
    draw = random.Random(0)
    graph = common(draw, BASES[0], weights_name=STUDENT, ntk_factor=10.0, proportional_attention="on")
    return Job("reference", upscale(graph, draw, upscale_by=3.0, **TILES))


def unused() -> Graph:
    """The models of :func:`reference` as they are before a run."""
    graph = {name: reference().graph[name] for name in (MODEL, CLEAR)}
    graph["10"] = node("CLEARInspect", model=[CLEAR, 0])
    return graph


def sampler(draw: random.Random) -> Job:
    graph = common(draw)
    graph[IMAGE] = node("EmptySD3LatentImage", width=draw.choice([80, 112]), height=64, batch_size=draw.choice([1, 2]))
    graph[WORK] = node(
        "KSampler",
        model=[CLEAR, 0],
        positive=[POSITIVE, 0],
        negative=[NEGATIVE, 0],
        latent_image=[IMAGE, 0],
        seed=draw.randrange(2),
        steps=3,
        cfg=draw.choice([1.0, 3.0]),
        sampler_name=draw.choice(["euler", "dpmpp_2m"]),
        scheduler="simple",
        denoise=1.0,
    )
    graph["8"] = node("SaveLatent", samples=[WORK, 0], filename_prefix="latents/soak")
    return Job("sampler", graph, files=1)


def without_clear(draw: random.Random) -> Job:
    graph = common(draw)
    graph[WORK] = node("VAEEncode", pixels=[IMAGE, 0], vae=[VAE, 0])
    job = sampler(draw)
    del graph[CLEAR]
    inputs = {**job.graph[WORK]["inputs"], "model": [MODEL, 0], "latent_image": [WORK, 0]}
    graph["8"] = node("KSampler", **inputs)
    graph["9"] = node("SaveLatent", samples=["8", 0], filename_prefix="latents/soak")
    return Job("without_clear", graph, files=1)


def one_stage(draw: random.Random) -> Job:
    widgets = {"color_fix": draw.choice(["none", "wavelet"]), "sampler_name": draw.choice(["euler", "heun"])}
    return Job("one_stage", upscale(common(draw, ntk_factor=draw.choice([0.0, 4.0])), draw, **widgets))


def two_stages(draw: random.Random) -> Job:
    return Job(
        "two_stages", upscale(common(draw), draw, upscale_by=3.0, stage_denoise=draw.choice(["0.7, 0.5", "0.6"]))
    )


def tiles(draw: random.Random) -> Job:
    return Job("tiles", upscale(common(draw), draw, **TILES | {"tile_overlap": draw.choice([0, 32])}))


def negative(draw: random.Random) -> Job:
    return Job("negative", upscale(common(draw), draw, cfg=3.0, negative=[NEGATIVE, 0], **TILES))


def batch(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("RepeatImageBatch", image=[IMAGE, 0], amount=2)
    return Job("batch", upscale(graph, draw, image=["10", 0]), files=3)


def one_by_one(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("ImageInvert", image=[IMAGE, 0])
    graph["11"] = node("ImageBatch", image1=[IMAGE, 0], image2=["10", 0])
    graph["12"] = node("RebatchImages", images=["11", 0], batch_size=1)
    return Job("one_by_one", upscale(graph, draw, image=["12", 0], upscale_by=draw.choice([2.0, 3.0])), files=4)


def mask(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("LoadImageMask", image="left.png", channel="red")
    return Job("mask", upscale(graph, draw, mask=["10", 0], **draw.choice([{}, TILES])))


def upscale_model(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("UpscaleModelLoader", model_name="small.safetensors")
    return Job("upscale_model", upscale(graph, draw, upscale_model=["10", 0]))


def control(draw: random.Random) -> Job:
    graph = common(draw, controlnet=draw.choice(["auto", "on"]))
    graph["10"] = node("ControlNetLoader", control_net_name="xlabs.safetensors")
    graph["11"] = node(
        "ControlNetApplyAdvanced",
        positive=[POSITIVE, 0],
        negative=[NEGATIVE, 0],
        control_net=["10", 0],
        image=[IMAGE, 0],
        strength=0.8,
        start_percent=0.0,
        end_percent=1.0,
    )
    return Job("control", upscale(graph, draw, positive=["11", 0], **draw.choice([{}, TILES])))


def easy_cache(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node(
        "EasyCache", model=[CLEAR, 0], reuse_threshold=0.3, start_percent=0.1, end_percent=0.95, verbose=False
    )
    return Job("easy_cache", upscale(graph, draw, model=["10", 0], steps=5, **draw.choice([{}, TILES])))


def reference_latents(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("VAEEncode", pixels=[IMAGE, 0], vae=[VAE, 0])
    graph["11"] = node("ReferenceLatent", conditioning=[POSITIVE, 0], latent=["10", 0])
    return Job("reference_latents", upscale(graph, draw, positive=["11", 0], **draw.choice([{}, TILES])))


def inspect(draw: random.Random) -> Job:
    graph = common(draw)
    graph[WORK] = node("CLEARInspect", model=[CLEAR, 0], image=[IMAGE, 0], upscale_by=draw.choice([1.0, 4.0]))
    graph["8"] = node("SaveImage", images=[WORK, 0], filename_prefix="soak")
    return Job("inspect", graph, files=1, repeats=False)  # Its sheet shows the time of the last run.


def two_clear_nodes(draw: random.Random) -> Job:
    graph = common(draw)
    graph["10"] = node("CLEARAttention", model=[CLEAR, 0], weights_name=STUDENT, strength=0.5)
    return Job("two_clear_nodes", upscale(graph, draw, model=["10", 0]))


def trained(draw: random.Random) -> Job:
    graph = common(draw, TRAINED, weights_name=draw.choice(["none", TRAINED_STUDENT]))
    graph[VAE] = node("TinyFluxTextAndPixels")
    graph[POSITIVE] = node("CLIPTextEncode", clip=[VAE, 0], text="a big red plain ball left, sea day")
    del graph[NEGATIVE]
    return Job("trained", upscale(graph, draw, vae=[VAE, 1], **draw.choice([{}, TILES])))


def faulty_model(draw: random.Random, kind: str, **widgets: Any) -> Graph:
    graph = common(draw)
    graph["10"] = node("ClearTestFault", model=[CLEAR, 0], kind=kind, call=draw.choice([1, 2, 3]))
    return upscale(graph, draw, model=["10", 0], **widgets)


def error_in_a_block(draw: random.Random) -> Job:
    graph = faulty_model(draw, "error", steps=4, **draw.choice([{}, TILES]))
    return Job("error_in_a_block", graph, "error", words=("a test's own error",))


def memory_in_a_block(draw: random.Random) -> Job:
    graph = faulty_model(draw, "memory", steps=4, **draw.choice([{}, TILES]))
    return Job("memory_in_a_block", graph, "error", words=("Out of memory while denoising stage 1", "tile_width"))


def interrupt_in_a_block(draw: random.Random) -> Job:
    graph = faulty_model(draw, "interrupt", steps=4, **draw.choice([{}, TILES]))
    return Job("interrupt_in_a_block", graph, "interrupt")


def interrupt_beside_a_control(draw: random.Random) -> Job:
    graph = control(draw).graph
    graph["12"] = node("ClearTestFault", model=[CLEAR, 0], kind="interrupt", call=2)
    graph[WORK]["inputs"].update(model=["12", 0], steps=4)
    return Job("interrupt_beside_a_control", graph, "interrupt")


def memory_in_the_vae(draw: random.Random) -> Job:
    graph, place = common(draw), draw.choice(["encode", "decode"])
    graph["10"] = node("ClearTestFaultyPixels", vae=[VAE, 0], kind="memory", place=place)
    words = (f"Out of memory while {place.removesuffix('e')}ing stage 1", "tile_width")
    return Job("memory_in_the_vae", upscale(graph, draw, vae=["10", 0], upscale_by=3.0), "error", words=words)


def interrupt_in_the_vae(draw: random.Random) -> Job:
    graph, place = common(draw), draw.choice(["encode", "decode"])
    graph["10"] = node("ClearTestFaultyPixels", vae=[VAE, 0], kind="interrupt", place=place)
    return Job("interrupt_in_the_vae", upscale(graph, draw, vae=["10", 0]), "interrupt")


def no_negative(draw: random.Random) -> Job:
    return Job("no_negative", upscale(common(draw), draw, cfg=3.0), "error", words=("cfg is 3", "negative"))


def weights_of_another_width(draw: random.Random) -> Job:
    graph = common(draw, weights_name="clear_local_8.safetensors")
    return Job("weights_of_another_width", upscale(graph, draw), "error", words=("64", "256"))


def refused(draw: random.Random) -> Job:
    return Job("refused", upscale(common(draw, backend="warp"), draw), "refused", words=("warp",))


KINDS: tuple[Callable[[random.Random], Job], ...] = (
    sampler,
    without_clear,
    one_stage,
    two_stages,
    tiles,
    negative,
    batch,
    one_by_one,
    mask,
    upscale_model,
    control,
    easy_cache,
    reference_latents,
    inspect,
    two_clear_nodes,
    trained,
    error_in_a_block,
    memory_in_a_block,
    interrupt_in_a_block,
    interrupt_beside_a_control,
    memory_in_the_vae,
    interrupt_in_the_vae,
    no_negative,
    weights_of_another_width,
    refused,
)


def prompts(seed: int) -> Iterator[Job]:
    """Without an end: every kind once in each round, in random order, with settings that repeat now and then."""
    draw = random.Random(seed)
    for _ in itertools.count():
        for kind in draw.sample(KINDS, len(KINDS)):
            yield kind(random.Random(draw.randrange(4)))
