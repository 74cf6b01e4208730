"""From a file to clean text: decoded, with LF line ends, without license pages, unwrapped if asked.

Everything here works block by block, so memory does not grow with the file or its lines. The same file and
options always give the same text, cut into the same pieces.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np

from core.data.corpus.encodings import (
    CONTROLS,
    SAMPLE,
    Guess,
    NotTextError,
    first_guess,
    make_decoder,
    next_guess,
)
from core.data.corpus.gutenberg import LINE_LIMIT, GutenbergCutter
from core.data.corpus.listing import Found

# Part of every cache key: raise it when a change makes the same file give other text or other pieces.
VERSION = 1
BLOCK = 1 << 20
PIECE = 1 << 17
_CUT_WINDOW = 1 << 12

# A line break is a hard wrap if a long line is followed by text that is neither indented nor a new
# paragraph; verse and lists have short or indented lines.
_HARD_WRAP = re.compile(r"(?<=[^\n]{45})[ \t]*\n(?=\S)")
_SPACE_AFTER_TEXT = re.compile(r"(?<=\S) ")
_ANY_SPACE_AFTER_TEXT = re.compile(r"(?<=\S)\s")


@dataclass(frozen=True)
class ReadingOptions:
    """The options that decide how a file becomes text. `encoding` None = detect it."""

    encoding: str | None = None
    strip_gutenberg: bool = True
    unwrap_lines: bool = False

    @property
    def key(self) -> str:
        """A short form for cache keys."""
        return f"{VERSION}-{self.encoding or 'auto'}-{int(self.strip_gutenberg)}{int(self.unwrap_lines)}"


@dataclass
class Facts:
    """The facts about a file that one reading gives. `problem` says why it cannot be used, if so."""

    content: str = ""
    encoding: str = ""
    characters: int = 0
    bytes: int = 0
    documents: int = 0
    longest_line: int = 0
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    passing: bool = False  # the problem may go away although the file stays the same

    def to_list(self) -> list[Any]:
        """A compact JSON-compatible form."""
        return list(asdict(self).values())

    @classmethod
    def from_list(cls, values: Any) -> Facts:
        """The facts from their `to_list` form. Raises TypeError or ValueError for anything else."""
        facts = cls(*values)
        for name, default in _BLANK.items():
            value = getattr(facts, name)
            if type(value) is not type(default) or (type(value) is int and not 0 <= value < 1 << 53):
                raise ValueError(f"{name} is {type(value).__name__}")
        if not all(isinstance(note, str) for note in facts.notes):
            raise ValueError("a note is not text")
        return facts


_BLANK = asdict(Facts())


def survey(
    found: Found, options: ReadingOptions, count: Callable[[int], None], stop: threading.Event
) -> Facts:
    """Read a file once: its encoding, its length, and whatever is unusual about it.

    `count` is called with the number of bytes read; `stop` ends the reading and makes its facts invalid.
    """
    watch = _Watch(count, stop)
    try:
        with _open(found.path) as file:
            head = file.read(SAMPLE)
        if not head:
            return Facts(problem="is empty")
        guess = first_guess(head, options.encoding)
        try:
            return _survey_as(found, options, guess, watch)
        except UnicodeDecodeError as error:
            if guess.because:
                name = guess.encoding.removesuffix("-sig").upper()
                return Facts(problem=f"is not the {name} that {guess.because} ({error.reason})")
        guess = next_guess(head, *_first_error(found.path), options.encoding)
        try:
            return _survey_as(found, options, guess, watch)
        except UnicodeDecodeError as error:
            if options.encoding is not None:
                return Facts(problem=f"is neither UTF-8 nor {options.encoding}, as declared ({error.reason})")
        note = f"not UTF-8, and not quite {guess.encoding}: decoded as latin-1 (guessed)"
        return _survey_as(found, options, Guess("latin-1", note), watch)
    except NotTextError as error:
        return Facts(problem=str(error))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return Facts(problem=f"is a damaged gzip file ({error})")
    except OSError as error:
        return Facts(problem=f"cannot be read: {error.strerror or error}", passing=True)


class _Watch:
    """Follows a reading: hashes its bytes, reports progress, and stops it on request."""

    def __init__(self, count: Callable[[int], None], stop: threading.Event) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self._count = count
        self._stop = stop
        self._counted = 0
        self._seen = 0

    def begin(self) -> None:
        """Start at the top of the file, perhaps again; nothing is counted twice."""
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen = 0

    def see(self, block: bytes) -> None:
        """Take note of a block that was read."""
        if self._stop.is_set():
            raise OSError("stopped")
        self.digest.update(block)
        self._seen += len(block)
        if self._seen > self._counted:
            self._count(self._seen - self._counted)
            self._counted = self._seen


def _survey_as(found: Found, options: ReadingOptions, guess: Guess, watch: _Watch) -> Facts:
    watch.begin()
    facts = Facts(encoding=guess.encoding, notes=[guess.note] if guess.note else [])
    cutter = GutenbergCutter() if options.strip_gutenberg else None
    controls = np.zeros(256, np.int64)
    line = 0
    for fresh, text in clean_text(found, guess.encoding, options, cutter, watch):
        data = text.encode()
        facts.documents += fresh
        facts.characters += len(text)
        facts.bytes += len(data)
        if len(data.translate(None, CONTROLS)) != len(data):
            controls += np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
        if len(breaks):
            inner = int(np.diff(breaks).max()) - 1 if len(breaks) > 1 else 0
            facts.longest_line = max(facts.longest_line, line + int(breaks[0]), inner)
            line = len(data) - int(breaks[-1]) - 1
        else:
            line += len(data)
    facts.longest_line = max(facts.longest_line, line)
    facts.content = watch.digest.hexdigest()
    facts.notes += cutter.notes if cutter else []
    counted = {code: int(controls[code]) for code in CONTROLS if controls[code]}
    if counted:
        which = ", ".join(f"U+{code:04X}" for code in counted)
        facts.notes.append(f"{sum(counted.values()):,} control characters kept ({which})")
    if not facts.characters:
        facts.problem = "holds no text"
    return facts


def _first_error(path: str) -> tuple[bytes, int]:
    """The bytes around the first invalid UTF-8, and the number of non-ASCII characters before them."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, letters = b"", 0
    with _open(path) as file:
        while block := file.read(SAMPLE):
            try:
                text = decoder.decode(block)
                letters += 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode()
                letters += len(good) - len(good.encode("ascii", "ignore"))
                return before[-SAMPLE // 4 :] + block + file.read(SAMPLE // 4), letters
            before = block
    return before, letters


def clean_text(
    found: Found,
    encoding: str,
    options: ReadingOptions,
    cutter: GutenbergCutter | None = None,
    watch: _Watch | None = None,
) -> Iterator[tuple[bool, str]]:
    """The text of a file in stretches; a stretch that comes with True begins a document.

    Raises UnicodeDecodeError if the file is not in `encoding`, OSError if it cannot be read.
    """
    blocks = _decoded(found.path, encoding, watch)
    if cutter is None and options.strip_gutenberg:
        cutter = GutenbergCutter()
    marked = _cut(blocks, cutter) if cutter else _mark_first(blocks)
    return _unwrapped(marked) if options.unwrap_lines else marked


def seekable_text(found: Found, encoding: str, end: int, amount: int) -> Iterator[str] | None:
    """About `amount` characters, evenly spread over the first `end` characters of a file.

    Only for plain UTF-8, where decoding can begin anywhere; None for other files. A character is at least one
    byte, so no byte before `end` belongs to a character at or after `end`.
    """
    if encoding not in ("utf-8", "utf-8-sig") or found.path.lower().endswith(".gz"):
        return None
    return _slices(found.path, min(end, found.size), amount)


def _slices(path: str, end: int, amount: int) -> Iterator[str]:
    count = max(1, amount // SAMPLE)
    with open(path, "rb", buffering=0) as file:
        for index in range(count):
            low = index * end // count
            file.seek(low, os.SEEK_SET)
            data = file.read(min(SAMPLE, end - low))
            yield data.decode("utf-8", "ignore").replace("\r\n", "\n").replace("\r", "\n")


def _open(path: str) -> BinaryIO:
    if path.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return cast(BinaryIO, open(path, "rb", buffering=0))


def _decoded(path: str, encoding: str, watch: _Watch | None) -> Iterator[str]:
    """Text blocks with LF line ends and no BOM."""
    decoder = make_decoder(encoding)
    held = ""
    with _open(path) as file:
        while True:
            block = file.read(BLOCK)
            if watch is not None:
                watch.see(block)
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
    """Text to encode at once. `opens`: an `<|endoftext|>` comes before it; `tail`: it is for validation."""

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
        """The last `fraction` of that many characters, or a little less."""
        target = max(1, int(characters * (1 - fraction)))
        return cls(target, target + (characters - target) // 2)


def pieces(stretches: Iterable[tuple[bool, str]], tail: Tail | None = None) -> Iterator[Piece]:
    """Pieces of about PIECE characters, cut where no token can span the cut if there is such a place."""
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
    """A position at or after `target` where cutting does not change the tokens, if one is near.

    A space after text always starts a new word; so does other white space, except with patterns that attach
    line ends to the word before. Without either, as in Chinese, a word may be cut.
    """
    for pattern in (_SPACE_AFTER_TEXT, _ANY_SPACE_AFTER_TEXT):
        match = pattern.search(text, target, target + _CUT_WINDOW)
        if match is not None:
            return match.start()
    return target
