"""Encodes texts into the token store, on all cores, in the order of the texts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.data.corpus.listing import SourceFile
from core.data.corpus.progress import Reporter
from core.data.corpus.reading import Piece, ReadingOptions, clean_text, pieces
from core.data.corpus.token_store import HASH_BYTES, Entry, TokenStore
from core.data.corpus.workers import Text, in_order
from core.data.tokenizer.tokenizer import Ids, Tokenizer
from core.errors import UserError

COMMIT_SECONDS = 1.0
BYTES_A_TOKEN = 8


@dataclass
class _Draft:
    """The entry of a text while its pieces arrive."""

    offset: int
    count: int = 0
    documents: tuple[int, ...] = ()
    cut: int | None = None
    head_bytes: int = 0
    tail_bytes: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=HASH_BYTES))

    def add(self, piece: Piece, count: int, size: int) -> None:
        if piece.opens:
            self.documents += (self.count,)
        if piece.tail and self.cut is None:
            self.cut = self.count
        self.count += count
        if piece.tail:
            self.tail_bytes += size
        else:
            self.head_bytes += size

    def entry(self) -> Entry:
        digest = self.digest.hexdigest()
        return Entry(
            self.offset, self.count, self.documents, self.cut, self.head_bytes, self.tail_bytes, digest
        )


def encode_texts(
    texts: list[Text],
    options: ReadingOptions,
    fraction: float,
    tokenizer: Tokenizer,
    store: TokenStore,
    report: Reporter,
    workers: int,
) -> int:
    """Encode every text that isn't in the store yet. Returns how many there were.

    A finished text is committed to the store within COMMIT_SECONDS, whatever happens afterwards.
    """
    missing = {text.key: text for text in texts}
    missing = {key: text for key, text in missing.items() if key not in store.entries}
    report.begin("encoding", sum(text.facts.bytes for text in missing.values()))
    if not missing:
        return 0
    tokenizer.encode("build the encoder before the threads need it")

    _check_room(store, missing.values(), tokenizer)

    def encode(item: tuple[str, Text, Piece | None]) -> tuple[Ids | None, int]:
        piece = item[2]
        return (None, 0) if piece is None else (tokenizer.encode(piece.text), len(piece.text.encode()))

    opening = np.array([tokenizer.eot], np.uint32)
    ready: dict[str, Entry] = {}
    draft = _Draft(store.end)
    committed = time.monotonic()
    cut = _all_pieces(missing, options, fraction)
    try:
        for (key, text, piece), (ids, size) in in_order(cut, encode, workers, report, threading.Event()):
            if piece is None or ids is None:
                ready[key] = draft.entry()
                draft = _Draft(draft.offset + draft.count)
                if time.monotonic() - committed > COMMIT_SECONDS:
                    store.commit(ready)
                    ready, committed = {}, time.monotonic()
                continue
            if piece.opens:
                draft.digest.update(store.append(opening))
            draft.digest.update(store.append(ids))
            draft.add(piece, len(ids) + piece.opens, size)
            report.add(size, text.source.name)
        store.commit(ready)
    except BaseException:
        with contextlib.suppress(UserError):
            store.commit(ready)
        store.abandon()
        raise
    return len(missing)


def _check_room(store: TokenStore, texts: Iterable[Text], tokenizer: Tokenizer) -> None:
    """Raise UserError before the first token is written if the disk has no room for the text to encode."""
    size = sum(text.facts.bytes for text in texts)
    # A byte vocabulary has one token per byte; in other vocabularies, few tokens have more bytes than this.
    tokens = size if tokenizer.kind == "byte" else size // BYTES_A_TOKEN
    needed = tokens * tokenizer.dtype.itemsize
    free = shutil.disk_usage(store.folder.parent).free
    if needed > free:
        raise UserError(
            f"the disk of {store.folder.parent} has {free / 1e6:,.0f} MB free, and preparing "
            f"{size / 1e6:,.0f} MB of text takes about {needed / 1e6:,.0f} MB: free some space, or set "
            "XDG_CACHE_HOME to a folder on another disk"
        )


def _all_pieces(
    texts: dict[str, Text], options: ReadingOptions, fraction: float
) -> Iterator[tuple[str, Text, Piece | None]]:
    """The pieces of every text, each text followed by None."""
    for key, text in texts.items():
        try:
            for piece in pieces(clean_text(text.source, text.facts.encoding, options), text.tail(fraction)):
                yield key, text, piece
            _check_unchanged(text.source)
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise UserError(f"{text.source.name} could not be read completely: {error}") from error
        yield key, text, None


def _check_unchanged(source: SourceFile) -> None:
    info = os.stat(source.path)
    if (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino) != source.signature:
        raise UserError(f"{source.name} changed while it was being read; start again")
