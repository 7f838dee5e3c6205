"""Measures the ways of one size: kept attention mass on a dense run, and the error of the flow."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, token_grid
from clear_core.inspection.locality.attentions import Attend, Attentions, BlockTokens
from clear_core.inspection.locality.mass import weights_of

from ...tiny_flux.caption import TOKENS
from ...tiny_flux.data import draw_latents
from ...tiny_flux.evaluate import seeded_noise
from ..guidance_run import several_things
from ..kept import begin, kept
from ..measure import flow_at
from ..subject import COMMITTED, Subject
from .kitchen import NAME, kitchen, kitchen_version
from .plans import Extent, Size
from .ways import Way


class Bench:
    """Drawn scenes of one size with noise, and a model's calls for them."""

    def __init__(self, size: Size, subject: Subject) -> None:
        self.size, self.subject = size, subject
        self.scenes, shape = several_things(size.scenes), (size.side, size.side)
        self.latents, self.noise = draw_latents(self.scenes, shape), seeded_noise(size.scenes, shape, 7)
        self.layout = SequenceLayout(TOKENS, token_grid(size.side // 8, size.side // 8))

    def flows(self, attend: Attend, distilled: ClearSpec | None) -> Tensor:
        """(levels * scenes, 16, h, w) by an attention, on the model's own weights or on distilled ones."""
        model = self.subject.dense() if distilled is None else self.subject.distilled(distilled)
        with Attentions(model) as attentions, attentions.by(attend):
            return torch.cat(
                [flow_at(model, self.scenes, self.latents, self.noise, level) for level in self.size.levels]
            )

    def probed(self, distilled: ClearSpec | None) -> list[BlockTokens]:
        """Query and key of every attention in every call of a dense run."""
        found: list[BlockTokens] = []

        def watched(tokens: BlockTokens) -> Tensor:
            found.append(tokens)
            return tokens.dense()

        self.flows(watched, distilled)
        return found


def kept_mass(ways: Sequence[Way], probed: Sequence[BlockTokens]) -> Tensor:
    """(ways, 3) float64: share of dense attention's weights on the keys seen exactly, their number, and averages.

    All three are means over image queries, heads, blocks and calls.
    """
    total = torch.zeros(len(ways), 3, dtype=torch.float64)
    for tokens in probed:
        weights = weights_of(tokens.q, tokens.k, tokens.layout, tokens.scale, torch.arange(tokens.layout.image))
        for row, way in zip(total, ways, strict=True):
            seen = way.seen(tokens)
            mass = (weights * seen).sum(-1, dtype=torch.float64).mean()
            row += torch.stack([mass, seen.sum(-1).double().mean(), torch.tensor(way.averages(tokens)).double()])
    return total / len(probed)


def rows(folder: Path, size: Size, subject: Subject) -> Iterator[dict[str, Any]]:
    """A row for each way of a size.

    Args:
        folder: Keeps flows and masses.
        size: What is run.
        subject: The model and its windows.
    """
    bench = Bench(size, subject)
    with torch.inference_mode():
        own = bench.probed(None)
        ways = [way.fitted(own) for way in size.ways(subject)]
    plain = [way for way in ways if way.distilled is None]
    file = folder / f"{size.side}, attention.safetensors"
    masses = dict(zip(plain, kept(file, lambda: {"mass": kept_mass(plain, own)})["mass"].tolist(), strict=True))
    dense: Tensor | None = None
    for way in ways:
        weights = "as they are" if way.distilled is None else "distilled"

        def make(way: Way = way) -> dict[str, Tensor]:
            made = {"flow": bench.flows(way.attend, way.distilled)}
            return made if way in masses else made | {"mass": kept_mass([way], bench.probed(way.distilled))[0]}

        found = kept(folder / f"{size.side}, {way.name}, {weights}.safetensors", make)
        flow = found["flow"]
        dense = flow if dense is None else dense
        mass, keys, averages = masses[way] if way in masses else found["mass"].tolist()
        errors = (flow - dense).square().sum((1, 2, 3)) / dense.square().sum((1, 2, 3))
        yield {
            "way": way.name,
            "weights": weights,
            "radius": way.radius,
            "keys": keys,
            "averages": averages,
            "mass": mass,
            "errors": errors.tolist(),
        }


def make_record(
    folder: Path, extent: Extent, subject: Subject = COMMITTED, on_row: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measures what the folder lacks.

    Args:
        folder: Keeps what is measured, and takes one subject, one extent and one version of comfy-kitchen.
        extent: What is run.
        subject: The model and its windows.
        on_row: Called after each row.

    Raises:
        ValueError: comfy-kitchen is missing or too old, or the folder holds something else.
    """
    kitchen()
    identity = asdict(extent) | subject.identity | {NAME: kitchen_version()}
    begin(folder, identity)
    sizes: list[dict[str, Any]] = []
    for size in extent.sizes:
        found: list[dict[str, Any]] = []
        for row in rows(folder, size, subject):
            found.append(row)
            on_row()
        sizes.append(asdict(size) | {"tokens": Bench(size, subject).layout.length, "rows": found})
    return {
        "model": identity["model"],
        "torch": torch.__version__,
        NAME: identity[NAME],
        "machine": platform.machine(),
        "sizes": sizes,
    }
