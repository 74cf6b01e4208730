"""Typing a value in place: the keys that belong to it, and the ways out."""

from __future__ import annotations

from textual import events
from textual.widget import Widget

from mamba_tui.widgets.line_edit import LineEdit


class EditInPlace(Widget):
    """A widget with values, one of which may be being typed (`edit`).

    Enter, Tab, up and down keep it, and so does moving the focus; Esc discards it. Name this class after the
    other bases: Textual takes styles and keys from the first one.
    """

    edit: LineEdit | None = None

    def begins_with(self, character: str) -> bool:
        """Whether typing this character starts to edit the value under the cursor."""
        raise NotImplementedError

    def typed(self) -> None:
        """The text of `edit` has changed."""
        raise NotImplementedError

    def keep(self, text: str) -> None:
        """`text` was typed and is to be kept."""
        raise NotImplementedError

    def drop(self) -> None:
        """Discard what was typed."""
        raise NotImplementedError

    def finish(self) -> None:
        """Keep the value being typed."""
        if self.edit is not None:
            text, self.edit = self.edit.text, None
            self.keep(text)

    def cancel(self) -> None:
        """Discard the value being typed."""
        if self.edit is not None:
            self.edit = None
            self.drop()

    def on_blur(self) -> None:
        """Losing the focus keeps what was typed."""
        self.finish()

    def on_key(self, event: events.Key) -> None:
        """While a value is edited, all keys belong to it; typing may start to edit."""
        if self.edit is not None:
            if not self._edit_key(event):
                return
        elif event.character and self.begins_with(event.character):
            self.edit = LineEdit(event.character)
            self.typed()
        else:
            return
        event.stop()
        event.prevent_default()

    def _edit_key(self, event: events.Key) -> bool:
        """Whether the key is used up; a key that leads elsewhere is passed on after the value is kept."""
        assert self.edit is not None
        if event.key in ("enter", "tab", "shift+tab", "up", "down"):
            self.finish()
            return event.key == "enter"
        if event.key == "escape":
            self.cancel()
        elif self.edit.key(event.key, event.character):
            self.typed()
        elif event.key.startswith(("f", "ctrl+")):
            self.finish()
            return False
        return True
