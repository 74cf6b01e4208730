"""Cutting Project Gutenberg's header and licence away from the book between them."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A header is at most a few pages, a licence about twenty: what looks like a marker but has more text
# behind it than that is part of the text, and stays.
HEADER_LIMIT = 1 << 16
LICENCE_LIMIT = 1 << 17
LINE_LIMIT = 1 << 12

# A marker is looked for by words that stand in it, which is many times faster than a pattern, and the
# line around them is then compared with the pattern.
_START = (
    re.compile(
        r"[ \t]*\*\*\*[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n"
        r"(?:(?<!\*\*\*\n)(?<!\*\*\* \n)[^\n]{1,120}\*\*\*[ \t]*\n)?"
    ),
    ("PROJECT GUTENBERG",),
)
_SMALL_PRINT = (re.compile(r"[ \t]*\*END ?\*? ?THE SMALL PRINT![^\n]*\n"), ("SMALL PRINT!",))
_END = (
    re.compile(
        r"[ \t]*(?:\*\*\*[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG"
        r"|End of (?:the |The |this )?Project Gutenberg)[^\n]*(?:\n|\Z)"
    ),
    ("PROJECT GUTENBERG", "Project Gutenberg"),
)
_Marker = tuple[re.Pattern[str], tuple[str, ...]]


class GutenbergCutter:
    """Takes a text piece by piece and gives it back without headers and licences.

    A file may hold several books; `True` beside a piece says that a new one begins there. `notes`
    says afterwards what was cut. Memory is bounded by the limits above.
    """

    def __init__(self) -> None:
        self._state = "header"
        self._buffer = ""
        self._fresh = True
        self._line_start = True
        self._marker_end = 0
        self.header_characters = 0
        self.licence_characters = 0
        self.books = 0

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Pieces that are certain after `text` has been added."""
        self._buffer += text
        yield from self._advance(final=False)

    def finish(self) -> Iterator[tuple[bool, str]]:
        """The rest, after the last `feed`."""
        yield from self._advance(final=True)

    @property
    def notes(self) -> list[str]:
        """What was cut, in words."""
        cut = self.header_characters + self.licence_characters
        if not cut:
            return []
        books = f", {self.books} books" if self.books > 1 else ""
        return [f"Project Gutenberg header and licence cut ({cut:,} characters{books})"]

    def _advance(self, final: bool) -> Iterator[tuple[bool, str]]:
        while True:
            before = self._state
            yield from getattr(self, f"_in_{self._state}")(final)
            if self._state == before:
                return

    def _in_header(self, final: bool) -> Iterator[tuple[bool, str]]:
        """At the top of the file: wait for a START marker, or for enough text to do without."""
        yield from ()
        marker = self._search(_START)
        if not final and (self._is_close(marker) if marker else len(self._buffer) < HEADER_LIMIT):
            return
        if marker is None or marker.start() > HEADER_LIMIT:
            marker = self._search(_SMALL_PRINT)
        if marker is not None and marker.start() <= HEADER_LIMIT:
            self._begin_book(marker.end())
        self._state = "body"

    def _in_body(self, final: bool) -> Iterator[tuple[bool, str]]:
        """Inside the text: everything but a last stretch, which may be the beginning of a marker."""
        marker = self._search(_END)
        if marker is not None and (final or marker.end() < len(self._buffer)):
            body = self._buffer[: marker.start()].rstrip()
            body = self._buffer[: len(body) + 1] if body else ""
            yield from self._emit(body)
            self._buffer = self._buffer[len(body) :]
            self._marker_end = marker.end() - len(body)
            self._state = "licence"
            return
        keep = 0 if final else LINE_LIMIT
        edge = len(self._buffer) - keep
        if edge <= 0:
            return
        newline = self._buffer.rfind("\n", 0, edge) + 1
        edge = newline if newline and not final else edge
        yield from self._emit(self._buffer[:edge])
        self._buffer = self._buffer[edge:]

    def _in_licence(self, final: bool) -> Iterator[tuple[bool, str]]:
        """Behind an END marker: gone if the file or another book follows soon, else text after all."""
        marker = self._search(_START)
        if marker is not None and marker.start() <= LICENCE_LIMIT:
            if not final and self._is_close(marker):
                return
            self.licence_characters += marker.start()
            self.header_characters -= marker.start()
            self._begin_book(marker.end())
            self._state = "body"
        elif len(self._buffer) > LICENCE_LIMIT:
            yield from self._emit(self._buffer[: self._marker_end])
            self._buffer = self._buffer[self._marker_end :]
            self._state = "body"
        elif final:
            self.licence_characters += len(self._buffer)
            self._buffer = ""

    def _is_close(self, marker: re.Match[str]) -> bool:
        """True where more of the marker, or of the empty lines behind it, may follow."""
        return len(self._buffer) < marker.end() + LINE_LIMIT

    def _begin_book(self, end: int) -> None:
        rest = self._buffer[end:].lstrip("\n")
        self.header_characters += len(self._buffer) - len(rest)
        self._buffer = rest
        self._fresh = True
        self._line_start = True
        self.books += 1

    def _emit(self, text: str) -> Iterator[tuple[bool, str]]:
        if text:
            yield self._fresh, text
            self._fresh = False
            self._line_start = text.endswith("\n")

    def _search(self, marker: _Marker) -> re.Match[str] | None:
        """The first line of the buffer that is such a marker."""
        pattern, words = marker
        first: re.Match[str] | None = None
        for word in words:
            end = len(self._buffer) if first is None else first.start()
            place = self._buffer.find(word, 0, end)
            while place >= 0:
                line = self._buffer.rfind("\n", max(0, place - LINE_LIMIT), place) + 1
                match = pattern.match(self._buffer, line) if line or self._line_start else None
                if match is not None:
                    first = match
                    break
                place = self._buffer.find(word, place + 1, end)
        return first
