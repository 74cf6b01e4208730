"""The cache folder: where it is, and its small files with facts, splits and vocabularies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.corpus.listing import SourceFile
from core.data.corpus.split import SIDES, Decisions
from core.data.corpus.survey import Facts
from core.data.corpus.token_store import JOURNAL, disk_errors
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.system.files import (
    Folder,
    delete,
    delete_folder,
    make_own_folder,
    read_limited,
    write_atomic,
)
from core.system.folders import cache_root

# A file that was written in the same tick of the clock in which it was read may look unchanged afterwards;
# file systems that count in whole seconds have long ticks. Such files are read again next time.
_TICK = 100_000_000
_LONG_TICK = 2_100_000_000
STALE_DAYS = 30
LARGEST_JSON = 1 << 30
IDENTITY = "folder.json"
SPLIT = "split.json"
PREPARED = re.compile(
    r"(files|tokenizer)-[0-9a-f]{12}\.json|tokens-[0-9a-f]{16}|tokens-\d{1,18}\.bin|entries\.jsonl|checked\.json|sizes\.json"
    r"|\.[\w.-]+\.[0-9a-f]{16}\.tmp"
)
"""The names of files that can be prepared again; nothing else is ever deleted from a cache."""


def cache_folder(dataset: str) -> Path:
    """The cache of a dataset, in the user's cache folder; created if necessary.

    Nothing is stored beside the texts: they may come from somebody else, and files there are no more
    trustworthy than they are. Raises UserError if no cache can be written.
    """
    real = os.path.realpath(dataset)
    root = cache_root() / "datasets"
    try:
        info = os.stat(real)
        key = hashlib.sha256(f"{info.st_uid}:".encode() + os.fsencode(real)).hexdigest()[:16]
        label = "".join(c if c.isascii() and c.isalnum() else "-" for c in os.path.basename(real))[:32]
        folder = root / f"{label}-{key}"
        make_own_folder(root)
        identity = {"path": real, "device": info.st_dev, "inode": info.st_ino}
        if not folder.exists():
            _look_after_others(root, folder, identity)
            make_own_folder(folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"no place for the token cache of {dataset}: {root} cannot be used ({reason}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    if load_json(folder / IDENTITY) != identity:
        _save(folder / IDENTITY, identity)
    return folder


def _look_after_others(root: Path, folder: Path, identity: dict[str, Any]) -> None:
    """Adopt this dataset's cache from its earlier name; delete ids that nobody has used for a long time."""
    for other in root.iterdir():
        known = load_json(other / IDENTITY)
        if not isinstance(known, dict) or os.path.exists(str(known.get("path"))):
            continue
        if all(known.get(name) == identity[name] for name in ("device", "inode")):
            with contextlib.suppress(OSError):
                with Folder(root) as opened:
                    opened.move(other.name, folder.name)
        elif (other / IDENTITY).stat().st_mtime < time.time() - STALE_DAYS * 86_400:
            delete_prepared(other)


def delete_prepared(folder: Path, forget_split: bool = False) -> int:
    """Delete what was prepared and, if wanted, the record of the split. Returns the bytes freed."""
    with Folder(folder) as opened:
        return opened.delete_matching(
            lambda name: PREPARED.fullmatch(name) is not None or (forget_split and name == SPLIT)
        )


def drop_stale(folder: Path) -> None:
    """Delete the ids of tokenizers that nobody has used for STALE_DAYS."""
    oldest = time.time() - STALE_DAYS * 86_400
    for store in folder.glob("tokens-*"):
        used = store / JOURNAL
        if store.is_dir() and (not used.exists() or used.stat().st_mtime < oldest):
            delete_folder(store, lambda name: PREPARED.fullmatch(name) is not None)


def drop_vocabularies(folder: Path) -> None:
    """Forget the vocabularies learned from this dataset."""
    for path in folder.glob("tokenizer-*.json"):
        delete(path, missing_ok=True)


