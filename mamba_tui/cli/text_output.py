"""Where generated text goes: exact into a file or a pipe, safe on a terminal."""

from __future__ import annotations

import re
import sys
from typing import TextIO

from mamba_tui.widgets.safe_text import visible

# Characters that terminals show well, unlike our tables: tabs, and characters that join letters.
HARMLESS = re.compile("([\t\u200c\u200d]+)")


def terminal_text(text: str) -> str:
    """Text that is safe on a terminal: controls become visible; lines, tabs and joiners stay as they are."""
    pieces = HARMLESS.split(text)
    return "".join(piece if index % 2 else visible(piece, lines=True) for index, piece in enumerate(pieces))


def note(text: str) -> None:
    """Print a remark about the output on standard error, dim on a terminal."""
    terminal = sys.stderr.isatty()
    print(f"\x1b[2m{terminal_text(text)}\x1b[0m" if terminal else text, file=sys.stderr, flush=True)


class TextOutput:
    """Writes text piece by piece to a stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._exact = not self._stream.isatty()
        self._held = ""

    def write(self, text: str) -> None:
        """Write the next piece, without buffering."""
        if not self._exact:
            # A line end of two characters may be split between two pieces.
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            text = terminal_text(text.removesuffix(self._held))
        self._stream.write(text)
        self._stream.flush()

    def end_line(self) -> None:
        """End the last line."""
        held, self._held = self._held, ""
        self._stream.write(visible(held, lines=True) + "\n")
        self._stream.flush()
