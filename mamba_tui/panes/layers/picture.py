"""Where the views of Layers are drawn: lines of styled text, or a heat map with a token at each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from textual.binding import BindingType
from textual.message import Message
from textual.strip import Strip

from mamba_tui import keys
from mamba_tui.panes.layers.views import Line
from mamba_tui.panes.layers.words import word
from mamba_tui.widgets.cached_styles import CachedStyles
from mamba_tui.widgets.safe_text import pad

SHADES = " ·░▒▓█"
LABEL_CELLS = 12


class Picture(CachedStyles, can_focus=True):
    """The chosen view. Its arrows belong to the pane: another layer, another head."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "picture--strong", "picture--muted", "picture--good", "picture--bar", "picture--chosen",
        "picture--heat",
    }  # fmt: skip
    DEFAULT_CSS = """
    Picture { height: 1fr; width: 1fr; background: $background; color: $foreground; }
    Picture .picture--strong { text-style: bold; color: $foreground; background: $background; }
    Picture .picture--muted { color: $text-muted; background: $background; }
    Picture .picture--good { color: $accent; background: $background; text-style: bold; }
    Picture .picture--bar { color: $series-0; background: $background; }
    Picture .picture--heat { color: $series-1; background: $background; }
    Picture .picture--chosen { color: $foreground; background: $panel; text-style: bold; }
    Picture:focus .picture--chosen { color: $background; background: $accent; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("picture")

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Line] = ()
        self._visible_line = 0

    def show(self, lines: Sequence[Line], keep_visible: int = 0) -> None:
        """Draw these lines; where they are too many, that one is kept in view."""
        self._lines, self._visible_line = lines, keep_visible
        self.refresh()

    class Turned(Message):
        """An arrow asks for another layer, or another head or channel."""

        def __init__(self, *, layer: int = 0, group: int = 0) -> None:
            super().__init__()
            self.layer, self.group = layer, group

    def action_look_at_layer(self, by: int) -> None:
        """Another layer."""
        self.post_message(self.Turned(layer=by))

    def action_look_at_group(self, by: int) -> None:
        """Another head or channel."""
        self.post_message(self.Turned(group=by))

    @property
    def text(self) -> str:
        """What is drawn, for tests."""
        return "\n".join("".join(text for text, _ in line) for line in self._lines)

    def render_line(self, y: int) -> Strip:
        """One line."""
        width, height = self.size
        # The first line says what is shown and stays.
        skipped = min(max(0, self._visible_line - height + 2), max(0, len(self._lines) - height))
        index = y if y == 0 else y + skipped
        base = self.component("")
        if index >= len(self._lines):
            return Strip.blank(width, base)
        segments = [Segment(" ", base)]
        for text, style in self._lines[index]:
            segments.append(Segment(text, self.component(f"picture--{style}") if style else base))
        return Strip(segments).adjust_cell_length(width, base)


def heat_lines(
    picture: dict[str, Any], tokens: Sequence[Sequence[Any]], head: Line, height: int
) -> list[Line]:
    """A heat map: queries below each other with their text, the newest at the bottom, keys beside each other.

    Each row is shaded against its own largest value.
    """
    lines = [head]
    for number, row in enumerate(picture["rows"][-max(1, height - 2) :]):
        query = picture["first_query"] + max(0, len(picture["rows"]) - max(1, height - 2)) + number
        top = max([*row, 0.0])
        cells = "".join(SHADES[_level(value, top)] for value in row)
        here = query == picture["token"]
        label = pad(word(tokens[query][1], LABEL_CELLS - 4), LABEL_CELLS)
        lines.append([(label, "chosen" if here else "muted"), (cells, "heat")])
    first = picture["first_key"]
    lines.append([(pad("", LABEL_CELLS), ""), (f"↑ token {first:,} to {picture['token']:,}", "muted")])
    return lines


def _level(value: float, top: float) -> int:
    if value <= 0 or top <= 0:
        return 0
    return min(5, max(1, round(5 * (value / top) ** 0.5)))
