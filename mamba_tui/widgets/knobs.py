"""Knobs: a few named values on one or two lines, selected with left and right, changed in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from mamba_tui import keys
from mamba_tui.widgets.cached_styles import CachedStyles
from mamba_tui.widgets.edit_in_place import EditInPlace
from mamba_tui.widgets.line_edit import LineEdit
from mamba_tui.widgets.safe_text import clip


@dataclass(frozen=True)
class Knob:
    """One value: its key, short name, kind, bounds and step."""

    key: str
    label: str
    default: int | float | str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.1
    help: str = ""

    def parse(self, text: str) -> int | float | str | None:
        """The typed value, or None if it isn't accepted."""
        if isinstance(self.default, str):
            return text
        try:
            value = float(text)
        except ValueError:
            return None
        if not self.low <= value <= self.high or (isinstance(self.default, int) and not value.is_integer()):
            return None
        return int(value) if isinstance(self.default, int) else value

    def nudged(self, value: Any, direction: int) -> int | float | str:
        """A step up or down, within bounds; doubling or halving if the step is 0."""
        if isinstance(self.default, str):
            return str(value)
        moved = value * 2**direction if self.step == 0 and value else value + direction * (self.step or 1)
        moved = min(max(moved, self.low), self.high)
        return int(moved) if isinstance(self.default, int) else round(float(moved), 4)


class Knobs(CachedStyles, EditInPlace, can_focus=True):
    """The row of knobs. `values` are their current values."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "knobs--label",
        "knobs--edit",
        "knobs--changed",
        "knobs--problem",
    }
    DEFAULT_CSS = """
    Knobs { height: auto; background: $surface; padding: 0 1; }
    Knobs .knobs--label { color: $text-muted; background: $surface; }
    Knobs .knobs--changed { color: $accent; background: $surface; text-style: bold; }
    Knobs .knobs--edit { background: $primary 60%; color: $foreground; text-style: bold; }
    Knobs .knobs--problem { color: $text-error; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("knobs")
    at = reactive(0)
    VALUE_CELLS = 12

    class Changed(Message):
        """A value changed."""

    def __init__(self, knobs: Sequence[Knob], values: Mapping[str, Any], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.knobs = knobs
        self.values: dict[str, Any] = {}
        for knob in knobs:
            given = values.get(knob.key, knob.default)
            good = type(given) is type(knob.default) and knob.parse(str(given)) is not None
            self.values[knob.key] = given if good else knob.default
        self._spans: list[tuple[int, int, int, int]] = []

    def value_text(self, knob: Knob) -> str:
        """A value as shown."""
        value = self.values[knob.key]
        if isinstance(value, str):
            return repr(clip(value, 10)) if value else "none"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _cells(self, index: int) -> int:
        knob = self.knobs[index]
        value = self.VALUE_CELLS if self.edit is not None and index == self.at else len(self.value_text(knob))
        return len(knob.label) + 1 + value

    def _layout(self, width: int) -> list[list[int]]:
        rows: list[list[int]] = [[]]
        used = 0
        for index in range(len(self.knobs)):
            cells = self._cells(index) + 3
            if used and used + cells - 3 > width:
                rows.append([])
                used = 0
            rows[-1].append(index)
            used += cells
        return rows

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many lines as needed."""
        return len(self._layout(width))

    def render_line(self, y: int) -> Strip:
        """One line of knobs."""
        width = self.size.width
        rows = self._layout(width)
        base = self.component("")
        if y >= len(rows):
            return Strip.blank(width, base)
        segments: list[Segment] = []
        self._spans = [span for span in self._spans if span[0] != y]
        at = 0
        for index in rows[y]:
            knob = self.knobs[index]
            here = index == self.at and self.has_focus
            cells = self._cells(index)
            self._spans.append((y, at, at + cells, index))
            at += cells + 3
            label = self.component("knobs--label")
            segments.append(Segment(f"{knob.label} ", label))
            if here and self.edit is not None:
                good = knob.parse(self.edit.text) is not None
                style = self.component("knobs--edit" if good else "knobs--problem")
                segments += self.edit.segments(self.VALUE_CELLS, style)
            else:
                changed = self.values[knob.key] != knob.default
                style = self.component("knobs--changed") if changed else base
                segments.append(Segment(self.value_text(knob), style + Style(reverse=here)))
            segments.append(Segment("   ", base))
        return Strip(segments).adjust_cell_length(width, base)

    # -------------------------------------------------------------- editing

    def set(self, key: str, value: float | str) -> None:
        """Set one of the values, which must be acceptable."""
        self.values[key] = value
        self._changed()

    def _changed(self) -> None:
        self.refresh(layout=True)
        self.post_message(self.Changed())

    def validate_at(self, at: int) -> int:
        """Keep the cursor on a knob."""
        return min(max(at, 0), len(self.knobs) - 1)

    def watch_at(self) -> None:
        """Another knob is selected."""
        self.refresh()
        self.post_message(self.Changed())

    def begins_with(self, character: str) -> bool:
        """Digits start a number."""
        return character in "0123456789." and not isinstance(self.knob.default, str)

    def typed(self) -> None:
        """Show it; it takes effect when it is kept."""
        self.refresh(layout=True)

    def keep(self, text: str) -> None:
        """Keep it if it is accepted."""
        value = self.knob.parse(text)
        if value is not None:
            self.values[self.knob.key] = value
        self._changed()

    def drop(self) -> None:
        """Keep the old value."""
        self._changed()

    @property
    def knob(self) -> Knob:
        """The selected knob."""
        return self.knobs[self.at]

    def action_choose(self, by: int) -> None:
        """A neighboring knob."""
        self.at += by

    def action_nudge(self, direction: int) -> None:
        """Increase or decrease it a little."""
        self.values[self.knob.key] = self.knob.nudged(self.values[self.knob.key], direction)
        self._changed()

    def action_edit(self) -> None:
        """Type a value."""
        value = self.values[self.knob.key]
        self.edit = LineEdit(value if isinstance(value, str) else self.value_text(self.knob))
        self.refresh(layout=True)

    def action_default(self) -> None:
        """Reset to the default."""
        self.values[self.knob.key] = self.knob.default
        self._changed()

    def on_click(self, event: events.Click) -> None:
        """Select the knob; a second click edits it."""
        for y, start, end, index in self._spans:
            if event.y == y and start <= event.x - 1 < end:
                if index == self.at and event.chain >= 2:
                    self.action_edit()
                self.at = index

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Increase the selected knob."""
        event.stop()
        self.action_nudge(1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Decrease the selected knob."""
        event.stop()
        self.action_nudge(-1)
