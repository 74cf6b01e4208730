"""Caches component styles.

Textual forgets them at every refresh, and computing them takes as long as drawing a widget.
"""

from __future__ import annotations

from rich.style import Style
from textual.widget import Widget


class CachedStyles(Widget):
    """A widget that needs its styles line by line."""

    _styles_by_name: dict[str, Style] | None = None

    def notify_style_update(self) -> None:
        """The theme or the focus has changed: compute them again."""
        super().notify_style_update()
        self._styles_by_name = None

    def component(self, name: str) -> Style:
        """A component style by its full name; "" is the widget's own style."""
        if self._styles_by_name is None:
            self._styles_by_name = {}
        style = self._styles_by_name.get(name)
        if style is None:
            style = self.get_component_rich_style(name) if name else self.rich_style
            self._styles_by_name[name] = style
        return style
