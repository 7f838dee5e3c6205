"""Memory of a distillation on cards that are not here, calculated, and on the tiny FLUX counted beside it.

    python -m benchmarks.training_memory --output benchmarks/records/training_memory.json

Every figure is ``clear_core.distill.estimate``'s: the real step, run without numbers. Nothing ran on a card.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clear_core.distill.bases import quantise
from clear_core.distill.config import TrainConfig
from clear_core.distill.estimate import Estimate, counted, estimate
from clear_core.distill.offload import offload_blocks
from clear_core.distill.pair import Pair
from clear_core.families import IN_DIFFUSERS
from demo.tiny_flux.model import CONFIG
from demo.tiny_flux.weights import load_tiny_flux

from .timing import write_record

RECORD = Path(__file__).with_name("records") / "training_memory.json"

GB = 10**9
CARDS = (12, 16, 24, 32, 48, 80)
APART = 1.0
"""GB that a card needs besides: the driver's context, and memory that fragments."""

RADIUS = 16


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: As the table has it.
        settings: Of ``TrainConfig``.
        offload: Whether the blocks' weights stay on the CPU. Activations are recomputed in every way, but Chroma's.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    offload: bool = False


FULL = Way("whole weights")
EIGHT_BIT = Way("whole weights, 8-bit AdamW", {"optimizer": "adamw8bit"})
FULL_OFFLOAD = Way("whole weights, offload", offload=True)
FULL_FP8 = Way("whole weights, fp8 base, 8-bit AdamW", {"optimizer": "adamw8bit", "base": "fp8"})
RANK = Way("rank 64", {"rank": 64})
RANK_FP8 = Way("rank 64, fp8 base", {"rank": 64, "base": "fp8"})
RANK_NF4 = Way("rank 64, nf4 base", {"rank": 64, "base": "nf4"})
RANK_OFFLOAD = Way("rank 64, offload", {"rank": 64}, offload=True)

SD35_LARGE: dict[str, Any] = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
"""Sizes of SD3.5 Large; the class's own are those of SD3's smallest."""

MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[Way, ...]]] = {
    "FLUX.1-dev": (
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        (512, 1024),
        (FULL, EIGHT_BIT, FULL_OFFLOAD, FULL_FP8, RANK, RANK_FP8, RANK_NF4, RANK_OFFLOAD),
    ),
    "SD3.5 Large": ("SD3Transformer2DModel", SD35_LARGE, (1024,), (FULL, EIGHT_BIT, RANK, RANK_FP8, RANK_NF4)),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}, (1024,), (RANK_FP8, RANK_NF4, RANK_OFFLOAD)),
    "FLUX.2-dev": ("Flux2Transformer2DModel", {}, (1024,), (RANK_FP8, RANK_NF4, RANK_OFFLOAD)),
}
"""Class in diffusers, sizes beside the class's own, sides of the pictures in pixels, and the ways."""


def estimated(name: str, side: int, way: Way) -> dict[str, Any]:
    """One row of the record."""
    import diffusers

    kind, sizes, _, _ = MODELS[name]
    family = next(each for each in IN_DIFFUSERS if each.diffusers.transformer == kind)
    build: Callable[[], Any] = lambda: getattr(diffusers, kind)(**sizes)  # noqa: E731
    found = estimate(
        build,
        TrainConfig(radius=RADIUS, **way.settings),
        size=(side, side),
        text_tokens=family.text_tokens,
        dtype=torch.bfloat16,
        checkpointing=True,
        offload=way.offload,
    )
    return {
        "model": name,
        "side": side,
        "way": way.name,
        "text_tokens": family.text_tokens,
        "peak": found.peak,
        "base": found.base,
        "trained": found.trained,
        "host": found.host,
    }


TINY_SIZE, TINY_TEXT = (256, 384), 32

