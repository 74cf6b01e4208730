"""The hourglass: one bar a layer, as wide as the layer, in the texture and colour of its type."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style

from core.config import MAMBA, MAMBA2, STANDARD

# Shape tells the types apart where colour does not.
TEXTURE = {STANDARD: "█", MAMBA: "▒", MAMBA2: "░"}
SIGN = {STANDARD: "◆", MAMBA: "≈", MAMBA2: "≋"}
COLOR_VARIABLE = {STANDARD: "layer-standard", MAMBA: "layer-mamba", MAMBA2: "layer-mamba2"}


def bar_cells(width: object, widest: int, room: int) -> int:
    """Cells of a bar: proportional, at least one, of the parity of `room` so that all are centred."""
    if not isinstance(width, int) or width < 1 or room < 1:
        return 0
    cells = max(1, min(room, round(room * width / max(widest, width, 1))))
    if (room - cells) % 2 and cells < room:
        cells += 1
    return cells


def bar(kind: object, width: object, widest: int, room: int, color: Style) -> list[Segment]:
    """One layer's bar, centred in `room` cells."""
    cells = bar_cells(width, widest, room)
    left = (room - cells) // 2
    texture = TEXTURE.get(str(kind), "?")
    blank = Style(bgcolor=color.bgcolor)
    return [
        Segment(" " * left, blank),
        Segment(texture * cells, color),
        Segment(" " * (room - left - cells), blank),
    ]


def sketch(widths: tuple[int, ...], kinds: tuple[str, ...], room: int, rows: int = 0) -> list[str]:
    """The hourglass as plain text, one line a layer; at most `rows` lines, evenly chosen."""
    count = len(widths)
    chosen = range(count)
    if rows and count > rows:
        chosen = [round(index * (count - 1) / max(1, rows - 1)) for index in range(rows)]  # type: ignore[assignment]
    widest = max(widths, default=1)
    lines = []
    for index in chosen:
        cells = bar_cells(widths[index], widest, room)
        lines.append((TEXTURE.get(kinds[index], "?") * cells).center(room))
    return lines