def load_json(path: Path) -> Any:
    """JSON of a cache file; None if it is missing or damaged, which only costs time."""
    try:
        return json.loads(read_limited(path, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return None


def _save(path: Path, value: Any) -> None:
    with disk_errors(path.parent):
        write_atomic(path, json.dumps(value).encode())


class FactStore:
    """Facts about every file from earlier readings, valid while its signature stays the same."""

    def __init__(self, folder: Path, options_key: str) -> None:
        self.path = folder / f"files-{hashlib.sha256(options_key.encode()).hexdigest()[:12]}.json"
        data = load_json(self.path)
        self._rows: dict[str, list[Any]] = data if isinstance(data, dict) else {}
        self._changed = False

    def get(self, source: SourceFile) -> Facts | None:
        """The facts about a file that hasn't been written to since it was read."""
        try:
            signature, too_fresh, values = self._rows[source.name]
            if signature == list(source.signature) and not too_fresh:
                return Facts.from_list(values)
        except (KeyError, TypeError, ValueError):
            pass
        return None

    def put(self, source: SourceFile, facts: Facts, now_ns: int) -> None:
        """Store facts from a reading that began at `now_ns`."""
        if facts.passing:
            self._rows.pop(source.name, None)
            return
        newest = max(source.signature[1:3])
        coarse = source.signature[1] % 1_000_000_000 == 0
        too_fresh = newest > now_ns - (_LONG_TICK if coarse else _TICK)
        self._rows[source.name] = [list(source.signature), int(too_fresh), facts.to_list()]
        self._changed = True

    def keep_only(self, names: set[str]) -> None:
        """Forget files that no longer exist."""
        gone = self._rows.keys() - names
        for name in gone:
            del self._rows[name]
        self._changed = self._changed or bool(gone)

    def save(self) -> None:
        """Write the facts if any have changed."""
        if self._changed:
            _save(self.path, self._rows)
            self._changed = False


def read_split(path: Path) -> Decisions | None:
    """The sides that a run carries; None if the file is missing or damaged."""
    try:
        return _decisions(load_json(path))
    except (AttributeError, TypeError, ValueError):
        return None


def _decisions(rows: Any) -> Decisions:
    """Parse the sides in a file. Raises AttributeError, TypeError or ValueError if it has none."""
    return {
        name: (content, side)
        for name, (content, side) in rows.items()
        if side in SIDES and isinstance(content, str)
    }


def save_split(path: Path, decisions: Decisions) -> None:
    """Write the decided sides into a run. Raises UserError if the disk refuses."""
    try:
        write_atomic(path, json.dumps(decisions).encode())
    except OSError as error:
        raise UserError(f"cannot write the split {path}: {error.strerror or error}") from error


class SplitStore:
    """The decided sides, stored so that they never change. `clean` doesn't delete them."""

    def __init__(self, folder: Path, seed: int, fraction: float) -> None:
        self.path = folder / SPLIT
        self.key = f"{seed}:{fraction!r}"
        self.notice = ""
        data = load_json(self.path)
        self._all: dict[str, dict[str, list[str]]] = data if isinstance(data, dict) else {}
        self._known: Decisions = {}
        try:
            self._known = _decisions(self._all.get(self.key, {}))
        except (AttributeError, TypeError, ValueError):
            self._all, data = {}, None
        if data is None and self.path.exists():
            self.notice = f"{self.path} was damaged, so the validation text is chosen again"

    def known(self) -> Decisions:
        """By name: content and side."""
        return self._known

    def update(self, decisions: Mapping[str, tuple[str, str]]) -> None:
        """Add decisions; those about files that no longer exist stay."""
        mine = self._all.setdefault(self.key, {})
        new = {name: list(value) for name, value in decisions.items()}
        if any(mine.get(name) != value for name, value in new.items()):
            mine.update(new)
            _save(self.path, self._all)


class VocabularyStore:
    """Vocabularies learned from this dataset, by the recipe that made them."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.path = folder / f"tokenizer-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.json"

    def load(self) -> tuple[Tokenizer, dict[str, int]] | None:
        """The vocabulary, and the training texts it was learned from: bytes by content."""
        data = load_json(self.path)
        try:
            learned_from = {str(content): int(size) for content, size in data["training_texts"].items()}
            return Tokenizer.from_dict(data["tokenizer"]), learned_from
        except (TypeError, KeyError, ValueError, AttributeError, UserError):
            return None

    def save(self, tokenizer: Tokenizer, training_texts: dict[str, int]) -> None:
        """Store a vocabulary."""
        data = {"training_texts": training_texts, "tokenizer": tokenizer.to_dict()}
        _save(self.path, data)
