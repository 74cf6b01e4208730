"""Checkpoint files without torch: which there are, whether they are whole, and which are kept.

A checkpoint is `checkpoint_step_<N>.pt` with its manifest `checkpoint_step_<N>.json`. The manifest
is written last, so a file without one is a save that never finished, and is not a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.config.schema import TrainingConfig
from core.runs.event_fields import plain
from core.system.files import sync_folder, write_atomic

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = re.compile(r"checkpoint_step_(\d{1,18})\.json")
LEFTOVER = re.compile(r"checkpoint_step_\d{1,18}\.pt|\.checkpoint_step_\d{1,18}\.(pt|json)\.[0-9a-f]+\.tmp")
HASH_BYTES = 1 << 20
Which = Literal["best", "newest"]


@dataclass(frozen=True)
class CheckpointInfo:
    """What a manifest says. `problem` tells in words why the file cannot be used, "" when it looks whole."""

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
        """The manifest beside the file."""
        return self.path.with_suffix(".json")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"checkpoint_step_{step}.pt"


def write_manifest(info: CheckpointInfo) -> None:
    """Declare a checkpoint whole. Raises OSError."""
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
    """Every checkpoint of a folder that has a manifest, by step. Never raises."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [
        info
        for name in names
        if (match := MANIFEST.fullmatch(name)) and (info := read_manifest(folder / name, int(match[1])))
    ]
    found.sort(key=lambda info: info.step)
    best = _by_loss(found)[:1]
    return [dataclasses.replace(info, best=info in best) for info in found]


def choose_checkpoint(folder: Path, which: Which = "best") -> CheckpointInfo | None:
    """The checkpoint of a run's folder to use: that of the lowest validation loss, or the newest.

    Where no loss was recorded, the newest is the best. None when none looks whole. Never raises.
    """
    usable = [info for info in find_checkpoints(folder) if not info.problem]
    by_loss = _by_loss(usable) if which == "best" else []
    return by_loss[0] if by_loss else usable[-1] if usable else None


def _by_loss(found: list[CheckpointInfo]) -> list[CheckpointInfo]:
    """The usable ones whose validation loss is known, best first; of equals the earlier."""

    def loss(info: CheckpointInfo) -> float:
        return math.nan if info.validation_loss is None else info.validation_loss

    usable = [info for info in found if not info.problem and math.isfinite(loss(info))]
    return sorted(usable, key=lambda info: (loss(info), info.step))


def read_manifest(path: Path, step: int) -> CheckpointInfo | None:
    """The checkpoint that a manifest describes; None when the file is no manifest. Never raises."""
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(1 << 16))
        size, digest = values["bytes"], values["sha256"]
        if type(size) is not int or type(digest) is not str or values["step"] != step:
            return None
        losses = [_number(values, key) for key in ("train_loss", "validation_loss", "bits_per_byte", "time")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    file_path = path.with_suffix(".pt")
    try:
        found = file_path.stat().st_size
    except OSError:
        problem = "its file is missing"
    else:
        problem = "" if found == size else f"its file has {found:,} bytes instead of {size:,}"
    return CheckpointInfo(
        step=step,
        path=file_path,
        bytes=size,
        sha256=digest,
        train_loss=losses[0],
        validation_loss=losses[1],
        bits_per_byte=losses[2],
        time=losses[3] or 0.0,
        best=False,
        problem=problem,
    )


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def verify(info: CheckpointInfo) -> str:
    """Read the whole file and say in words what is wrong with it; "" when it is what was saved."""
    if info.problem:
        return info.problem
    digest = hashlib.sha256()
    try:
        with open(info.path, "rb") as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    return "" if digest.hexdigest() == info.sha256 else "its content has changed since it was saved"


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a checkpoint from being deleted by its run's trainer while it is loaded."""
    with open(path, "rb") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def kept(found: list[CheckpointInfo], policy: TrainingConfig) -> set[int]:
    """The steps that the policy keeps: the newest, the best (one at least), and every so many steps."""
    usable = [info for info in found if not info.problem]
    steps = {info.step for info in usable[-policy.keep_last :]}
    steps |= {info.step for info in _by_loss(usable)[: max(1, policy.keep_best)]}
    if policy.keep_every:
        steps |= {info.step for info in usable if info.step % policy.keep_every == 0}
    return steps


def prune(folder: Path, policy: TrainingConfig) -> list[int]:
    """Delete what the policy does not keep, and what unfinished saves left; the steps that went.

    Only the trainer that holds the run may call this, and not during a save. A damaged checkpoint
    is left for its owner to look at. What cannot be deleted, or is being loaded, stays for next time.
    """
    found = find_checkpoints(folder)
    keep = kept(found, policy)
    gone = [info.step for info in found if info.step not in keep and not info.problem and _delete(info)]
    declared = {info.path.name for info in found}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if LEFTOVER.fullmatch(name) and name not in declared:
                with contextlib.suppress(OSError):
                    os.unlink(folder / name)
    sync_folder(folder)
    return gone


def _delete(info: CheckpointInfo) -> bool:
    try:
        with open(info.path, "rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The manifest first: what is left of a deletion cut short is not a checkpoint.
            info.manifest_path.unlink()
            info.path.unlink()
    except OSError:
        return False
    return True
