"""Every figure of the paper that is arithmetic: what it prints, and what is counted for it.

Tables 2, 3 and 7 and the abstract of arXiv 2412.16112v1. Its count is ``4 * pairs * c`` with c = 3072 (caption of
figure 2), for one layer of FLUX.1 with 512 text tokens.

It seems to round twice, half up, first to one digit more than it prints: 67.6457 is 67.7 by way of 67.65, in three rows
of table 2, and 13.08497 is 13.09 in table 7. Every other figure is the same rounded once; :data:`SLIPS` differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from clear_core import ClearSpec, SequenceLayout
from clear_core.cost import gflops

from .agent import Agent
from .attention import Attention
from .compressed import Compressed
from .full import Full
from .linear import Linear
from .sigmoid import Sigmoid
from .strided import Strided
from .swin import Swin
from .windows import Windows

TEXT = 512
TOKENS = {1024: 64, 2048: 128, 4096: 256, 8192: 512}
"""Side of the grid in tokens, by side of the picture in px."""


@dataclass(frozen=True)
class Figure:
    """One printed figure.

    Attributes:
        where: Table or abstract.
        row: The row, as the paper names it.
        attention: What is counted.
        side: Of the picture, in px.
        printed: As printed, its digits included.
        unit: GFLOP or TFLOP of a layer, or % of dense attention's that is saved.
    """

    where: str
    row: str
    attention: Attention
    side: int
    printed: str
    unit: str = "GFLOP"

    @property
    def name(self) -> str:
        return f"{self.where}, {self.row}, {self.side} px"

    @property
    def value(self) -> float:
        """What is counted, in the figure's unit."""
        found = counted(self.attention, self.side)
        if self.unit == "%":
            return 100 * (1 - found / counted(Full(), self.side))
        return found / 1000 if self.unit == "TFLOP" else found

    @property
    def digits(self) -> int:
        """Digits printed after the point."""
        return len(self.printed.partition(".")[2])

    @property
    def counted(self) -> str:
        """:attr:`value` to as many digits as are printed, rounded as the paper does."""
        found = Decimal(self.value)
        for digits in (self.digits + 1, self.digits):
            found = found.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
        return str(found)


def counted(attention: Attention, side: int) -> float:
    """GFLOP of one layer of FLUX.1 for a square picture of ``side`` px."""
    return gflops(attention.pairs(SequenceLayout(TEXT, (TOKENS[side], TOKENS[side]))))


def _clear(radius: int) -> Attention:
    return Windows(ClearSpec(radius))


_TABLE_2: list[tuple[str, Attention, str]] = [
    ("Original FLUX-1.dev", Full(), "260.9"),
    ("Sigmoid Attention", Sigmoid(), "260.9"),
    ("Linear Attention", Linear(), "174.0"),
    ("PixArt-Sigma", Compressed(), "67.7"),
    ("Agent Attention", Agent(), "80.5"),
    ("Strided Attention", Strided(), "67.7"),
    ("Swin Transformer", Swin(), "67.7"),
    ("CLEAR (r=8)", _clear(8), "63.5"),
    ("CLEAR (r=8) w. distill", _clear(8), "63.5"),
    ("CLEAR (r=16)", _clear(16), "80.6"),
    ("CLEAR (r=16) w. distill", _clear(16), "80.6"),
    ("CLEAR (r=32)", _clear(32), "154.1"),
    ("CLEAR (r=32) w. distill", _clear(32), "154.1"),
]

_ROWS: dict[str, Attention] = {"FLUX-1.dev": Full()} | {f"CLEAR (r={radius})": _clear(radius) for radius in (8, 16, 32)}

# By side of the picture, in the order of _ROWS.
_TABLE_3 = {2048: ("3507.9", "246.2", "352.6", "724.3"), 4096: ("53604.4", "979.3", "1433.2", "3141.7")}
_TABLE_7 = {
    1024: ("0.26", "0.06", "0.09", "0.15"),
    2048: ("3.51", "0.25", "0.35", "0.72"),
    4096: ("53.60", "0.98", "1.43", "3.14"),
    8192: ("847.73", "3.92", "5.79", "13.09"),
}

FIGURES = (
    *(Figure("table 2", row, attention, 1024, printed) for row, attention, printed in _TABLE_2),
    *(
        Figure(f"table {number}", row, attention, side, printed, unit)
        for number, unit, table in ((3, "GFLOP", _TABLE_3), (7, "TFLOP", _TABLE_7))
        for side, figures in table.items()
        for (row, attention), printed in zip(_ROWS.items(), figures, strict=True)
    ),
    Figure("abstract", "CLEAR (r=8)", _clear(8), 8192, "99.5", "%"),
)

SLIPS = {"table 2, CLEAR (r=16), 1024 px", "table 2, CLEAR (r=16) w. distill, 1024 px"}
"""Figures that are not what is counted: table 2 has 80.6 GFLOP at r = 16, and the count is 86.65. The paper's own
table 7 has 0.09 TFLOP for the same layer."""
