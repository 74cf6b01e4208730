"""The prompt: several lines, Enter generates, Up on the first line brings back earlier prompts."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.widgets import TextArea

from mamba_tui import keys


class PromptEditor(TextArea):
    """A TextArea with history."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("prompt")

    class Submitted(Message):
        """Enter was pressed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, history: list[str], *, id: str) -> None:
        super().__init__(
            id=id, soft_wrap=True, compact=True, placeholder="Type how the text begins; Enter writes on."
        )
        self.past = history
        self._place = len(history)
        self._draft = ""

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_submit()
            return
        if event.key == "up" and self.cursor_location[0] == 0 and self.past:
            event.stop()
            event.prevent_default()
            self.action_history(-1)
            return
        last = self.document.line_count - 1
        if event.key == "down" and self.cursor_location[0] == last and self._place < len(self.past):
            event.stop()
            event.prevent_default()
            self.action_history(1)
            return
        await super()._on_key(event)

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        """Show the cursor, unless it is beyond the text, as happens in Textual's undo and redo.

        https://github.com/Textualize/textual/issues/6686: showing it there ends the program.
        """
        if self.cursor_location[0] >= self.document.line_count:
            return Offset()
        return super().scroll_cursor_visible(center, animate)

    def action_submit(self) -> None:
        """Remember the prompt and request the text."""
        text = self.text
        if text.strip() and not text.startswith("/") and (not self.past or self.past[-1] != text):
            self.past.append(text)
            del self.past[:-200]
        self._place = len(self.past)
        self.post_message(self.Submitted(text))

    def action_newline(self) -> None:
        """A new line."""
        self.insert("\n")

    def action_history(self, by: int) -> None:
        """An earlier or later prompt."""
        target = min(max(self._place + by, 0), len(self.past))
        if target == self._place:
            return
        if self._place == len(self.past):
            self._draft = self.text
        self._place = target
        self.text = self.past[target] if target < len(self.past) else self._draft
        self.move_cursor(self.document.end)
