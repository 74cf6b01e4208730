"""Runs: directories that a trainer writes and everybody else reads (docs/events.md).

No torch here. The parts: `directory` (names, checkpoints, preparing), `events` (what a trainer reports),
`event_file` (how it is written and read), `latest` and `history` (events folded into what a screen shows),
`control` (commands), `lock` (which runs are alive), `status` (a run at a glance), `launching` (starting a
trainer and sending it commands).
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
from core.runs.event_file import EventReader, EventWriter, read_tail
from core.runs.events import SCHEMA, STATES, Event
from core.runs.latest import LatestEvents
from core.runs.launching import (
    send_command,
    signal_trainer,
    start_trainer,
    trainer_exit_code,
    wait_for_command,
)
from core.runs.lock import Holder, RunLock, boot_id, read_holder
from core.runs.meter import StepMeter
from core.runs.status import RunStatus, explain_log, is_alive, log_tail, status

if TYPE_CHECKING:
    from core.runs.history import Follower, RunHistory, preview

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
    "Holder",
    "LatestEvents",
    "Run",
    "RunHistory",
    "RunLock",
    "RunStatus",
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
    """Curves import numpy, which would delay the console's first paint by a tenth of a second."""
    if name in ("Follower", "RunHistory", "preview"):
        from core.runs import history

        return getattr(history, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
