"""Removes Project Gutenberg's header and license from around a book."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A header is at most a few pages and a license about twenty. A marker line with more text before or after it
# than that belongs to the book and stays.
HEADER_LIMIT = 1 << 16
LICENSE_LIMIT = 1 << 17
LINE_LIMIT = 1 << 12

# Searching for a marker's words is many times faster than searching for the pattern; only the line around the
# words is compared with the pattern.
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
    """Takes a text piece by piece and returns it without headers and licenses.

    A file may hold several books; a piece with `True` begins a new one. Afterwards `notes` says what was
    removed. Memory is bounded by the limits above.
    """

    def __init__(self) -> None:
        self._state = "header"
        self._buffer = ""
        self._fresh = True
        self._line_start = True
        self._marker_end = 0
        self.header_characters = 0
        self.license_characters = 0
        self.books = 0

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Add `text`; yields the pieces that are now certain to belong to a book."""
        self._buffer += text
        yield from self._advance(final=False)

    def finish(self) -> Iterator[tuple[bool, str]]:
        """Yields the rest, after the last `feed`."""
        yield from self._advance(final=True)

    @property
    def notes(self) -> list[str]:
        """What was removed, in words."""
        cut = self.header_characters + self.license_characters
        if not cut:
            return []
        books = f", {self.books} books" if self.books > 1 else ""
        return [f"Project Gutenberg header and license removed ({cut:,} characters{books})"]

    def _advance(self, final: bool) -> Iterator[tuple[bool, str]]:
        while True:
            before = self._state
            yield from getattr(self, f"_in_{self._state}")(final)
            if self._state == before:
                return

    def _in_header(self, final: bool) -> Iterator[tuple[bool, str]]:
        """At the top of the file: wait for a START marker, or for enough text to rule one out."""
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
        """Inside a book: return everything except the last lines, which may be the beginning of a marker."""
        marker = self._search(_END)
        if marker is not None and (final or marker.end() < len(self._buffer)):
            body = self._buffer[: marker.start()].rstrip()
            body = self._buffer[: len(body) + 1] if body else ""
            yield from self._emit(body)
            self._buffer = self._buffer[len(body) :]
            self._marker_end = marker.end() - len(body)
            self._state = "license"
            return
        keep = 0 if final else LINE_LIMIT
        edge = len(self._buffer) - keep
        if edge <= 0:
            return
        newline = self._buffer.rfind("\n", 0, edge) + 1
        edge = newline if newline and not final else edge
        yield from self._emit(self._buffer[:edge])
        self._buffer = self._buffer[edge:]

    def _in_license(self, final: bool) -> Iterator[tuple[bool, str]]:
        """After an END marker: cut if the file ends or another book follows soon, otherwise it is text."""
        marker = self._search(_START)
        if marker is not None and marker.start() <= LICENSE_LIMIT:
            if not final and self._is_close(marker):
                return
            self.license_characters += marker.start()
            self.header_characters -= marker.start()
            self._begin_book(marker.end())
            self._state = "body"
        elif len(self._buffer) > LICENSE_LIMIT:
            yield from self._emit(self._buffer[: self._marker_end])
            self._buffer = self._buffer[self._marker_end :]
            self._state = "body"
        elif final:
            self.license_characters += len(self._buffer)
            self._buffer = ""

    def _is_close(self, marker: re.Match[str]) -> bool:
        """True while more of the marker, or empty lines after it, may follow."""
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
        """The first line of the buffer that matches the marker."""
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
