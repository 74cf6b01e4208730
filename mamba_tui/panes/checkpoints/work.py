"""Operations on checkpoint files: details, hashes, branching."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.schema import RunConfig
from core.errors import UserError
from core.system.files import copy, delete, read_limited
from mamba_tui.backend.run_client import CheckpointRow

if TYPE_CHECKING:
    from core.runs.events import SampleEvent

LARGEST_TOKENIZER = 1 << 26


@dataclass(frozen=True)
class Details:
    """Details beyond the table's row."""

    config: RunConfig | None
    problem: str
    tokenizer: str
    sample: SampleEvent | None


def read_details(row: CheckpointRow) -> Details:
    """Configuration, tokenizer and the last sample up to the checkpoint's step."""
    config, problem = None, ""
    try:
        config = row.run.config()
    except UserError as error:
        problem = str(error)
    return Details(config, problem, _tokenizer(row), _sample(row))


def _tokenizer(row: CheckpointRow) -> str:
    try:
        head = json.loads(read_limited(row.run.tokenizer_path, LARGEST_TOKENIZER))
    except (OSError, ValueError, RecursionError):
        return "unknown"
    if not isinstance(head, dict):
        return "unknown"
    size = head.get("vocab_size") or len(head.get("ranks") or head.get("tokens") or ())
    return (
        f"{head.get('kind', 'unknown kind')}{f', {size:,} tokens' if isinstance(size, int) and size else ''}"
    )


def _sample(row: CheckpointRow) -> SampleEvent | None:
    from core.runs import read_tail
    from core.runs.events import SampleEvent

    best: SampleEvent | None = None
    for event in read_tail(row.run.events_path, 1 << 20):
        if isinstance(event, SampleEvent) and event.step <= row.info.step:
            best = event
    return best


def verify(row: CheckpointRow) -> str:
    """What is wrong with the file, by its manifest's hash; "" if it is intact."""
    from core.runs.checkpoints import verify as verify_file

    return verify_file(row.info)


def branch(row: CheckpointRow, root: Path, name: str, max_iters: int | None = None) -> Any:
    """Create a run that starts from a copy of this checkpoint. Raises UserError."""
    from core.config.changes import replace
    from core.runs import Run, check_name, discard, prepare_run

    check_name(name)
    if (root / name).exists():
        raise UserError(f'a run "{name}" exists already; choose another name')
    config = row.run.config()
    if max_iters is not None:
        config = replace(config, max_iters=max_iters)
    prepare_run(root, name, config, mode="auto")
    run = Run(root / name)
    manifest = row.info.path.with_suffix(".json")
    try:
        copy(row.run.tokenizer_path, run.tokenizer_path)
        if row.run.split_path.exists():  # runs of earlier versions have none
            copy(row.run.split_path, run.split_path)
        copy(row.info.path, run.path / row.info.path.name)
        # The manifest last: without it the copy is no checkpoint.
        copy(manifest, run.path / manifest.name)
    except OSError as error:
        with contextlib.suppress(OSError):
            delete(run.path / row.info.path.name, missing_ok=True)
        discard(run)
        raise UserError(f"the checkpoint cannot be copied to {run.path}: {error.strerror}") from None
    return run


def without_problem(row: CheckpointRow) -> None:
    """Raise UserError for a checkpoint that can't be used."""
    if row.info.problem:
        raise UserError(f"{row.info.path.name} of {row.run.name} cannot be used: {row.info.problem}")


def describe_pair(first: CheckpointRow, second: CheckpointRow) -> list[tuple[str, Any, Any]]:
    """Figures of two checkpoints side by side."""
    rows: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(first.info):
        if field.name in ("step", "train_loss", "validation_loss", "bits_per_byte", "bytes", "time"):
            rows.append((field.name, getattr(first.info, field.name), getattr(second.info, field.name)))
    return rows
