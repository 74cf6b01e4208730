"""The first reading of a file: its encoding, its length, and anything unusual about it."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import threading
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from core.data.corpus import reading
from core.data.corpus.document_marks import MarkCounter
from core.data.corpus.encodings import (
    CONTROLS,
    SAMPLE,
    Guess,
    NotTextError,
    Trouble,
    first_guess,
    make_decoder,
    next_guess,
)
from core.data.corpus.gutenberg import GutenbergCutter
from core.data.corpus.listing import SourceFile
from core.data.corpus.near_copies import Letters
from core.data.corpus.reading import Observers, ReadingOptions, clean_text
from core.data.corpus.stray_bytes import StrayDecoder

# How far after the first error a file that isn't UTF-8 is searched, and how much of it is kept.
LOOKED_THROUGH = 1 << 22
BYTE_ORDER_MARK = "\ufeff"


@dataclass
class Facts:
    """The facts about a file from one reading. `problem` says why it can't be used, if it can't.

    `raw` is the hash of the file's bytes. `content` is the same for files with the same text, whatever their
    bytes; `letters` is the same for texts that begin with the same quarter of a million letters, and `sketch`
    is similar for similar texts.
    """

    raw: str = ""
    content: str = ""
    letters: str = ""
    sketch: str = ""
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
    source: SourceFile, options: ReadingOptions, count: Callable[[int], None], stop: threading.Event
) -> Facts:
    """Read a file once.

    `count` is called with the number of bytes read; `stop` ends the reading and makes its facts invalid.
    """
    watch = _Watch(count, stop)
    try:
        with reading.open_text(source.path) as file:
            head = file.read(SAMPLE)
        if not head:
            return Facts(problem="is empty")
        guess = first_guess(head, options.encoding)
        try:
            return _survey_as(source, options, guess, watch)
        except UnicodeDecodeError as error:
            if guess.because:
                name = guess.encoding.removesuffix("-sig").upper()
                return Facts(problem=f"is not the {name} that {guess.because} ({error.reason})")
        guess = next_guess(head, _first_error(source.path), options.encoding)
        try:
            return _survey_as(source, options, guess, watch)
        except UnicodeDecodeError as error:
            if options.encoding is not None:
                return Facts(problem=f"is neither UTF-8 nor {options.encoding}, as declared ({error.reason})")
        note = f"not UTF-8, and not quite {guess.encoding}: decoded as latin-1 (guessed)"
        return _survey_as(source, options, Guess("latin-1", note), watch)
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
        """Add a block that was read."""
        if self._stop.is_set():
            raise OSError("stopped")
        self.digest.update(block)
        self._seen += len(block)
        if self._seen > self._counted:
            self._count(self._seen - self._counted)
            self._counted = self._seen


def _survey_as(source: SourceFile, options: ReadingOptions, guess: Guess, watch: _Watch) -> Facts:
    watch.begin()
    facts = Facts(encoding=guess.encoding, notes=[guess.note] if guess.note else [])
    cutter = GutenbergCutter() if options.strip_gutenberg else None
    marks = None if options.cut_at_marks else MarkCounter()
    decoder = make_decoder(guess.encoding)
    digest, letters, lines = hashlib.blake2b(digest_size=16), Letters(), _Lines()
    controls = np.zeros(256, np.int64)
    inner_marks = 0
    for fresh, text in clean_text(
        source, guess.encoding, options, Observers(cutter, marks, decoder, watch.see)
    ):
        data = text.encode()
        facts.documents += fresh
        facts.characters += len(text)
        facts.bytes += len(data)
        if fresh and facts.documents > 1:
            # The beginnings of documents are part of a text's identity.
            digest.update(f"\0{facts.bytes - len(data)}\0".encode())
        digest.update(data)
        letters.see(data)
        lines.see(data)
        inner_marks += text.count(BYTE_ORDER_MARK)
        if len(data.translate(None, CONTROLS)) != len(data):
            controls += np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    facts.longest_line = lines.longest
    facts.raw, facts.content = watch.digest.hexdigest(), digest.hexdigest()
    facts.letters, facts.sketch = letters.digest or facts.content, letters.sketch
    if isinstance(decoder, StrayDecoder):
        facts.notes.append(decoder.note)
    facts.notes += (cutter.notes if cutter else []) + (marks.notes if marks else [])
    if inner_marks:
        facts.notes.append(
            f"{inner_marks:,} byte order marks inside the text, as where files were joined; kept"
        )
    counted = {code: int(controls[code]) for code in CONTROLS if controls[code]}
    if counted:
        which = ", ".join(f"U+{code:04X}" for code in counted)
        facts.notes.append(f"{sum(counted.values()):,} control characters kept ({which})")
    if not facts.characters:
        facts.problem = "contains no text"
    return facts


class _Lines:
    """The longest line, in bytes of UTF-8, of a text that comes in stretches."""

    def __init__(self) -> None:
        self._longest = self._open = 0

    def see(self, data: bytes) -> None:
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
        if not len(breaks):
            self._open += len(data)
            return
        inner = int(np.diff(breaks).max()) - 1 if len(breaks) > 1 else 0
        self._longest = max(self._longest, self._open + int(breaks[0]), inner)
        self._open = len(data) - int(breaks[-1]) - 1

    @property
    def longest(self) -> int:
        return max(self._longest, self._open)


def _first_error(path: str) -> Trouble:
    """Where a file stops being UTF-8, and statistics of its non-ASCII lines from there on."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, letters = b"", 0
    with reading.open_text(path) as file:
        while block := file.read(SAMPLE):
            try:
                letters += _other_letters(decoder.decode(block))
            except UnicodeDecodeError as error:
                letters += _other_letters(error.object[: error.start].decode())
                block += file.read(SAMPLE // 4)
                around = before[-SAMPLE // 4 :] + block
                rest = around[around.find(b"\n") + 1 :] if before else around
                return _look_through(around, letters, rest + file.read(LOOKED_THROUGH))
            before = block
    return Trouble(before, letters, 0, 0, before)


def _look_through(around: bytes, letters: int, text: bytes) -> Trouble:
    good = bad = size = 0
    sample = []
    for line in text.split(b"\n"):
        if line.isascii():
            continue
        try:
            good += _other_letters(line.decode()) > 1
        except UnicodeDecodeError:
            bad += 1
            if size < SAMPLE:
                sample.append(line[:SAMPLE] + b"\n")
                size += len(sample[-1])
    return Trouble(around, letters, good, bad, b"".join(sample))


def _other_letters(text: str) -> int:
    """How many characters aren't ASCII."""
    return 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
