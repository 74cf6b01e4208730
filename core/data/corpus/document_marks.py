"""`<|endoftext|>` and `<|startoftext|>` spelled out in a text, as is common in texts for fine-tuning GPT-2.

They are treated like any other text, unless `document_marks = "cut"` makes every piece between them a
document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MARKS = ("<|endoftext|>", "<|startoftext|>")
_MARK = re.compile(r"\n?<\|(?:end|start)oftext\|>\n?")
_LONGEST = max(map(len, MARKS)) + 2


class MarkCounter:
    """Counts marks in a text that comes in stretches."""

    def __init__(self) -> None:
        self.count = 0
        self._rest = ""

    def see(self, text: str) -> None:
        """Count the marks in the next stretch."""
        text = self._rest + text
        rest = text[1 - max(map(len, MARKS)) :]
        if "<|" in text:
            self.count += sum(map(text.count, MARKS))
            for mark in MARKS:  # count each one once
                rest = rest.rpartition(mark)[2]
        self._rest = rest

    @property
    def notes(self) -> list[str]:
        """The number of marks, in words."""
        if not self.count:
            return []
        times = "once" if self.count == 1 else f"{self.count:,} times"
        return [
            f"spells a document mark such as <|endoftext|> {times}: read as text; "
            'document_marks = "cut" begins a document at each'
        ]


def cut_at_marks(stretches: Iterable[tuple[bool, str]]) -> Iterator[tuple[bool, str]]:
    """The text without its marks; True with each stretch that begins a document, as each piece does."""
    cutter = _Cutter()
    for begins, text in stretches:
        if begins:
            yield from cutter.advance(final=True)
            cutter = _Cutter()
            cutter.fresh = True
        cutter.waiting += text
        yield from cutter.advance(final=False)
    yield from cutter.advance(final=True)


class _Cutter:
    """Holds back the last characters, which may begin a mark."""

    def __init__(self) -> None:
        self.waiting = ""
        self.fresh = False
        self._blank = ""  # white space at the top of a document that may contain nothing else

    def advance(self, final: bool) -> Iterator[tuple[bool, str]]:
        """The text that is certain."""
        start = 0
        for mark in _MARK.finditer(self.waiting):
            if mark.end() == len(self.waiting) and not final:
                break  # a line end may follow, which belongs to it
            yield from self._piece(self.waiting[start : mark.start()])
            self.fresh, self._blank, start = True, "", mark.end()
        rest = self.waiting[start:]
        edge = len(rest) if final else max(0, len(rest) - _LONGEST)
        yield from self._piece(rest[:edge])
        self.waiting = rest[edge:]

    def _piece(self, text: str) -> Iterator[tuple[bool, str]]:
        if self.fresh and (not text or text.isspace()):
            self._blank += text
        elif text:
            yield self.fresh, self._blank + text
            self.fresh, self._blank = False, ""
