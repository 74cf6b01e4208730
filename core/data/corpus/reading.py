"""From a file to clean text: decoded, with LF line ends, without license pages, unwrapped if requested.

Everything here works block by block, so memory doesn't grow with the file or its lines. The same file and
options always give the same text, cut into the same pieces.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from core.data.corpus.document_marks import MARKS, MarkCounter, cut_at_marks
from core.data.corpus.encodings import SAMPLE, NotTextError, make_decoder
from core.data.corpus.gutenberg import LINE_LIMIT, GutenbergCutter
from core.data.corpus.listing import SourceFile
from core.system.files import open_to_read

# Part of every cache key: increase it when a change makes the same file give other text or other pieces.
VERSION = 2
BLOCK = 1 << 20
PIECE = 1 << 17
_CUT_WINDOW = 1 << 12

# A line break is a hard wrap if a long line is followed by text that is neither indented nor a new paragraph;
# verse and lists have short or indented lines.
_HARD_WRAP = re.compile(r"(?<=[^\n]{45})[ \t]*\n(?=\S)")
_SPACE_AFTER_TEXT = re.compile(r"(?<=\S) ")
_ANY_SPACE_AFTER_TEXT = re.compile(r"(?<=\S)\s")


@dataclass(frozen=True)
class ReadingOptions:
    """The options that determine how a file becomes text. `encoding` None = detect it."""

    encoding: str | None = None
    strip_gutenberg: bool = True
    unwrap_lines: bool = False
    cut_at_marks: bool = False

    @property
    def key(self) -> str:
        """A short form for cache keys."""
        flags = f"{self.strip_gutenberg:d}{self.unwrap_lines:d}{self.cut_at_marks:d}"
        return f"{VERSION}-{self.encoding or 'auto'}-{flags}"


@dataclass
class Observers:
    """Observers of a file that is being read; each is told what it is interested in."""

    cutter: GutenbergCutter | None = None
    marks: MarkCounter | None = None
    decoder: codecs.IncrementalDecoder | None = None
    block: Callable[[bytes], None] = lambda block: None


def clean_text(
    source: SourceFile, encoding: str, options: ReadingOptions, observers: Observers | None = None
) -> Iterator[tuple[bool, str]]:
    """The text of a file in stretches; a stretch that comes with True begins a document.

    Raises UnicodeDecodeError if the file isn't in `encoding`, OSError if it can't be read, NotTextError if it
    is a gzip file that unpacks to more than any text does.
    """
    observers = observers or Observers()
    blocks = _decoded(source.path, observers.decoder or make_decoder(encoding), observers.block)
    if observers.marks is not None:
        blocks = _seen(blocks, observers.marks.see)
    cutter = observers.cutter or (GutenbergCutter() if options.strip_gutenberg else None)
    stretches = _cut(blocks, cutter) if cutter else _mark_first(blocks)
    if options.cut_at_marks:
        stretches = cut_at_marks(stretches)
    return _unwrapped(stretches) if options.unwrap_lines else stretches


def _seen(blocks: Iterable[str], see: Callable[[str], None]) -> Iterator[str]:
    for block in blocks:
        see(block)
        yield block


def seekable_text(source: SourceFile, encoding: str, end: int, amount: int) -> Iterator[str] | None:
    """About `amount` characters, evenly spread over the first `end` characters of a file.

    Only for plain UTF-8, where decoding can begin anywhere; None for other files. A character has at least
    one byte, so no byte before `end` belongs to a character at or after `end`. Document marks are left out.
    """
    if encoding not in ("utf-8", "utf-8-sig") or source.path.lower().endswith(".gz"):
        return None
    return _slices(source.path, min(end, source.size), amount)


def _slices(path: str, end: int, amount: int) -> Iterator[str]:
    count = max(1, amount // SAMPLE)
    with open_text(path) as file:
        for index in range(count):
            low = index * end // count
            file.seek(low, os.SEEK_SET)
            text = file.read(min(SAMPLE, end - low)).decode("utf-8", "ignore")
            for mark in MARKS:
                text = text.replace(mark, "")
            yield text.replace("\r\n", "\n").replace("\r", "\n")


def open_text(path: str) -> BinaryIO:
    """The bytes of a file, unpacked if it is a gzip file. Only regular files, and without waiting."""
    # Whether the link at the end of a path may be followed was decided when the folder was listed.
    file = open_to_read(path, follow_links=True)
    if not path.lower().endswith(".gz"):
        return file
    return cast(BinaryIO, _Unpacked(file))


class _Unpacked(gzip.GzipFile):
    """A gzip file that raises when it unpacks to far more than text does.

    Prose shrinks to a third or a quarter, tables and logs to a twentieth; deflate can reach a thousandth.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._file = file
        self._most = max(LEAST_UNPACKED, MOST_UNPACKED * os.fstat(file.fileno()).st_size)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self._most:
            raise NotTextError(
                f"unpacks to more than {MOST_UNPACKED} times its size, which no text does; "
                "unpack it yourself if it is one"
            )
        return data

    def close(self) -> None:
        super().close()
        self._file.close()


