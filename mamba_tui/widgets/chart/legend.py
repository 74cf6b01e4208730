"""The lines above a chart: its title and the main series, and below them the series drawn behind."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from mamba_tui.widgets.safe_text import clip

DOT = "●"
MAIN = 2
"""How many series are beside the title; the others are drawn behind them."""

Entry = tuple[str, str, Style]
"""Name, value and style of a series."""


def rows_needed(names: Sequence[str], width: int, most: int) -> int:
    """How many rows below the title the series drawn behind need, at most `most`."""
    return min(most, len(_packed(names[MAIN:], width)))


def title_row(title: str, entries: Sequence[Entry], width: int, look: Style, base: Style) -> list[Segment]:
    """The title at the left, and as many series as fit at the right."""
    parts = [
        (f" {DOT} {name} {value}" if name.strip() else f" {value}", style) for name, value, style in entries
    ]
    room = width - 1
    if _cells(parts) + cell_len(title) + 1 > room:
        # Series drawn behind are named before there is an attempt to show their values.
        parts[MAIN:] = [(f" {DOT} {name}", style) for name, _, style in entries[MAIN:]]
    while len(parts) > 1 and _cells(parts) + cell_len(title) + 1 > room:
        parts.pop()
    title = clip(title, max(0, room - _cells(parts) - 1) if parts else room)
    gap = max(0, room - cell_len(title) - _cells(parts))
    return [Segment(title, look), Segment(" " * gap, base), *(Segment(text, style) for text, style in parts)]


def behind_rows(entries: Sequence[Entry], width: int, count: int, base: Style) -> list[list[Segment]]:
    """The series drawn behind, in `count` rows, with the number of further ones at the end."""
    behind = entries[MAIN:]
    rows: list[list[Segment]] = []
    shown = 0
    for row in _packed([f"{name} {value}" for name, value, _ in behind], width)[:count]:
        rows.append([Segment(f" {DOT} {text}", behind[shown + at][2]) for at, text in enumerate(row)])
        shown += len(row)
    if rows and shown < len(behind):
        more = f"  and {len(behind) - shown} more"
        while len(rows[-1]) > 1 and sum(segment.cell_length for segment in rows[-1]) + len(more) > width:
            rows[-1].pop()
            shown -= 1
            more = f"  and {len(behind) - shown} more"
        rows[-1].append(Segment(more, base))
    return rows + [[] for _ in range(count - len(rows))]


def _cells(parts: Sequence[tuple[str, Style]]) -> int:
    return sum(cell_len(text) for text, _ in parts)


def _packed(texts: Sequence[str], width: int) -> list[list[str]]:
    """The texts in rows, as many per row as fit with their dots."""
    rows: list[list[str]] = []
    used = width
    for text in texts:
        cells = cell_len(text) + 3
        if used + cells > width:
            rows.append([])
            used = 0
        rows[-1].append(text)
        used += cells
    return rows
