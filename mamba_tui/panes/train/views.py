"""The other two views of the Train pane: samples side by side, and the log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.events import Key
from textual.widgets import Static

from core.runs.events import Event, SampleEvent
from mamba_tui.backend.run_client import RunClient
from mamba_tui.widgets.safe_text import safe, visible
from mamba_tui.wording import event_sentence, sample_content

COLUMN_CELLS = 38


def newest_sample(session: RunClient) -> Content:
    """The newest sample in one paragraph, or how to come to one."""
    history = session.history
    if history is not None and history.samples:
        sample = history.samples[-1]
        head = Content.styled(f"sample at step {sample.step:,}  ", "$accent")
        return head + sample_content(sample, lines=False)
    if session.run is None or not session.alive:
        return Content("")
    return Content.styled("The first sample comes with the first evaluation; g asks now.", "$muted")


class SamplesView(Horizontal, can_focus=True):
    """Samples in the order of their steps, as many beside each other as fit; the newest at the right."""

    DEFAULT_CSS = """
    SamplesView { height: 1fr; }
    SamplesView > VerticalScroll { width: 1fr; height: 1fr; padding: 0 1; border-right: solid $panel; }
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
        """Show these samples; whoever looks at older ones keeps looking at them."""
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

    def on_key(self, event: Key) -> None:
        """Left and right go through time, up and down scroll."""
        if event.key in ("left", "right"):
            self.back += 1 if event.key == "left" else -1
            self._draw()
        elif event.key in ("up", "down", "pageup", "pagedown"):
            by = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10}[event.key]
            for column in self.query(VerticalScroll):
                column.scroll_relative(y=by, animate=False)
        else:
            return
        event.stop()


class LogView(VerticalScroll, can_focus=True):
    """What happened, in words, and what the trainer printed."""

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
