"""Joining encoded texts into the two streams, and reporting on every file."""

from __future__ import annotations

import numpy as np

from core.corpus.split import TRAIN, VALIDATION
from core.corpus.store import Entry, TokenStore
from core.corpus.stream import SKIPPED, Corpus, FileReport, TokenStream
from core.corpus.work import Text
from core.tokenizer import Tokenizer


def join(
    texts: list[Text],
    tokenizer: Tokenizer,
    store: TokenStore,
    skipped: dict[str, str],
    notices: list[str],
) -> Corpus:
    """Streams in the order of the files' names, and the report."""
    sides: dict[str, _Side] = {TRAIN: _Side(), VALIDATION: _Side()}
    first_names: dict[str, str] = {}
    reports = []
    for text in texts:
        entry = store.entries[text.key]
        before = len(sides[VALIDATION])
        cut = entry.tokens if entry.cut is None else entry.cut
        if text.side == VALIDATION:
            sides[VALIDATION].add(entry, 0, entry.tokens, entry.head_bytes)
        else:
            sides[TRAIN].add(entry, 0, cut, entry.head_bytes)
            sides[VALIDATION].add(entry, cut, entry.tokens, entry.tail_bytes)
        twin = first_names.setdefault(text.facts.content, text.found.name)
        reports.append(
            FileReport(
                name=text.found.name,
                split=text.side,
                encoding=text.facts.encoding,
                bytes=entry.head_bytes + entry.tail_bytes,
                tokens=entry.tokens,
                validation_tokens=len(sides[VALIDATION]) - before,
                documents=text.facts.documents,
                longest_line=text.facts.longest_line,
                duplicate_of=twin if twin != text.found.name else "",
                offset=entry.offset,
                notes=([text.found.note] if text.found.note else []) + text.facts.notes,
            )
        )
    reports += [FileReport(name=name, split=SKIPPED, notes=[reason]) for name, reason in skipped.items()]
    reports.sort(key=lambda item: item.name)
    tokens = store.tokens()
    return Corpus(
        tokenizer,
        sides[TRAIN].stream(tokens),
        sides[VALIDATION].stream(tokens),
        reports,
        notices,
        store.folder.parent,
        tokens,
    )


class _Side:
    """The stretches of one split, collected."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []
        self.documents: list[int] = []
        self.bytes = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: Entry, low: int, high: int, size: int) -> None:
        """Tokens low..high of an entry."""
        if high <= low:
            return
        self.stretches.append((entry.offset + low, high - low))
        self.documents += [self._length + start - low for start in entry.documents if low <= start < high]
        self._length += high - low
        self.bytes += size

    def stream(self, tokens: np.ndarray) -> TokenStream:
        return TokenStream(tokens, self.stretches, self.documents, self.bytes)
