"""The golden cases as inputs of a host: see the README beside the files."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .flux import GOLDEN

TOLERANCE = 1e-5
"""Relative error up to which a case counts as reproduced, float32."""


def case_names() -> list[str]:
    """Names of all recorded cases, from the files themselves so that none is forgotten."""
    return sorted(path.stem.removeprefix("case_") for path in GOLDEN.glob("case_*.safetensors"))


@dataclass(frozen=True)
class GoldenCase:
    """One recorded case.

    Attributes:
        name: "local_r8".
        facts: Grid, text length, radius and so on, as recorded.
        tensors: Inputs and output.
    """

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, name: str) -> GoldenCase:
        path = GOLDEN / f"case_{name}.safetensors"
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["case"])
        return cls(name, facts, load_file(path))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return self.facts["height"], self.facts["width"]

    @cached_property
    def text(self) -> tuple[Tensor, Tensor]:
        """Text tokens (1, T, width) and pooled text (1, width)."""
        return self.tensors["encoder_hidden_states"], self.tensors["pooled"]

    @property
    def student(self) -> Path | None:
        """The distilled file of the case; None where the base runs alone."""
        seed, down = self.facts["student_seed"], self.facts["down_factor"]
        return GOLDEN / f"student_{seed}_down{down}.safetensors" if seed else None

    @property
    def widgets(self) -> dict[str, Any]:
        """Widgets of the CLEAR node that reproduce the recorded case."""
        height, width = self.grid
        return {
            "weights_name": self.published_name or "none",
            # The cases without a window: one that covers the whole grid.
            "radius": 0 if self.published_name else height + width,
            "ntk_factor": self.facts["ntk_factor"],
            # The SDEdit case was recorded with it, and has no field that says so.
            "proportional_attention": "on" if self.facts.get("proportional_attention", True) else "off",
        }

    @property
    def published_name(self) -> str | None:
        """The case's student under a name of the published form, from which the node reads the radius."""
        if self.student is None:
            return None
        down = self.facts["down_factor"]
        return f"clear_local_{self.facts['radius']}{f'_down_{down}' if down > 1 else ''}.safetensors"


def install_students(folder: Path) -> None:
    """Puts the golden students into a models folder under published names."""
    for name in case_names():
        case = GoldenCase.load(name)
        if case.student is not None:
            shutil.copyfile(case.student, folder / str(case.published_name))


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Packed tokens (B, h*w, C*4) to a latent (B, C, 2h, 2w)."""
    height, width = grid
    cells = tokens.unflatten(1, (height, width)).unflatten(3, (-1, 2, 2))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, 2 * height, 2 * width)


def pack(latent: Tensor) -> Tensor:
    """A latent (B, C, 2h, 2w) to packed tokens (B, h*w, C*4): a token holds 2 x 2 positions, channel by channel."""
    batch, channels, height, width = latent.shape
    cells = latent.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)
