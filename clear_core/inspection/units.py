"""Numbers as people read them."""

from __future__ import annotations

from ..memory import GIB


def significant(value: float, digits: int = 2) -> str:
    """``value`` with so many significant digits and no exponent: 0.0042, 3.1, 270, 12,000."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        rounded = float(f"{value:.{digits - 1}e}")
        return f"{rounded:,.0f}"
    return f"{float(f'{value:.{digits - 1}e}'):.10f}".rstrip("0").rstrip(".")


def time_words(seconds: float) -> str:
    """``"4 ms"``, ``"3.2 s"``, ``"12 min"``, ``"3.1 h"``."""
    for limit, unit, name in ((0.0995, 1e-3, "ms"), (99.5, 1, "s"), (5970, 60, "min")):
        if seconds < limit:
            return f"{significant(seconds / unit)} {name}"
    return f"{significant(seconds / 3600)} h"


def memory_words(size: int) -> str:
    """``"5.4 GiB"``; MiB below a tenth of one."""
    if size < GIB / 10:
        return f"{significant(size / 2**20)} MiB"
    return f"{size / GIB:.1f} GiB"


def percent(part: float) -> str:
    """``0.027`` as ``"2.7 %"``."""
    return f"{significant(100 * part)} %" if part < 0.995 else f"{100 * part:.0f} %"


def side_name(side: int) -> str:
    """``"4K"`` for 4096 px."""
    return f"{side // 1024}K" if side % 1024 == 0 else f"{side} px"
