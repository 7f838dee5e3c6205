"""A whole measurement: every part at every noise level of every picture, then the proposal; it goes on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...cost import clear_pairs, dense_pairs
from ...dense_blocks import costliest_blocks, dense_blocks_text
from ...distill.disk import no_half_file
from .attentions import Attend, Attentions
from .kept import Kept
from .measure import Subject, in_windows
from .summary import Record, block_costs, mean

FLOOR = "floor"
"""What is measured beside the parts if errors are: the error of rounding."""

MAPS = "maps.safetensors"

CHECKS = 2
"""Calls that measure a proposal for one picture at one noise level: windows everywhere, and with its dense blocks."""


class Run:
    """Measures a subject.

    Args:
        subject: Model, pictures and settings.
        folder: Keeps what is done; None keeps nothing.
        about: What a record says of model, pictures and machine, ready for JSON; a folder is compared by it.
        on_calls: Told how many calls of the model are done, made now or kept from before.

    Attributes:
        total: Calls of the model in all.
        maps: By attention the maps of the chosen query, (heads, h, w) float16; empty before :meth:`record`.

    Raises:
        ValueError: The folder holds results of something else.
    """

    def __init__(
        self,
        subject: Subject,
        folder: Path | None = None,
        about: Record | None = None,
        on_calls: Callable[[int], object] = lambda _count: None,
    ) -> None:
        self.subject, self.folder, self.on_calls = subject, folder, on_calls
        self.about: Record = about or {}
        settings = subject.settings
        self.kept = Kept(folder, {**self.about, "grid": list(subject.grid), **settings.measured})
        self.maps: dict[str, Tensor] = {}
        self._places = [(picture, level) for picture in range(len(subject.pictures)) for level in settings.levels]
        self._proposes = "windows" in settings.parts or "mass" in settings.parts
        self._measured = [FLOOR] * any(part in settings.parts for part in ("distances", "windows")) + [*settings.parts]
        calls = [subject.calls(part) for part in self._measured] + [CHECKS] * self._proposes
        self.total = sum(calls) * len(self._places) + self._draws

    @property
    def _draws(self) -> bool:
        return "mass" in self.subject.settings.parts

    def record(self) -> Record:
        """Measures what is not done yet; the record is ready for JSON."""
        subject, settings = self.subject, self.subject.settings
        record: Record = {
            **self.about,
            "family": subject.shape.family.name,
            "double": subject.shape.num_double,
            "single": subject.shape.num_single,
            "grid": list(subject.grid),
            "text": subject.sequence.text,
            "pictures": len(subject.pictures),
            "settings": settings.measured | {"count": settings.count, "share": settings.share},
        }
        subject.on_call = lambda: self.on_calls(1)
        with Attentions(subject.transformer) as attentions:
            # Place by place, so that errors share the prediction of dense attention.
            for place in self._places:
                for part in self._measured:
                    record.setdefault(part, []).append(self._part(attentions, part, *place))
            if self._draws:
                self.maps = self._maps(attentions)
            if self._proposes:
                record["proposal"] = self._proposal(attentions, record)
        return record

    def _part(self, attentions: Attentions, part: str, picture: int, level: float) -> Record:
        measure: Callable[[Attentions, int, float], Any] = getattr(self.subject, part)
        values = self.value(
            f"{part}_{picture}_{level!r}", self.subject.calls(part), lambda: measure(attentions, picture, level)
        )
        return {"picture": picture, "level": level, "values": values}

    def value(self, name: str, calls: int, make: Callable[[], Any]) -> Any:
        """A kept value, or one that is made by so many calls of the model; ready for JSON."""
        if self.kept.has(name):
            self.on_calls(calls)
        return self.kept.get(name, make)

    def _maps(self, attentions: Attentions) -> dict[str, Tensor]:
        """Of the first picture at the middle noise level."""
        path = None if self.folder is None else self.folder / MAPS
        if path is not None and path.exists():
            self.on_calls(1)
            return load_file(path)
        maps = self.subject.maps(attentions, 0, middle(self.subject.settings.levels))
        if path is not None:
            with no_half_file(path) as part:
                save_file(maps, part)
        return maps

    def _proposal(self, attentions: Attentions, record: Record) -> Record:
        """The proposal, with errors that were measured for it: the costs of single blocks do not add exactly."""
        subject, settings = self.subject, self.subject.settings
        costs, by = block_costs(record)
        chosen = costliest_blocks(costs, count=settings.count, share=settings.share)
        # A block that costs nothing beyond rounding mends nothing.
        chosen = tuple(block for block in chosen if costs[block] > 0)
        text, every = dense_blocks_text(chosen), frozenset(subject.shape.block_ids)

        checks: dict[str, tuple[str, Attend]] = {
            "error_all_windows": ("check", in_windows(settings.spec, every)),
            "error_with_dense_blocks": (
                f"check_{text.replace(', ', '_')}",
                in_windows(settings.spec, every - frozenset(chosen)),
            ),
        }
        errors: dict[str, list[float]] = {name: [] for name in checks}
        for picture, level in self._places:
            for name, (kept, attend) in checks.items():
                make = self._error(attentions, picture, level, attend)
                errors[name].append(self.value(f"{kept}_{picture}_{level!r}", 1, make))
        share = clear_pairs(subject.sequence, settings.spec) / dense_pairs(subject.sequence)
        dense = len(chosen) / subject.shape.blocks
        return {
            "dense_blocks": text,
            "by": by,
            **{name: mean(values) for name, values in errors.items()},
            "pairs_all_windows": share,
            "pairs_with_dense_blocks": dense + (1 - dense) * share,
        }

    def _error(self, attentions: Attentions, picture: int, level: float, attend: Attend) -> Callable[[], float]:
        return lambda: self.subject.error(attentions, picture, level, attend)


def middle(levels: tuple[float, ...] | list[float]) -> float:
    """The noise level in the middle, of an even number the higher one."""
    return sorted(levels)[len(levels) // 2]
