"""Where text that a model generated goes: exact into a file or a pipe, safe on a terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

from mamba_tui.widgets.safe_text import visible

# What a terminal shows well and a table of cells does not: tabs, and the joiners of letters.
HARMLESS = re.compile("([\t\u200c\u200d]+)")


def terminal_text(text: str) -> str:
    """Text as a terminal may show it: controls as visible glyphs, lines, tabs and joiners as they are."""
    pieces = HARMLESS.split(text)
    return "".join(piece if index % 2 else visible(piece, lines=True) for index, piece in enumerate(pieces))


def note(text: str) -> None:
    """A remark about what goes to standard output: on standard error, dim on a terminal."""
    terminal = sys.stderr.isatty()
    print(f"\x1b[2m{terminal_text(text)}\x1b[0m" if terminal else text, file=sys.stderr, flush=True)


class TextOutput:
    """Writes text piece by piece to a stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._exact = not self._stream.isatty()
        self._held = ""

    def write(self, text: str) -> None:
        """The next piece; it is there at once."""
        if not self._exact:
            # The end of a line may come in two pieces.
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            text = terminal_text(text.removesuffix(self._held))
        self._stream.write(text)
        self._stream.flush()

    def end_line(self) -> None:
        """After the last piece."""
        held, self._held = self._held, ""
        self._stream.write(visible(held, lines=True) + "\n")
        self._stream.flush()
