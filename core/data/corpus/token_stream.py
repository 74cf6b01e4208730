"""A prepared corpus: two token streams over one memory-mapped file, and a report on every file."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.corpus.split import Decisions
from core.data.tokenizer.tokenizer import Tokenizer

Tokens = npt.NDArray[np.integer[Any]]
Int64 = npt.NDArray[np.int64]


class TokenStream:
    """Stretches of a memory-mapped token file, read as one text. Nothing is loaded until it is read.

    `stretches` are (offset, count) in the file, in the order of the text; `documents` are the
    positions in this stream at which documents begin; `text_bytes` is the UTF-8 length of the text;
    `files` are names with the position at which each begins, in order.
    """

    def __init__(
        self,
        tokens: Tokens,
        stretches: Sequence[tuple[int, int]],
        documents: Sequence[int],
        text_bytes: int,
        files: Sequence[tuple[str, int]] = (),
    ) -> None:
        joined: list[list[int]] = []
        for offset, count in stretches:
            if joined and sum(joined[-1]) == offset:
                joined[-1][1] += count
            elif count:
                joined.append([offset, count])
        self._tokens = tokens
        self._offsets = np.array([offset for offset, _ in joined], np.int64)
        self._starts = np.cumsum([0, *(count for _, count in joined)], dtype=np.int64)
        self.documents: Int64 = np.array(documents, np.int64)
        self.text_bytes = text_bytes
        self.files = files

    def place(self, position: int) -> tuple[str, float]:
        """The file at a position, and the share of its part of this stream that lies before."""
        index = bisect.bisect_right(self.files, position, key=itemgetter(1)) - 1
        if index < 0:
            return "", 0.0
        name, start = self.files[index]
        end = self.files[index + 1][1] if index + 1 < len(self.files) else len(self)
        return name, min(1.0, (position - start) / max(1, end - start))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ids, uint16 or uint32."""
        return self._tokens.dtype

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token; the marks that open documents count as tokens."""
        return self.text_bytes / max(len(self), 1)

    def read(self, start: int, count: int) -> Tokens:
        """Tokens start to start + count, (count,). Raises IndexError outside the stream."""
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of a stream of {len(self)}")
        part = int(np.searchsorted(self._starts, start, "right")) - 1
        parts = []
        while count > 0:
            take = min(count, int(self._starts[part + 1]) - start)
            low = int(self._offsets[part]) + start - int(self._starts[part])
            parts.append(self._tokens[low : low + take])
            start, count, part = start + take, count - take, part + 1
        return np.concatenate(parts) if len(parts) > 1 else np.array(parts[0] if parts else [], self.dtype)

    def gather(self, starts: Int64, count: int) -> Tokens:
        """Rows (len(starts), count): row b holds the tokens from position starts[b] on."""
        starts = np.asarray(starts, np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + count > len(self)):
            raise IndexError(f"{count} tokens from {starts.max()} of a stream of {len(self)}")
        if not count:
            return np.empty((len(starts), 0), self.dtype)
        parts = np.searchsorted(self._starts, starts, "right") - 1
        inside = starts + count <= self._starts[parts + 1]
        rows = np.empty((len(starts), count), self.dtype)
        first = self._offsets[parts] + starts - self._starts[parts]
        for row in range(len(starts)):
            if inside[row]:
                rows[row] = self._tokens[first[row] : first[row] + count]
            else:
                rows[row] = self.read(int(starts[row]), count)
        return rows


SKIPPED = "skipped"


@dataclass
class FileReport:
    """How one file was used. `split` is train, validation, tail (its end is for validation), or skipped."""

    name: str
    split: str
    encoding: str = ""
    bytes: int = 0
    tokens: int = 0
    validation_tokens: int = 0
    documents: int = 0
    longest_line: int = 0
    duplicate_of: str = ""
    offset: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token."""
        return self.bytes / max(self.tokens, 1)


@dataclass
class Corpus:
    """A prepared dataset."""

    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    notices: list[str]
    cache: Path
    tokens: Tokens
    make_report: Callable[[], list[FileReport]]
    encoded_files: int = 0
    prepare_seconds: float = 0.0
    new_bytes: int = 0
    """Of text, where all of it was new and `prepare_seconds` were spent on it; else 0."""
    split: Decisions = field(default_factory=dict)

    @cached_property
    def report(self) -> list[FileReport]:
        """How every file was used, including skipped ones, sorted by name."""
        return self.make_report()

    @property
    def bytes_per_token(self) -> float:
        """For the validation text; bits per byte = nats per token / ln 2 / this."""
        return self.validation.bytes_per_token

    def file_tokens(self, file: FileReport, start: int = 0, count: int | None = None) -> Tokens:
        """The ids of one file as the model sees them, from position `start` on."""
        low = file.offset + min(max(start, 0), file.tokens)
        high = file.offset + file.tokens
        return np.array(self.tokens[low : high if count is None else min(low + count, high)])

    @property
    def read(self) -> list[FileReport]:
        """The files that are part of the corpus."""
        return [file for file in self.report if file.split != SKIPPED]

    def summary(self) -> str:
        """The corpus in a few lines: sizes, vocabulary, validation text, skipped files."""
        validating = [file.name for file in self.read if file.split == "validation"]
        tails = sum(file.split == "tail" for file in self.read)
        total = len(self.train) + len(self.validation)
        what = []
        if validating:
            what.append(
                ", ".join(validating[:3])
                + (f" and {count(len(validating) - 3, 'more file')}" if len(validating) > 3 else "")
            )
        if tails:
            what.append(f"the ends of {tails} files" if tails > 1 else "the end of one file")
        share = len(self.validation) / max(total, 1)
        size = self.train.text_bytes + self.validation.text_bytes
        lines = [
            f"{count(len(self.read), 'file')}, {size:,} bytes of text, "
            f"{total:,} tokens ({self.tokenizer.kind}, {self.tokenizer.vocab_size:,} in the vocabulary)",
            f"validation: {' and '.join(what)}: {len(self.validation):,} tokens, {share:.1%}",
        ]
        skipped = [file for file in self.report if file.split == SKIPPED]
        if skipped:
            first = f"{skipped[0].name}, which {skipped[0].notes[0]}"
            lines.append(f"not read: {count(len(skipped), 'file')}, such as {first}")
        return "\n".join(lines + self.notices)


def count(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
