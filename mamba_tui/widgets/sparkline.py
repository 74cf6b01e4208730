"""A curve in one line of text: bars of eighths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

LEVELS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[object], cells: int) -> str:
    """Values as bars of eighths, from zero to the largest; several share a cell where room is short."""
    numbers = [float(v) if isinstance(v, (int, float)) and math.isfinite(v) else 0.0 for v in values]
    if not numbers or cells < 1:
        return ""
    if len(numbers) > cells:
        bounds = [round(i * len(numbers) / cells) for i in range(cells + 1)]
        numbers = [max(numbers[low:high]) for low, high in pairwise(bounds)]
    top = max(numbers)
    if top <= 0:
        return LEVELS[0] * len(numbers)
    return "".join(LEVELS[max(0, min(8, math.ceil(8 * number / top)))] for number in numbers)
