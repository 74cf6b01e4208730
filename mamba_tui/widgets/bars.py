"""The line at the top (tabs and the state of the run) and the line at the bottom (keys)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from mamba_tui import keys
from mamba_tui.widgets.cached_styles import CachedStyles
from mamba_tui.widgets.safe_text import clip


class TabBar(CachedStyles):
    """Tabs with their keys, and one line about the current activity at the right."""

    COMPONENT_CLASSES = {"bar--active", "bar--key", "bar--status", "bar--name"}  # noqa: RUF012
    DEFAULT_CSS = """
    TabBar { dock: top; height: 1; background: $surface; color: $foreground; }
    TabBar .bar--active { background: $primary; color: $text; text-style: bold; }
    TabBar .bar--key { color: $text-muted; background: $surface; }
    TabBar .bar--status { color: $foreground; background: $surface; }
    TabBar .bar--name { color: $accent; background: $surface; text-style: bold; }
    """
    active = reactive("")
    status = reactive("")
    short_status = reactive("")
    status_style = reactive("")

    class Chosen(Message):
        """A tab was clicked."""

        def __init__(self, tab: str) -> None:
            super().__init__()
            self.tab = tab

    def __init__(self, tabs: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self.tabs = tabs
        self._spans: list[tuple[int, int, str]] = []

    def render_line(self, y: int) -> Strip:
        """The line."""
        width = self.size.width
        style = self.component
        base, segments, at = self.component(""), [], 0
        name = " mamba-tui " if width >= 110 else " "
        segments.append(Segment(name, style("bar--name")))
        at += len(name)
        self._spans = []
        # The tabs' keys are on the help screen too, so they are left out first if space is short.
        needed = sum(len(key) + len(label) + 3 for _, key, label in self.tabs) + len(name)
        status_text = self.status
        if needed + cell_len(status_text) + 2 > width:
            status_text = self.short_status
        with_keys = needed + min(12, cell_len(status_text)) + 1 <= width
        for tab, key, label in self.tabs:
            key_text = f" {key}" if with_keys else ""
            here = tab == self.active
            segments.append(Segment(key_text, style("bar--active") if here else style("bar--key")))
            segments.append(Segment(f" {label} ", style("bar--active") if here else base))
            end = at + len(key_text) + len(label) + 2
            self._spans.append((at, end, tab))
            at = end
        room = width - at - 2
        text = clip(status_text, room) if room > 3 else ""
        segments.append(Segment(" " * (width - at - cell_len(text) - 1), base))
        status = style("bar--status")
        color = self.app.theme_variables.get(self.status_style, "") if self.status_style else ""
        if color.startswith("#"):
            status = status + Style(color=color[:7])
        segments.append(Segment(text + " ", status))
        return Strip(segments).adjust_cell_length(width, base)

    def on_click(self, event: events.Click) -> None:
        """Go to the tab."""
        for start, end, tab in self._spans:
            if start <= event.x < end:
                self.post_message(self.Chosen(tab))


class KeyBar(CachedStyles):
    """The keys that work here, the most useful first, as many as fit. Clicking one does what the key does."""

    COMPONENT_CLASSES = {"bar--key", "bar--label"}  # noqa: RUF012
    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; background: $surface; color: $foreground; }
    KeyBar .bar--key { color: $accent; background: $surface; text-style: bold; }
    KeyBar .bar--label { color: $text-muted; background: $surface; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._order = keys.bar_order()
        self._spans: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        """Follow the focus."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _screen: self.refresh())

    def _entries(self) -> list[tuple[int, str, str, str]]:
        entries: dict[str, tuple[int, str, str, str]] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            place = self._order.get((binding.action, binding.key))
            if place is None or not active.enabled or not binding.show:
                continue
            entry = (place, binding.key_display or binding.key, binding.description, binding.key)
            entries.setdefault(binding.action, entry)
        return sorted(entries.values())

    def render_line(self, y: int) -> Strip:
        """The line."""
        width, at = self.size.width, 0
        key_style = self.component("bar--key")
        label_style = self.component("bar--label")
        entries = self._entries()
        # Help and quit are always shown, at the right.
        fixed = [entry for entry in entries if entry[0] >= 90]
        right = "".join(f" {key} {label} " for _, key, label, _ in fixed)
        segments: list[Segment] = []
        self._spans = []

        def put(key: str, label: str, name: str) -> None:
            nonlocal at
            segments.append(Segment(f" {key}", key_style))
            segments.append(Segment(f" {label} ", label_style))
            end = at + cell_len(key) + cell_len(label) + 3
            self._spans.append((at, end, name))
            at = end

        for place, key, label, name in entries:
            if place < 90 and at + cell_len(key) + cell_len(label) + 3 + cell_len(right) <= width:
                put(key, label, name)
        space = max(0, width - at - cell_len(right))
        segments.append(Segment(" " * space, self.component("")))
        at += space
        for _, key, label, name in fixed:
            put(key, label, name)
        return Strip(segments).adjust_cell_length(width, self.component(""))

    def on_click(self, event: events.Click) -> None:
        """Do what the key does."""
        for start, end, name in self._spans:
            if start <= event.x < end:
                self.app.simulate_key(name)
