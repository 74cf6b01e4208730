"""Text that is set often: setting the same text again costs nothing, and nothing is laid out again."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static


class TextLine(Static):
    """A Static of fixed size."""

    _shown: Content | None = None

    def show(self, content: Content, *, layout: bool = False) -> None:
        """Show a text if it is a different one; `layout` if its height may change."""
        if self._shown is not None and content.is_same(self._shown):
            return
        self._shown = content
        self.update(content, layout=layout)
