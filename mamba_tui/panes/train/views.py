"""The names of the views of Train, and two of them: samples side by side, and the log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widgets import Static

from core.runs.events import Event, SampleEvent
from mamba_tui import keys
from mamba_tui.backend.run_client import RunClient
from mamba_tui.widgets.cached_styles import CachedStyles
from mamba_tui.widgets.safe_text import safe, visible
from mamba_tui.wording import event_sentence, plan_event_lines, sample_content

COLUMN_CELLS = 38


def newest_samples(run_client: RunClient, count: int) -> Content:
    """The latest `count` samples, newest first, a paragraph each; before the first one the run's plan."""
    history = run_client.history
    if history is not None and history.samples:
        paragraphs = [
            Content.styled(f"sample at step {sample.step:,}  ", "$accent")
            + sample_content(sample, lines=False)
            for sample in list(history.samples)[: -count - 1 : -1]
        ]
        return Content("\n\n").join(paragraphs)
    if run_client.run is None or not run_client.alive:
        return Content("")
    plan = history.plan if history is not None else None
    ahead = visible(". ".join(plan_event_lines(plan))) + ".\n" if plan is not None else ""
    advice = "The first sample comes with the first evaluation; g asks now."
    return Content.assemble((ahead, "$foreground"), (advice, "$muted"))


class ViewTabs(CachedStyles):
    """The names of the views with their digits. A click chooses one."""

    COMPONENT_CLASSES = {"views--active", "views--digit"}  # noqa: RUF012
    DEFAULT_CSS = """
    ViewTabs { height: 1; background: $surface; color: $text-muted; }
    ViewTabs .views--active { color: $foreground; background: $panel; text-style: bold; }
    ViewTabs .views--digit { color: $accent; background: $surface; }
    """
    active = reactive("")

    class Chosen(Message):
        """A view was clicked."""

        def __init__(self, view: str) -> None:
            super().__init__()
            self.view = view

    def __init__(self, views: Sequence[str], active: str) -> None:
        super().__init__()
        self.views = views
        self.set_reactive(ViewTabs.active, active)

    def render_line(self, y: int) -> Strip:
        """The line."""
        base, segments = self.component(""), [Segment(" ", self.component(""))]
        for number, view in enumerate(self.views, 1):
            here = self.component("views--active") if view == self.active else None
            segments.append(Segment(f" {number}", here or self.component("views--digit")))
            segments.append(Segment(f" {view.capitalize()} ", here or base))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def on_click(self, event: Click) -> None:
        """Show the view."""
        left = 1
        for view in self.views:
            left += len(view) + 4
            if event.x < left:
                self.post_message(self.Chosen(view))
                return


class SamplesView(Horizontal, can_focus=True):
    """Samples in the order of their steps, as many side by side as fit; the latest at the right."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("samples")

    DEFAULT_CSS = """
    SamplesView { height: 1fr; }
    SamplesView > VerticalScroll { width: 1fr; height: 1fr; padding: 0 1; border-right: solid $line; }
    SamplesView:focus > VerticalScroll { border-right: solid $primary 60%; }
    SamplesView Static { height: auto; }
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.samples: Sequence[SampleEvent] = ()
        self.back = 0
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Room for up to four columns."""
        for _ in range(4):
            with VerticalScroll(can_focus=False):
                yield Static()

    def show(self, samples: Sequence[SampleEvent]) -> None:
        """Show these samples; a reader of older samples stays at them."""
        if self.back and len(samples) > len(self.samples):
            self.back += len(samples) - len(self.samples)
        self.samples = samples
        self._draw()

    def on_resize(self) -> None:
        """Another number of columns may fit."""
        self._draw()

    def _draw(self) -> None:
        count = max(1, min(4, self.size.width // COLUMN_CELLS))
        self.back = min(max(0, self.back), max(0, len(self.samples) - count))
        end = len(self.samples) - self.back
        chosen = list(self.samples)[max(0, end - count) : end]
        state = (count, [id(sample) for sample in chosen])
        if state == self._drawn:
            return
        self._drawn = state
        for place, column in enumerate(self.query(VerticalScroll)):
            column.display = place < max(1, min(count, len(chosen)))
            static = column.query_one(Static)
            if place < len(chosen):
                sample = chosen[place]
                head = Content.styled(f"step {sample.step:,}\n", "bold $accent")
                static.update(head + sample_content(sample))
            elif place == 0:
                static.update(safe("No samples yet. g asks for one now."))

    def action_older(self) -> None:
        """Older samples."""
        self.back += 1
        self._draw()

    def action_newer(self) -> None:
        """Newer samples."""
        self.back -= 1
        self._draw()

    def action_scroll_by(self, lines: int) -> None:
        """Scroll all columns."""
        for column in self.query(VerticalScroll):
            column.scroll_relative(y=lines, animate=False)


class LogView(VerticalScroll, can_focus=True):
    """What happened, as text, and what the trainer printed."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("log")

    DEFAULT_CSS = """
    LogView { height: 1fr; padding: 0 1; }
    LogView Static { height: auto; }
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """One text."""
        yield Static()

    def show(self, notes: Sequence[Event], printed: str) -> None:
        """Show the notes and the printed lines; stay at the end if the reader was there."""
        state = (len(notes), id(notes[-1]) if notes else 0, printed)
        if state == self._drawn:
            return
        self._drawn = state
        lines: list[Content | str] = []
        for note in list(notes)[-200:]:
            moment = time.strftime("%H:%M:%S", time.localtime(note.time))
            style = {"error": "$text-error", "warning": "$text-warning"}.get(note.kind, "")
            lines += [
                Content.styled(f"{moment}  ", "$muted"),
                Content.styled(visible(event_sentence(note)), style),
                "\n",
            ]
        if printed.strip():
            lines.append(Content.styled("\nprinted by the trainer\n", "bold $muted"))
            lines.append(safe(printed[-8000:], lines=True))
        at_end = self.scroll_offset.y >= self.max_scroll_y - 1
        self.query_one(Static).update(Content.assemble(*lines) if lines else safe("Nothing yet."))
        if at_end:
            self.call_after_refresh(self.scroll_end, animate=False)
