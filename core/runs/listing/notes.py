"""A person's note and tags on a run, in `notes.json` of its folder.

Only consoles and the command line write this file, never a trainer, so a running trainer isn't disturbed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.config.setting import show
from core.errors import UserError
from core.runs.directory import Run
from core.system.files import read_limited, write_atomic

FILE = "notes.json"
LONGEST_NOTE = 1000
MOST_TAGS = 20
LONGEST_TAG = 40
TAG = re.compile(rf"[^\s,\"'!<>=~]{{1,{LONGEST_TAG}}}")
_LARGEST_FILE = 1 << 16


@dataclass(frozen=True)
class Notes:
    """A person's note and tags on a run."""

    note: str = ""
    tags: tuple[str, ...] = ()


def notes_path(run: Run) -> Path:
    """The file with a run's notes."""
    return run.path / FILE


def read_notes(run: Run) -> Notes:
    """A run's notes; empty if there are none, or none that could be ours."""
    try:
        values = json.loads(read_limited(notes_path(run), _LARGEST_FILE))
        note, tags = values["note"], values["tags"]
        if type(note) is not str or type(tags) is not list:
            return Notes()
        good = [tag for tag in tags if type(tag) is str and TAG.fullmatch(tag)]
        return Notes(note[:LONGEST_NOTE], tuple(dict.fromkeys(good))[:MOST_TAGS])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Notes()


def write_notes(run: Run, notes: Notes) -> None:
    """Save a run's notes. Raises UserError."""
    if not run.exists:
        raise UserError(f'there is no run "{run.name}" in {run.path.parent}')
    if len(notes.note) > LONGEST_NOTE:
        raise UserError(f"the note has {len(notes.note):,} characters; accepted: at most {LONGEST_NOTE:,}")
    if len(notes.tags) > MOST_TAGS:
        raise UserError(f"{run.name} would have {len(notes.tags)} tags; accepted: at most {MOST_TAGS}")
    values = {"note": notes.note, "tags": list(notes.tags)}
    try:
        write_atomic(notes_path(run), json.dumps(values, indent=1).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{notes_path(run)} cannot be written ({error.strerror})") from None


def check_tag_change(change: str) -> str:
    """The tag that is to be added, or with a minus in front to be removed. Raises UserError."""
    tag = change.removeprefix("-")
    if not TAG.fullmatch(tag):
        raise UserError(
            f"{show(change)} is not a tag; accepted: up to {LONGEST_TAG} characters without spaces, commas, "
            "quotes, and any of !<>=~, with - in front to remove it"
        )
    return tag


def change_tags(run: Run, changes: Iterable[str]) -> Notes:
    """Add tags, and remove those that are given with a minus in front. Raises UserError."""
    notes = read_notes(run)
    tags = dict.fromkeys(notes.tags)
    for change in changes:
        tag = check_tag_change(change)
        if change.startswith("-"):
            tags.pop(tag, None)
        else:
            tags[tag] = None
    changed = Notes(notes.note, tuple(tags))
    write_notes(run, changed)
    return changed
