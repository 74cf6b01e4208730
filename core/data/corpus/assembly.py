"""Joins encoded texts into the two streams, and reports on every file."""

from __future__ import annotations

import numpy as np

from core.data.corpus.split import VALIDATION
from core.data.corpus.token_store import Entry, TokenStore
from core.data.corpus.token_stream import SKIPPED, Corpus, FileReport, TokenStream
from core.data.corpus.workers import Text
from core.data.tokenizer.tokenizer import Tokenizer


def join(
    texts: list[Text],
    tokenizer: Tokenizer,
    store: TokenStore,
    skipped: dict[str, str],
    notices: list[str],
) -> Corpus:
    """Streams in the order of file names. The report is made when it is first needed."""
    train, validation = _Side(), _Side()
    entries = [store.entries[text.key] for text in texts]
    for text, entry in zip(texts, entries, strict=True):
        cut = entry.tokens if entry.cut is None else entry.cut
        if text.side == VALIDATION:
            validation.add(text.source.name, entry, 0, entry.tokens, entry.head_bytes)
        else:
            train.add(text.source.name, entry, 0, cut, entry.head_bytes)
            validation.add(text.source.name, entry, cut, entry.tokens, entry.tail_bytes)
    tokens = store.tokens()
    return Corpus(
        tokenizer=tokenizer,
        train=train.stream(tokens),
        validation=validation.stream(tokens),
        notices=notices,
        cache=store.folder.parent,
        tokens=tokens,
        make_report=lambda: _report(texts, entries, skipped),
    )


def _report(texts: list[Text], entries: list[Entry], skipped: dict[str, str]) -> list[FileReport]:
    """How every file was used, by name."""
    first_names: dict[str, str] = {}
    reports = [FileReport(name=name, split=SKIPPED, notes=[reason]) for name, reason in skipped.items()]
    for text, entry in zip(texts, entries, strict=True):
        twin = first_names.setdefault(text.facts.content, text.source.name)
        cut = 0 if text.side == VALIDATION else entry.tokens if entry.cut is None else entry.cut
        reports.append(
            FileReport(
                name=text.source.name,
                split=text.side,
                encoding=text.facts.encoding,
                bytes=entry.head_bytes + entry.tail_bytes,
                tokens=entry.tokens,
                validation_tokens=entry.tokens - cut,
                documents=text.facts.documents,
                longest_line=text.facts.longest_line,
                duplicate_of=twin if twin != text.source.name else "",
                offset=entry.offset,
                notes=([text.source.note] if text.source.note else []) + text.facts.notes + text.near_copies,
            )
        )
    return sorted(reports, key=lambda report: report.name)


class _Side:
    """Collects the stretches of one side."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []
        self.documents: list[int] = []
        self.files: list[tuple[str, int]] = []
        self.bytes = 0
        self._length = 0

    def add(self, name: str, entry: Entry, low: int, high: int, size: int) -> None:
        """Tokens low to high of an entry."""
        if high <= low:
            return
        self.files.append((name, self._length))
        self.stretches.append((entry.offset + low, high - low))
        self.documents += [self._length + start - low for start in entry.documents if low <= start < high]
        self._length += high - low
        self.bytes += size

    def stream(self, tokens: np.ndarray) -> TokenStream:
        return TokenStream(tokens, self.stretches, self.documents, self.bytes, self.files)
