"""Runs: directories that a trainer writes and everybody else reads (shared/DESIGN.md, docs/events.md).

No torch here. The parts: `directory` (names, checkpoints, preparing), `events` (the history file),
`history` (the history folded into curves), `control` (commands), `lock` (who is alive), `status`
(a run at a glance), `launching` (starting a trainer and sending it commands).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.runs.checkpoints import CheckpointInfo, checkpoint_path, find_checkpoints, prune, verify
from core.runs.control import COMMANDS, Command, CommandInbox
from core.runs.directory import (
    Run,
    check_name,
    discard,
    fixed_differences,
    fixed_message,
    list_runs,
    next_run_name,
    prepare_run,
)
from core.runs.events import EventReader, EventWriter, read_tail
from core.runs.launching import (
    send_command,
    signal_trainer,
    start_trainer,
    trainer_exit_code,
    wait_for_command,
)
from core.runs.lock import Holder, RunLock, boot_id, read_holder
from core.runs.meter import StepMeter
from core.runs.schema import SCHEMA, STATES, Event
from core.runs.status import RunStatus, explain_log, is_alive, log_tail, status

if TYPE_CHECKING:
    from core.runs.history import Follower, History, Series, preview

__all__ = [
    "COMMANDS",
    "SCHEMA",
    "STATES",
    "CheckpointInfo",
    "Command",
    "CommandInbox",
    "Event",
    "EventReader",
    "EventWriter",
    "Follower",
    "History",
    "Holder",
    "Run",
    "RunLock",
    "RunStatus",
    "Series",
    "StepMeter",
    "boot_id",
    "check_name",
    "checkpoint_path",
    "discard",
    "explain_log",
    "find_checkpoints",
    "fixed_differences",
    "fixed_message",
    "is_alive",
    "list_runs",
    "log_tail",
    "next_run_name",
    "prepare_run",
    "preview",
    "prune",
    "read_holder",
    "read_tail",
    "send_command",
    "signal_trainer",
    "start_trainer",
    "status",
    "trainer_exit_code",
    "verify",
    "wait_for_command",
]


def __getattr__(name: str) -> Any:
    """Curves bring numpy, a tenth of a second that the first paint of the console does not have."""
    if name in ("Follower", "History", "Series", "preview"):
        from core.runs import history

        return getattr(history, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
