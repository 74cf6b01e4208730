"""Ticks at round values, and their labels: plain numbers, decades, durations and the time of day."""

from __future__ import annotations

import math
import time
from typing import Literal

Axis = Literal["number", "duration", "clock"]

_SECONDS = (
    *(0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30),
    *(minutes * 60 for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * 3600 for hours in (1, 2, 3, 6, 12)),
    *(days * 86400 for days in (1, 2, 7, 14, 28, 91, 182, 365)),
)


def round_step(span: float, wanted: int) -> float:
    """The round step (1, 2, 2.5 or 5 times a power of ten) that gives at most `wanted` intervals."""
    if not (span > 0 and math.isfinite(span)):
        return 1.0
    raw = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if raw <= factor * power * (1 + 1e-9):
            return factor * power
    return 10.0 * power


def multiples(low: float, high: float, step: float) -> list[float]:
    """Multiples of `step` within [low, high]; none if floats can't tell them apart or there are too many."""
    if step <= 1e-12 * max(abs(low), abs(high)):
        return []
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    if last - first > 500:
        return []
    return [index * step for index in range(first, last + 1)]


def number_ticks(low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """Linear ticks with as many decimals as their distance needs."""
    step = round_step(high - low, wanted)
    values = multiples(low, high, step)
    if not values:
        return []
    size = max(abs(low), abs(high))
    if size < 1e-3 or size >= 1e15:
        digits = min(max(3, math.ceil(math.log10(size / step))), 9)
        return [(v, f"{v:.{digits}g}" if v else "0") for v in values]
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return [(v, f"{_fixed(v / scale, step / scale)}{unit}" if v else "0") for v in values]
    return [(v, _fixed(v, step)) for v in values]


def _fixed(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    # A step of 0.25 or 2.5 needs one digit more than its size suggests.
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return f"{value:.{min(decimals, 9)}f}"


def log_ticks(low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """Ticks of an axis in log10: decades, also their 2 and 5 if there is room, otherwise linear values."""
    decades = high - low
    if decades < 0.7:
        return [
            (math.log10(value), label)
            for value, label in number_ticks(10**low, 10**high, wanted)
            if value > 0 and low <= math.log10(value) <= high
        ]
    stride = max(1, math.ceil(decades / max(1, wanted)))
    parts = (1, 2, 5) if decades * 3 <= wanted * 1.5 else (1,)
    ticks = []
    for power in range(math.floor(low), math.ceil(high) + 1):
        if power % stride:
            continue
        for part in parts:
            place = power + math.log10(part)
            if low <= place <= high:
                ticks.append((place, decade_label(part, power)))
    return ticks


def decade_label(part: int, power: int) -> str:
    """`0.02`, `5`, `2k` or `1e-5`."""
    if -3 <= power <= 3:
        return f"{part * 10.0**power:g}"
    return f"{part}e{power}"


def duration_ticks(low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """Ticks in seconds since the start, labeled `90s`, `5m`, `2h`, `3d`."""
    step = _time_step(high - low, wanted)
    return [(value, short_duration(value, step)) for value in multiples(low, high, step)]


def short_duration(seconds: float, step: float = 1.0) -> str:
    """A duration in at most two units and no spaces."""
    if seconds == 0:
        return "0"
    if step < 1 and abs(seconds) < 60:
        return f"{seconds:g}s"
    sign, whole = ("-" if seconds < 0 else ""), abs(round(seconds))
    for size, unit, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // small_size
            return f"{sign}{whole // size}{unit}{rest}{small}" if rest else f"{sign}{whole // size}{unit}"
    return f"{sign}{whole}s"


def clock_ticks(low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """Ticks at round local times, labeled `14:05`, with seconds or the date if needed."""
    step = _time_step(high - low, wanted)
    zone = time.localtime(low).tm_gmtoff or 0
    pattern = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86400 else "%d %b"
    return [
        (value - zone, time.strftime(pattern, time.localtime(value - zone)))
        for value in multiples(low + zone, high + zone, step)
    ]


def _time_step(span: float, wanted: int) -> float:
    raw = span / max(1, wanted)
    for step in _SECONDS:
        if raw <= step:
            return float(step)
    return round_step(span / 86400, wanted) * 86400


def ticks(axis: Axis, low: float, high: float, wanted: int) -> list[tuple[float, str]]:
    """Ticks of a linear axis of the given kind."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    if axis == "duration":
        return duration_ticks(low, high, wanted)
    if axis == "clock":
        return clock_ticks(low, high, wanted)
    return number_ticks(low, high, wanted)


def reading(axis: Axis, value: float) -> str:
    """One x value in full, for the crosshair."""
    if axis == "duration":
        return short_duration(value)
    if axis == "clock":
        return time.strftime("%H:%M:%S", time.localtime(value))
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"
