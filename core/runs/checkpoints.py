"""Checkpoint files without torch: which exist, whether they are complete, and which are kept.

A checkpoint is `checkpoint_step_<N>.pt` with its manifest `checkpoint_step_<N>.json`. The manifest is written
last, so a file without one is a save that never finished, and no checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.config.schema import TrainingConfig
from core.runs.event_fields import COUNT, MOMENT, NUMBER, plain
from core.system.files import Folder, kind, open_to_read, read_limited, write_atomic
from core.system.locks import NoLocksError, try_lock

MANIFEST = re.compile(r"checkpoint_step_(\d{1,18})\.json")
LEFTOVER = re.compile(r"checkpoint_step_\d{1,18}\.pt|\.checkpoint_step_\d{1,18}\.(pt|json)\.[0-9a-f]+\.tmp")
HASH_BYTES = 1 << 20
LARGEST_MANIFEST = 1 << 16
Which = Literal["best", "newest"]


@dataclass(frozen=True)
class CheckpointInfo:
    """The content of a manifest. `problem` says why the file can't be used, "" if it looks complete."""

    step: int
    path: Path
    bytes: int
    sha256: str
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    time: float
    best: bool
    problem: str = ""

    @property
    def manifest_path(self) -> Path:
        """The path of the manifest."""
        return self.path.with_suffix(".json")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"checkpoint_step_{step}.pt"


def write_manifest(info: CheckpointInfo) -> None:
    """Declare a checkpoint complete by writing its manifest. Raises OSError."""
    values = {
        "format": 1,
        "step": info.step,
        "file": info.path.name,
        "bytes": info.bytes,
        "sha256": info.sha256,
        "train_loss": info.train_loss,
        "validation_loss": info.validation_loss,
        "bits_per_byte": info.bits_per_byte,
        "time": info.time,
    }
    write_atomic(info.manifest_path, json.dumps(plain(values), indent=1).encode() + b"\n")


def find_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """Every checkpoint of a folder that has a manifest, sorted by step. Never raises."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    known = [
        info
        for name in names
        if (match := MANIFEST.fullmatch(name)) and (info := read_manifest(folder / name, int(match[1])))
    ]
    known.sort(key=lambda info: info.step)
    best = _by_loss(known)[:1]
    return [dataclasses.replace(info, best=info in best) for info in known]


def choose_checkpoint(folder: Path, which: Which = "best") -> CheckpointInfo | None:
    """The checkpoint of a run's folder to use, by the rule of `choose_among`. Never raises."""
    return choose_among(find_checkpoints(folder), which)


def choose_among(checkpoints: list[CheckpointInfo], which: Which = "best") -> CheckpointInfo | None:
    """The checkpoint with the lowest validation loss, or the newest; `checkpoints` are in order of steps.

    If no loss was recorded, the newest is the best. None if none looks complete.
    """
    usable = [info for info in checkpoints if not info.problem]
    by_loss = _by_loss(usable) if which == "best" else []
    return by_loss[0] if by_loss else usable[-1] if usable else None


def _by_loss(checkpoints: list[CheckpointInfo]) -> list[CheckpointInfo]:
    """The usable checkpoints with a known validation loss, best first; if equal, the earlier first."""

    def loss(info: CheckpointInfo) -> float:
        return math.nan if info.validation_loss is None else info.validation_loss

    usable = [info for info in checkpoints if not info.problem and math.isfinite(loss(info))]
    return sorted(usable, key=lambda info: (loss(info), info.step))


def read_manifest(path: Path, step: int) -> CheckpointInfo | None:
    """The checkpoint that a manifest describes; None if the file is not a manifest. Never raises."""
    try:
        values = json.loads(read_limited(path, LARGEST_MANIFEST))
        size, digest = COUNT.read(values["bytes"]), values["sha256"]
        if type(digest) is not str or COUNT.read(values["step"]) != step:
            return None
        losses = [_number(values, key) for key in ("train_loss", "validation_loss", "bits_per_byte")]
        saved = values.get("time")
        moment = 0.0 if saved is None else MOMENT.read(saved)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    file_path = path.with_suffix(".pt")
    try:
        file = file_path.stat()
    except OSError:
        problem = "its file is missing"
    else:
        problem = "" if file.st_size == size else f"its file has {file.st_size:,} bytes instead of {size:,}"
        if os.path.islink(file_path) and not _inside(file_path):
            problem = "its file is a link that leads out of the run's folder"
        elif not stat.S_ISREG(file.st_mode):
            problem = f"its file is {kind(file.st_mode)}, not a file"
    return CheckpointInfo(
        step=step,
        path=file_path,
        bytes=size,
        sha256=digest,
        train_loss=losses[0],
        validation_loss=losses[1],
        bits_per_byte=losses[2],
        time=moment,
        best=False,
        problem=problem,
    )


def _inside(path: Path) -> bool:
    """Whether a file is, after following all links, in the folder that lists it."""
    return os.path.realpath(path.parent) == os.path.dirname(os.path.realpath(path))


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return None if value is None else NUMBER.read(value)


def verify(info: CheckpointInfo) -> str:
    """Read the whole file and compare it with its manifest. Returns "" if it is intact, or what is wrong."""
    if info.problem:
        return info.problem
    digest = hashlib.sha256()
    try:
        with open_to_read(info.path, follow_links=True) as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    return "" if digest.hexdigest() == info.sha256 else "its content has changed since it was saved"


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Protect a checkpoint from deletion by its run's trainer while it is being loaded."""
    with open_to_read(path, follow_links=True) as file:
        with contextlib.suppress(NoLocksError):
            try_lock(file, shared=True)
        yield


def kept(checkpoints: list[CheckpointInfo], policy: TrainingConfig) -> set[int]:
    """The steps that the policy keeps: the newest, the best (at least one), and every n-th step."""
    usable = [info for info in checkpoints if not info.problem]
    steps = {info.step for info in usable[-policy.keep_last :]}
    steps |= {info.step for info in _by_loss(usable)[: max(1, policy.keep_best)]}
    if policy.keep_every:
        steps |= {info.step for info in usable if info.step % policy.keep_every == 0}
    return steps


def prune(folder: Path, policy: TrainingConfig) -> list[int]:
    """Delete checkpoints that the policy doesn't keep, and remains of unfinished saves. Returns the deleted
    steps.

    Only the trainer that holds the run may call this, and not during a save. Damaged checkpoints are left for
    their owner to look at. Anything that can't be deleted, or is being loaded, stays until next time.
    """
    checkpoints = find_checkpoints(folder)
    keep = kept(checkpoints, policy)
    declared = {info.path.name for info in checkpoints}
    try:
        with Folder(folder, follow_links=True) as run:
            gone = [info.step for info in checkpoints if info.step not in keep and _delete(run, info)]
            for name in run.names():
                if LEFTOVER.fullmatch(name) and name not in declared:
                    with contextlib.suppress(OSError):
                        run.delete(name)
            run.sync()
    except OSError:  # the folder is gone
        return []
    return gone


def _delete(run: Folder, info: CheckpointInfo) -> bool:
    if info.problem:
        return False
    try:
        with open_to_read(info.path, follow_links=True) as file:
            with contextlib.suppress(NoLocksError):
                if not try_lock(file):
                    return False  # it is being loaded
            # The manifest first, so that an interrupted deletion leaves no checkpoint.
            run.delete(info.manifest_path.name)
            run.delete(info.path.name)
    except OSError:
        return False
    return True
