"""A dialog for a text of several lines, typed or pasted."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical

from mamba_tui.widgets.dialogs import Dialog
from mamba_tui.widgets.prompt_editor import PromptEditor
from mamba_tui.widgets.safe_text import safe


class TextDialog(Dialog):
    """The text, or None when it was left."""

    DEFAULT_CSS = """
    TextDialog > .dialog { width: 90%; }
    TextDialog PromptEditor { height: auto; min-height: 4; max-height: 16; border: none; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe("Look at a text")
            box.border_subtitle = safe("Enter reads it, Ctrl+J new line, Esc cancel")
            editor = PromptEditor([], id="typed-text")
            editor.placeholder = "Type or paste a text; Enter reads it."
            editor.text = self._text
            yield editor

    def on_mount(self) -> None:
        """Type at once, over the text before."""
        editor = self.query_one(PromptEditor)
        editor.focus()
        editor.select_all()

    @on(PromptEditor.Submitted)
    def _submitted(self, event: PromptEditor.Submitted) -> None:
        self.dismiss(event.text)
