"""Numbers as a reader wants them: few digits, powers of ten as powers, never rounded in the flattering direction."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["ceiling_percent", "count", "factor", "floor_cosine", "log_ticks", "milliseconds", "power"]

_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float | None) -> str:
    """2.2e-06 as "2.2 × 10⁻⁶"; "–" for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number" if math.isnan(value) else "−∞"
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    base = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return base if digits == "1.0" else f"{digits} × {base}"


def count(value: int) -> str:
    """12345 as "12 345" with narrow no-break spaces."""
    return f"{value:,}".replace(",", "\u202f")


def milliseconds(value: float) -> str:
    """Three to four significant digits, with the unit."""
    if not math.isfinite(value):
        return "–"
    digits = 3 if value < 1 else 2 if value < 100 else 1
    return f"{value:.{digits}f} ms"


def factor(value: float) -> str:
    """1.234 as "1.23×", 139.54 as "140×"."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return "∞" if math.isinf(value) else f"{value:.{digits}f}×"


def ceiling_percent(share: float) -> str:
    """A share of a budget, rounded up: 0.0001 of it is "under 1 %", never "0 %"."""
    if not math.isfinite(share):
        return "all"
    return "under 1 %" if share < 0.01 else f"{math.ceil(share * 100 - 1e-9)} %"


def floor_cosine(cosine: float) -> str:
    """Cut, never rounded up: 0.99999999 must not be shown as 1."""
    return f"{math.floor(cosine * 1e7) / 1e7:.7f}"


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten from ``low`` to ``high``, thinned to ``most``."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    return [10.0**e for e in range(first, last + 1, step)]
