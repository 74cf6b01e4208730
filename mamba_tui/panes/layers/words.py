"""Layers, tokens and figures of an inspection in a few cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.sparkline import LEVELS

KINDS = {"standard": "attention", "mamba": "mamba", "mamba2": "mamba-2"}


def word(text: object, cells: int = 14) -> str:
    """A token in quotes, safe to show, with a space at its end where it can't be mistaken."""
    return repr(visible(clip(str(text), cells)))


def figure(value: object) -> str:
    """A number in three digits; what is none, or isn't finite, is a dash."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return compact(value)
    return "-"


def share(value: object) -> str:
    """A probability."""
    return f"{value:.1%}" if isinstance(value, (int, float)) and math.isfinite(value) else "-"


def layer_name(layer: int, shape: Sequence[dict[str, Any]]) -> str:
    """`2 mamba-2`; -1 is the embedding."""
    if layer < 0:
        return "embedding"
    return f"{layer} {KINDS.get(str(shape[layer]['kind']), str(shape[layer]['kind']))}"


def columns(counts: Sequence[int], height: int, cells: int) -> list[str]:
    """Counts as upright bars, `height` lines from the top, each `cells` wide with a space behind."""
    top = max([*counts, 1])
    lines = []
    for line in range(height, 0, -1):
        row = ""
        for count in counts:
            eighths = math.ceil(8 * height * count / top) - 8 * (line - 1)
            row += LEVELS[max(0, min(8, eighths))] * (cells - 1) + " "
        lines.append(row)
    return lines