MOST_UNPACKED = 100
LEAST_UNPACKED = 1 << 26
"""Bytes that any gzip file may unpack to."""


def _decoded(path: str, decoder: codecs.IncrementalDecoder, see: Callable[[bytes], None]) -> Iterator[str]:
    """Text blocks with LF line ends and no BOM."""
    held = ""
    with open_text(path) as file:
        while True:
            block = file.read(BLOCK)
            see(block)
            text = held + decoder.decode(block, final=not block)
            held = ""
            if "\r" in text:
                if text.endswith("\r") and block:
                    text, held = text[:-1], "\r"
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            if text:
                yield text
            if not block:
                return


def _mark_first(blocks: Iterable[str]) -> Iterator[tuple[bool, str]]:
    fresh = True
    for block in blocks:
        yield fresh, block
        fresh = False


def _cut(blocks: Iterable[str], cutter: GutenbergCutter) -> Iterator[tuple[bool, str]]:
    for block in blocks:
        yield from cutter.feed(block)
    yield from cutter.finish()


def _unwrapped(stretches: Iterable[tuple[bool, str]]) -> Iterator[tuple[bool, str]]:
    """Join hard-wrapped lines. An incomplete paragraph waits for the next stretch."""
    fresh, held = False, ""
    for begins, text in stretches:
        if begins:
            if held:
                yield fresh, _HARD_WRAP.sub(" ", held)
            fresh, held = True, ""
        held += text
        edge = held.rfind("\n\n") + 2
        if edge < 2:
            # An extremely long paragraph is cut at a line end or, without one, anywhere.
            edge = max(held.rfind("\n"), len(held) - LINE_LIMIT) if len(held) > BLOCK else 0
        if edge > 0:
            yield fresh, _HARD_WRAP.sub(" ", held[:edge])
            fresh, held = False, held[edge:]
    if held:
        yield fresh, _HARD_WRAP.sub(" ", held)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to encode at once. `opens`: an `<|endoftext|>` precedes it; `tail`: it is for validation."""

    text: str
    opens: bool
    tail: bool


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a document, used for validation: from the first line at or after `target`.

    Without a line break before `limit` it begins at `target` itself.
    """

    target: int
    limit: int

    @classmethod
    def of(cls, characters: int, fraction: float) -> Tail:
        """The last `fraction` of this many characters, or a little less."""
        target = max(1, int(characters * (1 - fraction)))
        return cls(target, target + (characters - target) // 2)


def pieces(stretches: Iterable[tuple[bool, str]], tail: Tail | None = None) -> Iterator[Piece]:
    """Pieces of about PIECE characters, cut where no token can span the cut if there is such a position."""
    held: list[str] = []
    size = 0
    opens = in_tail = False
    for fresh, begins_tail, text in _split_at(stretches, tail):
        if fresh or begins_tail:
            if size:
                yield Piece("".join(held), opens, in_tail)
            held, size, opens = [], 0, True
            in_tail = in_tail or begins_tail
        held.append(text)
        size += len(text)
        if size >= PIECE + _CUT_WINDOW:
            buffer = "".join(held)
            low = 0
            while len(buffer) - low >= PIECE + _CUT_WINDOW:
                edge = _safe_cut(buffer, low + PIECE)
                yield Piece(buffer[low:edge], opens, in_tail)
                low, opens = edge, False
            held, size = [buffer[low:]], len(buffer) - low
    if size:
        yield Piece("".join(held), opens, in_tail)


def _split_at(stretches: Iterable[tuple[bool, str]], tail: Tail | None) -> Iterator[tuple[bool, bool, str]]:
    """Yields (begins a document, begins the tail, text); the tail begins with a new stretch."""
    position = 0
    waiting = tail is not None
    for fresh, text in stretches:
        if waiting and tail is not None and position + len(text) > tail.target:
            waiting = False
            low = max(tail.target - position, 0)
            newline = text.find("\n", max(low - 1, 0), max(tail.limit - position, 0))
            edge = newline + 1 if newline >= 0 else low
            if edge:
                yield fresh, False, text[:edge]
            yield fresh and not edge, True, text[edge:]
        else:
            yield fresh, False, text
        position += len(text)


def _safe_cut(text: str, target: int) -> int:
    """A position at or after `target` where cutting doesn't change the tokens, if one is near.

    A space after text always starts a new word; so does other white space, except with patterns that attach
    line ends to the previous word. Without either, as in Chinese, a word may be cut.
    """
    for pattern in (_SPACE_AFTER_TEXT, _ANY_SPACE_AFTER_TEXT):
        match = pattern.search(text, target, target + _CUT_WINDOW)
        if match is not None:
            return match.start()
    return target
