"""Numbers, durations and sizes as people read them. Everything fits in a few cells."""

from __future__ import annotations

import math

from mamba_tui import clock


def compact(value: float | None, digits: int = 3) -> str:
    """12345 as `12.3 k`; `-` for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return not_finite(value)
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * (1 - 0.5 * 10**-digits):
            return f"{_digits(value / limit, digits)} {unit}"
    return f"{value:.0f}" if float(value).is_integer() else _digits(value, digits)


def _digits(value: float, digits: int) -> str:
    """Significant digits without an exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"


def not_finite(value: float) -> str:
    """The name of a number that isn't finite."""
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "-∞"


def loss(value: float | None) -> str:
    """A loss with four decimals at its usual size."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return not_finite(value)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def rate(value: float | None) -> str:
    """A learning rate, in the shortest form that keeps three digits."""
    if value is None:
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else not_finite(value)


def bytes_size(value: float | None) -> str:
    """Bytes in binary units: `1.4 GB`."""
    if value is None:
        return "-"
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def duration(seconds: float | None) -> str:
    """`8 s`, `3 min 20 s`, `4 h 12 min`, `2 d 3 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    for size, unit, small_size, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def age(since: float, now: float | None = None) -> str:
    """How long ago, in one unit: `5 s`, `12 min`, `3 h`, `9 d`."""
    seconds = max(0.0, (clock.now() if now is None else now) - since)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
