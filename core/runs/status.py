"""What a run is doing, from its lock and the end of its history, never from memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.runs.directory import Run, age_of, directory_bytes
from core.runs.event_file import read_tail
from core.runs.events import STATES
from core.runs.latest import LatestEvents
from core.runs.lock import boot_id, is_locked, read_holder
from core.system.files import open_to_read

LOG_BYTES = 16384
LOG_LINES = 20
ATTEMPT = "=== trainer started "

ENDED = {"finished": "finished", "stopped": "stopped", "interrupted": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class RunStatus:
    """A run at a glance. `state` is new, a trainer's state, finished, stopped, failed, died or gone."""

    state: str
    alive: bool
    step: int
    max_iters: int
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    pid: int | None
    since: float | None
    age: float
    bytes: int
    message: str
    log_tail: str


def is_alive(run: Run) -> bool:
    """True while a trainer holds the run."""
    return is_locked(run.lock_path)


def status(run: Run) -> RunStatus:
    """The status of a run. Costs the same for a history of ten events or a million."""
    # First the lock, then the events, so that a trainer that ends in between has written its last event.
    alive = is_locked(run.lock_path)
    holder = read_holder(run.lock_path)
    latest = LatestEvents()
    latest.feed(read_tail(run.events_path))
    step, evaluation = latest.last_step, latest.last_evaluation
    checkpoint = next((info for info in reversed(run.checkpoints()) if not info.problem), None)
    log = log_tail(run.log_path)
    state, message = state_of(run, alive, latest, log)
    validation = evaluation.validation_loss if evaluation else None
    bits = evaluation.bits_per_byte if evaluation else None
    if evaluation is None and checkpoint is not None:
        validation, bits = checkpoint.validation_loss, checkpoint.bits_per_byte
    return RunStatus(
        state=state,
        alive=alive,
        step=latest.step or (checkpoint.step if checkpoint else 0),
        max_iters=latest.max_iters or _max_iters(run),
        train_loss=step.loss if step else checkpoint.train_loss if checkpoint else None,
        validation_loss=validation,
        bits_per_byte=bits,
        tokens_per_second=step.tokens_per_second if step and alive else None,
        pid=holder.pid if alive and holder else None,
        since=holder.since if holder else None,
        age=age_of(latest.newest.time if latest.newest else _modified(run.path)),
        bytes=directory_bytes(run.path),
        message=message,
        log_tail=log,
    )


def state_of(run: Run, alive: bool, latest: LatestEvents, log: str) -> tuple[str, str]:
    """A run's state and a message about it; `log` is the end of its trainer's output."""
    state, end, error = latest.state, latest.end, latest.error
    if alive:
        name = state.state if state else "preparing"
        return (name if name in STATES else "training"), (state.detail if state else "")
    if not run.path.is_dir():
        return "gone", f"the run's folder {run.path} is gone: moved, renamed or deleted"
    if end is not None:
        message = end.message
        if error is not None and end.reason == "failed":
            message = "; ".join(filter(None, (error.message, error.advice)))
        return ENDED.get(end.reason, "stopped"), message
    if latest.newest is None and not log:
        return "new", ""
    if latest.newest is None or (latest.newest is latest.run and _traceback(log)):
        return "failed", explain_log(log)
    holder = read_holder(run.lock_path)
    if holder is not None and holder.boot_id != boot_id():
        return (
            "died",
            "the machine was restarted while the run was training; resume it from its last checkpoint",
        )
    return "died", explain_log(log) + "; resume it from its last checkpoint"


def _max_iters(run: Run) -> int:
    try:
        return run.config().training.max_iters
    except UserError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def log_tail(path: Path, lines: int = LOG_LINES) -> str:
    """The last lines that the newest trainer of a run printed."""
    try:
        with open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    text = text.rpartition(ATTEMPT)[2].partition("\n")[2] if ATTEMPT in text else text
    return "\n".join(text.rstrip().splitlines()[-lines:])


# What the end of a trainer's log usually means for the person who started it.
_MEANINGS = (
    (r"No module named '([\w.]+)'", "the Python package {0} is missing from this installation"),
    (r"CUDA out of memory|OutOfMemoryError", "the device ran out of memory: lower batch_size or block_size"),
    (r"MemoryError|Cannot allocate memory", "the machine ran out of memory: lower batch_size or block_size"),
    (r"No space left on device", "the disk is full"),
    (r"Read-only file system|Permission denied: '([^']*)'", "a file cannot be written: {0}"),
    (r"CUDA driver|CUDA error|cudaGetDeviceCount", "the CUDA device cannot be used"),
    (r"Segmentation fault", "the trainer crashed inside a native library"),
)


def _traceback(log: str) -> bool:
    return "Traceback (most recent call last)" in log


def explain_log(log: str) -> str:
    """The end of a trainer's log as one sentence that a user can act on."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    for pattern, meaning in _MEANINGS:
        match = re.search(pattern, log)
        if match:
            detail = next((group for group in match.groups() if group), match[0])
            return meaning.format(detail) + (f" ({last})" if last else "")
    if _traceback(log) and last:
        return f"the trainer failed: {last}"
    if last:
        return f"the trainer ended without saying why; its last line was: {last}"
    return "the trainer was killed (by someone, or because memory ran out)"
