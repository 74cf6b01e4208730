"""One line of text being edited inside a row of a table: keys in, text and cursor out."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style

from mamba_tui.widgets.safe_text import visible

LONGEST = 4096


class LineEdit:
    """Text with a cursor. The widget that owns it passes on keys and draws `segments`."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.cursor = len(text)

    def insert(self, text: str) -> None:
        """Insert text at the cursor; line ends become spaces."""
        clean = " ".join(text.splitlines())[: LONGEST - len(self.text)]
        self.text = self.text[: self.cursor] + clean + self.text[self.cursor :]
        self.cursor += len(clean)

    def key(self, key: str, character: str | None) -> bool:
        """Handle a key; False if it isn't for editing."""
        if key in ("left", "right"):
            self.cursor = min(max(self.cursor + (1 if key == "right" else -1), 0), len(self.text))
        elif key in ("home", "ctrl+a"):
            self.cursor = 0
        elif key in ("end", "ctrl+e"):
            self.cursor = len(self.text)
        elif key in ("backspace", "ctrl+h"):
            if self.cursor:
                self.text = self.text[: self.cursor - 1] + self.text[self.cursor :]
                self.cursor -= 1
        elif key == "delete":
            self.text = self.text[: self.cursor] + self.text[self.cursor + 1 :]
        elif key == "ctrl+u":
            self.text, self.cursor = self.text[self.cursor :], 0
        elif key == "ctrl+w":
            kept = self.text[: self.cursor].rstrip().rpartition(" ")[0]
            self.text, self.cursor = kept + self.text[self.cursor :], len(kept)
        elif character and character.isprintable():
            self.insert(character)
        else:
            return False
        return True

    def segments(self, width: int, style: Style) -> list[Segment]:
        """The text in exactly `width` cells, scrolled so that the cursor is visible, in reverse."""
        before, after = visible(self.text[: self.cursor]), visible(self.text[self.cursor :])
        under, rest = (after[:1] or " "), after[1:]
        before = _first_cells(before[::-1], width - cell_len(under))[::-1]
        room = max(0, width - cell_len(before) - cell_len(under))
        rest = _first_cells(rest, room)
        space = " " * max(0, room - cell_len(rest))
        return [
            Segment(before, style),
            Segment(under, style + Style(reverse=True)),
            Segment(rest + space, style),
        ]


def _first_cells(text: str, cells: int) -> str:
    """As much of the text as fits; a wide character at the edge doesn't."""
    if cells <= 0 or not text:
        return ""
    first = chop_cells(text, cells)[0]
    return first if cell_len(first) <= cells else ""