TINY_WAYS: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "whole weights": ({}, {}),
    "rank 16": ({"rank": 16}, {}),
    "rank 16, fp8 base": ({"rank": 16, "base": "fp8"}, {"checkpointing": True}),
    "rank 16, nf4 base": ({"rank": 16, "base": "nf4"}, {"checkpointing": True}),
    "whole weights, 8-bit AdamW": ({"optimizer": "adamw8bit"}, {}),
    "whole weights, recomputed, batch 2": ({"batch": 2}, {"checkpointing": True}),
    "rank 16, offload": ({"rank": 16}, {"offload": True}),
    "rank 16, offload of nf4": ({"rank": 16, "base": "nf4"}, {"offload": True}),
}
"""Ways that are estimated and counted on the tiny FLUX: settings, and what ``estimate`` is told besides."""


def tiny(name: str) -> tuple[Estimate, Estimate]:
    """(estimated, counted) memory of the tiny FLUX's step.

    Counted is the real step on this CPU, with the weights of the tiny FLUX. Windows are left out of both: a window's
    kernel on a card keeps as much as fused dense attention does, and "gather" on a CPU keeps more.
    """
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    values, options = TINY_WAYS[name]
    config = TrainConfig(radius=8, **values)
    said = estimate(
        lambda: FluxTransformer2DModel(**CONFIG),
        config,
        size=TINY_SIZE,
        text_tokens=TINY_TEXT,
        dtype=torch.bfloat16,
        norms=False,
        **options,
    )
    model: Any = load_tiny_flux()
    pair = Pair(model.to(torch.bfloat16), config.spec, rank=config.rank)
    pair.handle.remove()
    if options:
        model.enable_gradient_checkpointing()
    quantise(pair, config.base)
    cpu = torch.device("cpu")
    on_host = offload_blocks(model, cpu) if options.get("offload") else []
    return said, counted(pair, config, TINY_SIZE, TINY_TEXT, cpu, on_host)


def rows() -> list[str]:
    """The table of the page, from the record."""
    lines = [
        "| model | pictures | what is trained | peak on the card | of it base, trained | CPU memory | smallest card |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in json.loads(RECORD.read_text(encoding="utf-8"))["results"]:
        if "counted" in row:
            continue
        peak = row["peak"] / GB
        card = next((f"{size} GB" for size in CARDS if size >= peak + APART), f"more than {CARDS[-1]} GB")
        host = f"{row['host'] / GB:.1f}" if row["host"] else "-"
        lines.append(
            f"| {row['model']} | {row['side']} x {row['side']} | {row['way']} | {peak:.1f} GB | "
            f"{row['base'] / GB:.1f}, {row['trained'] / GB:.1f} | {host} | {card} |"
        )
    return lines


def tiny_rows() -> list[str]:
    """The tiny FLUX's part, from the record."""
    lines = ["| tiny FLUX | estimated | counted |", "| --- | --- | --- |"]
    for row in json.loads(RECORD.read_text(encoding="utf-8"))["results"]:
        if "counted" in row:
            lines.append(f"| {row['way']} | {row['peak'] / 1e6:.1f} MB | {row['counted'] / 1e6:.1f} MB |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RECORD)
    options = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    made: list[dict[str, Any]] = []
    for name, (_, _, sides, ways) in MODELS.items():
        for side in sides:
            for way in ways:
                made.append(estimated(name, side, way))
                print(f"{name}, {side} px, {way.name}: {made[-1]['peak'] / GB:.1f} GB", flush=True)
    for name in TINY_WAYS:
        said, found = tiny(name)
        made.append({"model": "tiny FLUX", "way": name, "peak": said.peak, "counted": found.peak})
        print(f"tiny FLUX, {name}: {said.peak / found.peak:.3f} of the counted {found.peak / 1e6:.1f} MB", flush=True)
    write_record(options.output, torch.device("cpu"), {"batch": 1, "radius": RADIUS}, made)


if __name__ == "__main__":
    main()
