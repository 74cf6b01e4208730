"""Summaries kept on disk, so that a list of hundreds of long runs opens at once.

One file per folder of runs, in the user's cache folder. Values that aren't in range are treated as missing:
the run is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.event_fields import COUNT, Values, plain
from core.runs.event_file import REMEMBERED, Position
from core.runs.listing.fold import RunFold
from core.system.files import make_own_folder, read_limited, write_atomic
from core.system.folders import cache_root

FORMAT = 1
LARGEST_CACHE = 64 << 20
_LARGEST_STAMP = 1 << 63

Stamp = tuple[int, int, int]
"""A file when it was read: time of change in nanoseconds, size, inode."""


@dataclass(frozen=True)
class Kept:
    """What is stored of one run."""

    fold: RunFold
    position: Position
    events: Stamp
    config: Mapping[str, Any]
    config_stamp: Stamp


def stamp(path: Path) -> Stamp | None:
    """A file's stamp; None if there is no file."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return (info.st_mtime_ns, info.st_size, info.st_ino)


def cache_path(root: Path) -> Path:
    """The file with the summaries of the runs in a folder."""
    try:
        folder = os.path.realpath(root)
    except OSError:  # the working directory was deleted, so it contains no runs
        folder = os.fspath(root)
    key = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return cache_root() / "runs" / f"{key}.json"


def load(path: Path) -> dict[str, Kept]:
    """The summaries in a file, by name of their run, if they are in range."""
    summaries = {name: kept(values) for name, values in load_values(path).items()}
    return {name: summary for name, summary in summaries.items() if summary is not None}


def load_values(path: Path) -> dict[str, Any]:
    """What a file holds by name of a run, to be read one at a time with `kept`."""
    try:
        values = json.loads(read_limited(path, LARGEST_CACHE))
        runs = values["runs"] if values["format"] == FORMAT else {}
        return dict(runs.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def kept(values: Any) -> Kept | None:
    """One of the summaries in a file; None if it is not in range."""
    try:
        return _read(values)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def save(path: Path, runs: Mapping[str, Kept], unread: Mapping[str, Any]) -> None:
    """Write the file, with those of `load_values` that nobody read; if that fails, runs are read again."""
    values = {"format": FORMAT, "runs": {**unread, **{name: _values(one) for name, one in runs.items()}}}
    with contextlib.suppress(OSError):
        make_own_folder(path.parent)
        write_atomic(path, json.dumps(values).encode())


def _values(one: Kept) -> dict[str, Any]:
    at = one.position
    return {
        "position": [at.offset, at.device, at.inode, at.before.hex()],
        "events": one.events,
        "config": plain(one.config),
        "config_stamp": one.config_stamp,
        "fold": one.fold.values(),
    }


def _read(values: Mapping[str, Any]) -> Kept:
    offset, device, inode, before = values["position"]
    bytes_before = bytes.fromhex(before)
    if len(bytes_before) > REMEMBERED:
        raise ValueError("too much is said to have been read last")
    events = _stamp(values["events"])
    if not len(bytes_before) <= COUNT.read(offset) <= events[1]:
        raise ValueError("more was read than there was")
    config = {
        key: tuple(value) if type(value) is list else value
        for key, value in Values().read(values["config"]).items()
    }
    return Kept(
        fold=RunFold.from_values(values["fold"]),
        position=Position(offset, _whole(device), _whole(inode), bytes_before),
        events=events,
        config=config,
        config_stamp=_stamp(values["config_stamp"]),
    )


def _stamp(value: Any) -> Stamp:
    changed, size, inode = map(_whole, value)
    return (changed, size, inode)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST_STAMP * 2:
        raise ValueError("not a whole number of 64 bits")
    return value
