"""The cache folder: where it is, and the small files in it that remember facts, splits, vocabularies."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data.corpus.listing import CACHE_FOLDER, Found
from core.data.corpus.reading import Facts
from core.data.corpus.split import SIDES, Decisions
from core.data.corpus.token_store import JOURNAL, disk_errors
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.system.files import write_atomic

# A file written in the same tick of the clock as it was read may look unchanged afterwards; file
# systems that count in whole seconds have long ticks. Such files are read again the next time.
_TICK = 100_000_000
_LONG_TICK = 2_100_000_000
STALE_DAYS = 30


def cache_folder(dataset: str) -> Path:
    """The writable cache of a dataset: inside it, or in the user's cache if it is read-only."""
    if os.path.isdir(dataset):
        inside = Path(dataset) / CACHE_FOLDER
        # The mode is asked first: an administrator may write anywhere, but should not.
        writable = os.stat(dataset).st_mode & 0o222 or inside.exists()
        if writable and _usable(inside):
            return inside
    real = os.path.realpath(dataset)
    key = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    label = "".join(c if c.isascii() and c.isalnum() else "-" for c in os.path.basename(real))[:32]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    outside = Path(base) / "mamba-tui" / f"{label}-{key}"
    if _usable(outside):
        return outside
    raise UserError(
        f"no place for the token cache: neither {dataset} nor {outside} can be written; "
        "set XDG_CACHE_HOME to a folder that can"
    )


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ignore = folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def drop_stale(folder: Path) -> None:
    """Delete the ids of tokenizers that nobody has used for STALE_DAYS."""
    oldest = time.time() - STALE_DAYS * 86_400
    for store in folder.glob("tokens-*"):
        used = store / JOURNAL
        if store.is_dir() and (not used.exists() or used.stat().st_mtime < oldest):
            shutil.rmtree(store, ignore_errors=True)


def drop_vocabularies(folder: Path) -> None:
    """Forget the vocabularies learned from this dataset."""
    for path in folder.glob("tokenizer-*.json"):
        path.unlink(missing_ok=True)


def _load(path: Path) -> Any:
    """JSON of a cache file; None where it is missing or damaged, which costs only time."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _save(path: Path, value: Any) -> None:
    with disk_errors(path.parent):
        write_atomic(path, json.dumps(value).encode())


class FactStore:
    """What is known of every file from earlier readings, valid while its signature stays the same."""

    def __init__(self, folder: Path, options_key: str) -> None:
        self.path = folder / f"files-{hashlib.sha256(options_key.encode()).hexdigest()[:12]}.json"
        data = _load(self.path)
        self._rows: dict[str, list[Any]] = data if isinstance(data, dict) else {}
        self._changed = False

    def get(self, found: Found) -> Facts | None:
        """The facts of a file that has not been written to since they were found."""
        row = self._rows.get(found.name)
        if row is None or row[0] != list(found.signature) or row[1]:
            return None
        try:
            return Facts(*row[2])
        except TypeError:
            return None

    def put(self, found: Found, facts: Facts, now_ns: int) -> None:
        """Remember facts found by a reading that began at `now_ns`."""
        if facts.passing:
            self._rows.pop(found.name, None)
            return
        newest = max(found.signature[1:3])
        coarse = found.signature[1] % 1_000_000_000 == 0
        too_fresh = newest > now_ns - (_LONG_TICK if coarse else _TICK)
        self._rows[found.name] = [list(found.signature), int(too_fresh), facts.to_list()]
        self._changed = True

    def keep_only(self, names: set[str]) -> None:
        """Forget files that are gone."""
        gone = self._rows.keys() - names
        for name in gone:
            del self._rows[name]
        self._changed = self._changed or bool(gone)

    def save(self) -> None:
        """Write the facts if any changed."""
        if self._changed:
            _save(self.path, self._rows)
            self._changed = False


def read_split(path: Path) -> Decisions | None:
    """The sides that a run carries; None where the file is missing or damaged."""
    try:
        return {name: (content, side) for name, (content, side) in _load(path).items() if side in SIDES}
    except (AttributeError, TypeError, ValueError):
        return None


def save_split(path: Path, decisions: Decisions) -> None:
    """Let a run carry the sides that were decided. Raises UserError when the disk refuses."""
    try:
        write_atomic(path, json.dumps(decisions).encode())
    except OSError as error:
        raise UserError(f"cannot write the split {path}: {error.strerror or error}") from error


class SplitStore:
    """The sides that were decided, kept so that they never change. Not part of what `clean` deletes."""

    def __init__(self, folder: Path, seed: int, fraction: float) -> None:
        self.path = folder / "split.json"
        self.key = f"{seed}:{fraction!r}"
        self.notice = ""
        data = _load(self.path)
        self._all: dict[str, dict[str, list[str]]] = data if isinstance(data, dict) else {}
        self._known: Decisions = {}
        try:
            rows = self._all.get(self.key, {}).items()
            self._known = {name: (content, side) for name, (content, side) in rows if side in SIDES}
        except (AttributeError, TypeError, ValueError):
            self._all, data = {}, None
        if data is None and self.path.exists():
            self.notice = f"{self.path} was damaged: what is held out for validation is decided anew"

    def known(self) -> Decisions:
        """By name: content and side."""
        return self._known

    def update(self, decisions: Mapping[str, tuple[str, str]]) -> None:
        """Add decisions; those of files that are gone stay."""
        mine = self._all.setdefault(self.key, {})
        new = {name: list(value) for name, value in decisions.items()}
        if any(mine.get(name) != value for name, value in new.items()):
            mine.update(new)
            _save(self.path, self._all)


class VocabularyStore:
    """Vocabularies learned from this dataset, by the recipe that made them."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.path = folder / f"tokenizer-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.json"

    def load(self) -> tuple[Tokenizer, int] | None:
        """The vocabulary and the bytes of training text there were when it was learned."""
        data = _load(self.path)
        try:
            return Tokenizer.from_dict(data["tokenizer"]), int(data["training_bytes"])
        except (TypeError, KeyError, ValueError, UserError):
            return None

    def save(self, tokenizer: Tokenizer, training_bytes: int) -> None:
        """Keep a vocabulary."""
        data = {"training_bytes": training_bytes, "tokenizer": tokenizer.to_dict()}
        _save(self.path, data)
