"""The line for the console's messages: over the key bar, for some seconds, higher for long sentences."""

from __future__ import annotations

from collections import deque

from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from mamba_tui.widgets.safe_text import clip, visible

LONGEST = 600
SECONDS, PROBLEM_SECONDS = 4.0, 8.0
KEPT = 50


class StatusLine(Static):
    """Shows the latest message. `said` keeps the last ones as (sentence, whether it is about a problem)."""

    DEFAULT_CSS = """
    StatusLine {
        dock: bottom; layer: overlay; display: none; height: auto; max-height: 5; padding: 0 1;
        background: $panel; color: $foreground;
    }
    StatusLine.-on { display: block; }
    StatusLine.-problem { color: $text-error; text-style: bold; }
    """

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.said: deque[tuple[str, bool]] = deque(maxlen=KEPT)
        self._timer: Timer | None = None

    def say(self, message: object, *, problem: bool = False) -> None:
        """Show a sentence, with text from outside made visible."""
        text = clip(visible(message), LONGEST)
        self.said.append((text, problem))
        self.update(Content(text))
        self.set_class(problem, "-problem")
        self.add_class("-on")
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(PROBLEM_SECONDS if problem else SECONDS, self.clear)

    def clear(self) -> None:
        """Show the key bar again."""
        self.remove_class("-on")

    def on_click(self) -> None:
        """A click closes it."""
        self.clear()

    def history(self) -> Content:
        """The last messages, newest first."""
        lines = [(f"{text}\n", "$text-error" if problem else "") for text, problem in reversed(self.said)]
        return Content.assemble(*lines) if lines else Content("No messages yet.")
