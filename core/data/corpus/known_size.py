"""How much text there is, without reading it: what preparing counted last time, or file sizes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config.schema import DataConfig
from core.config.text_key import text_key
from core.data.corpus.cache import cache_folder, load_json
from core.data.corpus.listing import SourceFile, list_texts
from core.data.corpus.token_store import disk_errors
from core.data.corpus.token_stream import Corpus
from core.errors import UserError
from core.system.files import write_atomic

FILE = "sizes.json"
GZIP_RATIO = 2.7
"""Bytes of English text per byte of a .gz file."""
MOST_KEPT = 20


@dataclass(frozen=True)
class KnownSize:
    """Sizes of a text. The counts of tokens are 0 until the text has been prepared in its current form."""

    files: int
    bytes: int
    """Bytes of text on both sides, estimated for compressed files."""
    train_bytes: int = 0
    train_tokens: int = 0
    validation_tokens: int = 0
    vocab_size: int = 0


def known_size(config: DataConfig, seed: int) -> KnownSize:
    """What is known about a text now, from a listing and one small file. Raises OSError or UserError."""
    listing = list_texts(config.dataset_dir, config.outside_links)
    size = sum(
        round(source.size * GZIP_RATIO) if source.name.endswith(".gz") else source.size
        for source in listing.sources
    )
    try:
        rows: Any = load_json(cache_folder(config.dataset_dir) / FILE)
        row = rows[_digest(config, seed)] if isinstance(rows, dict) else {}
        if row.get("text") == _signature(listing.sources):
            counts = {key: int(row[key]) for key in COUNTS}
            if all(value > 0 for value in counts.values()):
                return KnownSize(len(listing.sources), max(size, counts["train_bytes"]), **counts)
    except (KeyError, TypeError, ValueError, AttributeError, UserError):
        pass
    return KnownSize(len(listing.sources), size)


COUNTS = ("train_bytes", "train_tokens", "validation_tokens", "vocab_size")


def remember_size(config: DataConfig, seed: int, sources: Sequence[SourceFile], corpus: Corpus) -> None:
    """Store what preparing has counted, for the files `sources` in their current state."""
    counts = {
        "train_bytes": corpus.train.text_bytes,
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "vocab_size": corpus.tokenizer.vocab_size,
    }
    path = cache_folder(config.dataset_dir) / FILE
    rows = load_json(path)
    rows = rows if isinstance(rows, dict) else {}
    key, row = _digest(config, seed), {"text": _signature(sources), **counts}
    if rows.get(key) == row:
        return
    rows.pop(key, None)
    rows = dict(list(rows.items())[-MOST_KEPT + 1 :]) | {key: row}
    with disk_errors(path.parent):
        write_atomic(path, json.dumps(rows).encode())


def _digest(config: DataConfig, seed: int) -> str:
    """The key without the folder: the cache that holds it belongs to one folder."""
    return hashlib.sha256(repr(text_key(config, seed)[1:]).encode()).hexdigest()[:16]


def _signature(sources: Sequence[SourceFile]) -> str:
    digest = hashlib.sha256()
    for one in sources:
        digest.update(os.fsencode(one.name) + repr(one.signature).encode())
    return digest.hexdigest()[:16]
