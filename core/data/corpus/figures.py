"""The numbers that describe a corpus, for a process that doesn't have the corpus itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.data.corpus.token_stream import SKIPPED, Corpus

LONGEST_LINES = 3


@dataclass(frozen=True)
class CorpusFigures:
    """Sizes of a whole corpus."""

    files: int
    """Files that were read."""
    skipped: int
    duplicates: int
    """Files with the same text as another file."""
    documents: int
    text_bytes: int
    tokenizer: str
    vocab_size: int
    train_tokens: int
    train_bytes_per_token: float
    validation_tokens: int
    validation_bytes_per_token: float
    longest_lines: tuple[tuple[int, str], ...]
    """(bytes, file name), the longest first."""

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusFigures:
        """The figures of a prepared corpus."""
        train, validation, read = corpus.train, corpus.validation, corpus.read
        lines = sorted(read, key=lambda file: file.longest_line, reverse=True)[:LONGEST_LINES]
        return cls(
            files=len(read),
            skipped=sum(file.split == SKIPPED for file in corpus.report),
            duplicates=sum(bool(file.duplicate_of) for file in read),
            documents=sum(file.documents for file in read),
            text_bytes=train.text_bytes + validation.text_bytes,
            tokenizer=corpus.tokenizer.kind,
            vocab_size=corpus.tokenizer.vocab_size,
            train_tokens=len(train),
            train_bytes_per_token=train.bytes_per_token,
            validation_tokens=len(validation),
            validation_bytes_per_token=validation.bytes_per_token,
            longest_lines=tuple((file.longest_line, file.name) for file in lines),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CorpusFigures:
        """The figures from their JSON form."""
        lines = tuple((size, name) for size, name in values["longest_lines"])
        return cls(**{**values, "longest_lines": lines})
