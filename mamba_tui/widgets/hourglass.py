"""The hourglass: each layer at its relative width, in the texture and color of its type.

`bar` is one layer in one line, for the layer table. `Hourglass` is the whole shape, with slopes where the
width changes, for screens with enough room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.strip import Strip

from core.config.schema import MAMBA, MAMBA2, STANDARD
from mamba_tui.widgets.cached_styles import CachedStyles

# The texture distinguishes types where color doesn't.
TEXTURE = {STANDARD: "█", MAMBA: "▒", MAMBA2: "░"}
SIGN = {STANDARD: "◆", MAMBA: "≈", MAMBA2: "≋"}
COLOR_VARIABLE = {STANDARD: "layer-standard", MAMBA: "layer-mamba", MAMBA2: "layer-mamba2"}
MOST_ROWS_A_LAYER = 3


def bar_cells(width: object, widest: int, room: int) -> int:
    """Cells of a bar: proportional, at least one, with the parity of `room` so that all are centered."""
    if not isinstance(width, int) or width < 1 or room < 1:
        return 0
    cells = max(1, min(room, round(room * width / max(widest, width, 1))))
    if (room - cells) % 2 and cells < room:
        cells += 1
    return cells


def bar(kind: object, width: object, widest: int, room: int, color: Style) -> list[Segment]:
    """One layer's bar, centered in `room` cells."""
    cells = bar_cells(width, widest, room)
    left = (room - cells) // 2
    texture = TEXTURE.get(str(kind), "?")
    blank = Style(bgcolor=color.bgcolor)
    return [
        Segment(" " * left, blank),
        Segment(texture * cells, color),
        Segment(" " * (room - left - cells), blank),
    ]


def outline(widths: Sequence[object], rows: int) -> list[tuple[int, float]]:
    """(layer, width) of each row of the shape: a layer keeps its width, its last row slopes to the next.

    With fewer rows than layers, evenly chosen layers.
    """
    known = [width if isinstance(width, int) and width > 0 else 0 for width in widths]
    count = len(known)
    if not count or rows < 1:
        return []
    if rows < count:
        chosen = [round(index * (count - 1) / max(1, rows - 1)) for index in range(rows)]
        return [(index, float(known[index])) for index in chosen]
    each = min(MOST_ROWS_A_LAYER, rows // count)
    shape = []
    for index, width in enumerate(known):
        following = known[index + 1] if index + 1 < count else width
        for row in range(each):
            sloping = row == each - 1 and each > 1
            shape.append((index, (width + following) / 2 if sloping else float(width)))
    return shape


class Hourglass(CachedStyles):
    """The shape of the model, from the text at the top to the prediction at the bottom."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"hourglass--label"}
    DEFAULT_CSS = """
    Hourglass { width: 1fr; height: 1fr; }
    Hourglass .hourglass--label { color: $text-muted; background: $background; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.layer_widths: Sequence[object] = ()
        self.kinds: Sequence[object] = ()

    def show(self, widths: Sequence[object], kinds: Sequence[object]) -> None:
        """Draw these layers."""
        self.layer_widths, self.kinds = widths, kinds
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One row of the shape, centered."""
        width, height = self.size
        shape = outline(self.layer_widths, height - 2)
        top = (height - len(shape) - 2) // 2
        row = y - top
        label = self.component("hourglass--label")
        if row in (0, len(shape) + 1) and shape:
            text = "text, token by token" if row == 0 else "the next token"
            return Strip([Segment(text.center(width), label)], width)
        if not 1 <= row <= len(shape):
            return Strip.blank(width, self.component(""))
        layer, wide = shape[row - 1]
        kind = str(self.kinds[layer]) if layer < len(self.kinds) else ""
        widest = max((w for w in self.layer_widths if isinstance(w, int)), default=1)
        variable = self.app.theme_variables.get(COLOR_VARIABLE.get(kind, ""), "#808080")
        color = self.component("") + Style(color=Color.parse(variable).rich_color)
        return Strip(bar(kind, round(wide), widest, width, color)).adjust_cell_length(
            width, self.component("")
        )
