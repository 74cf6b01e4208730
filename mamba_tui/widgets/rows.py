"""Rows: a list with a cursor that draws only what is on screen.

The base of the layer table, the settings, the runs and the checkpoints. Ten thousand rows cost nothing until
they are scrolled to.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from mamba_tui import keys
from mamba_tui.widgets.cached_styles import CachedStyles


class Rows(CachedStyles, can_focus=True):
    """A list of rows with a header, drawn by its subclass."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--header",
        "rows--cursor",
        "rows--muted",
        "rows--accent",
        "rows--good",
        "rows--problem",
        "rows--edit",
        "rows--thumb",
    }
    DEFAULT_CSS = """
    Rows { height: 1fr; width: 1fr; background: $background; }
    Rows .rows--header { color: $text-muted; text-style: bold; }
    Rows .rows--cursor { background: $boost; }
    Rows:focus .rows--cursor { background: $selection; text-style: bold; }
    Rows .rows--muted { color: $text-muted; }
    Rows .rows--accent { color: $accent; }
    Rows .rows--good { color: $text-success; }
    Rows .rows--problem { color: $text-error; }
    Rows .rows--edit { color: $foreground; background: $primary 60%; text-style: bold; }
    Rows .rows--thumb { color: $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("table")

    cursor = reactive(0)
    header_rows = 1

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, rows: Rows, index: int) -> None:
            super().__init__()
            self.rows = rows
            self.index = index

        @property
        def control(self) -> Rows:
            """The list."""
            return self.rows

        def can_replace(self, message: Message) -> bool:
            """If a key is held down, only the last row needs to be shown."""
            return isinstance(message, Rows.Moved) and message.rows is self.rows

    class Selected(Moved):
        """A row was chosen, with Enter or a click on the cursor."""

        def can_replace(self, message: Message) -> bool:
            """Never: every choice counts."""
            return False

    class HeaderClicked(Message):
        """The header was clicked at this column of cells."""

        def __init__(self, rows: Rows, x: int) -> None:
            super().__init__()
            self.rows = rows
            self.x = x

        @property
        def control(self) -> Rows:
            """The list."""
            return self.rows

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.top = 0

    # --------------------------------------------------- what subclasses say

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return 0

    def header_segments(self, width: int) -> list[Segment]:
        """The header in at most `width` cells."""
        return []

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """One row in at most `width` cells."""
        return []

    def can_stop_at(self, index: int) -> bool:
        """Whether the cursor may be on a row."""
        return True

    # -------------------------------------------------------------- drawing

    def style_of(self, name: str) -> Style:
        """A component style: muted, accent, problem, ..."""
        return self.component(f"rows--{name}")

    @property
    def visible_rows(self) -> int:
        """Rows that fit below the header."""
        return max(1, self.size.height - self.header_rows)

    def render_line(self, y: int) -> Strip:
        """The header, or a row of the part that is on screen."""
        width = self.size.width
        overflow = self.row_count > self.visible_rows
        room = max(0, width - 1) if overflow else width
        index = self.top + y - self.header_rows
        if y < self.header_rows:
            segments, base = self.header_segments(room), self.style_of("header")
        elif 0 <= index < self.row_count:
            segments, base = self.row_segments(index, room), self.component("")
            if index == self.cursor:
                segments, base = self._highlighted(segments), self.style_of("cursor")
        else:
            return Strip.blank(width, self.component(""))
        strip = Strip(segments).adjust_cell_length(room, base)
        if overflow:
            strip = Strip([*strip, self._thumb(y - self.header_rows)], width)
        return strip

    def _highlighted(self, segments: list[Segment]) -> list[Segment]:
        cursor = self.style_of("cursor")
        edit = self.style_of("edit").bgcolor
        over = Style(bgcolor=cursor.bgcolor, bold=cursor.bold)
        return [
            Segment(text, (style or Style.null()) + over)
            if style is None or (not style.reverse and style.bgcolor != edit)
            else Segment(text, style)
            for text, style, _ in segments
        ]

    def _thumb(self, y: int) -> Segment:
        height, total = self.visible_rows, max(1, self.row_count)
        start = self.top * height // total
        end = max(start + 1, (self.top + height) * height // total)
        return Segment("▐" if start <= y < end else " ", self.style_of("thumb"))

    # ------------------------------------------------------------- movement

    def validate_cursor(self, cursor: int) -> int:
        """Keep the cursor on a row."""
        return min(max(cursor, 0), max(0, self.row_count - 1))

    def watch_cursor(self) -> None:
        """Scroll to the cursor and report its row."""
        self.reveal()
        self.refresh()
        self.post_message(self.Moved(self, self.cursor))

    def reveal(self) -> None:
        """Scroll so that the cursor is on screen."""
        height = self.visible_rows
        self.top = min(max(self.top, self.cursor - height + 1), self.cursor)
        self.top = min(max(self.top, 0), max(0, self.row_count - height))

    def rows_changed(self) -> None:
        """The rows have changed: keep cursor and scroll position within them, and redraw."""
        self.cursor = self.validate_cursor(self.cursor)
        self.reveal()
        self.refresh()

    def on_resize(self) -> None:
        """Keep the cursor on screen."""
        self.reveal()

    def _step(self, start: int, direction: int) -> None:
        index = start
        while 0 <= index < self.row_count and not self.can_stop_at(index):
            index += direction
        if 0 <= index < self.row_count:
            self.cursor = index

    def action_move_cursor(self, by: int) -> None:
        """Move to the next row that can be selected."""
        self._step(self.cursor + by, 1 if by > 0 else -1)

    def action_page(self, direction: int) -> None:
        """A screenful up or down."""
        target = self.cursor + direction * max(1, self.visible_rows - 1)
        target = min(max(target, 0), max(0, self.row_count - 1))
        before = self.cursor
        self._step(target, direction)
        if self.cursor == before:
            self._step(target, -direction)

    def action_edge(self, direction: int) -> None:
        """To the first or the last row."""
        self._step(0 if direction < 0 else self.row_count - 1, -direction)

    def action_select(self) -> None:
        """Choose the row under the cursor."""
        if self.row_count:
            self.post_message(self.Selected(self, self.cursor))

    # ---------------------------------------------------------------- mouse

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll three rows up."""
        event.stop()
        self._scroll(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll three rows down."""
        event.stop()
        self._scroll(3)

    def _scroll(self, by: int) -> None:
        self.top = min(max(self.top + by, 0), max(0, self.row_count - self.visible_rows))
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row; a second click there chooses it."""
        if event.y < self.header_rows:
            self.post_message(self.HeaderClicked(self, event.x))
            return
        index = self.top + event.y - self.header_rows
        if not 0 <= index < self.row_count or not self.can_stop_at(index):
            return
        if index == self.cursor and event.chain >= 2:
            self.action_select()
        else:
            self.cursor = index
            self.clicked(index, event.x)

    def clicked(self, index: int, x: int) -> None:
        """A row was clicked at a column of cells."""
