"""Starts a trainer that outlives its starter, and sends it commands."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from typing import IO

from core.errors import UserError
from core.runs.control import COMMANDS, post_command, wait_for_answer
from core.runs.directory import Run
from core.runs.events import CommandEvent
from core.runs.lock import is_locked, read_holder, refusal, signal_holder
from core.runs.status import ATTEMPT, explain_log, is_alive, log_tail, status
from core.system.files import Folder, open_to_append
from core.system.processes import module_command, module_environment

START_SECONDS = 60.0
LARGEST_LOG = 4 << 20

# Trainers that this process started, kept only to collect their exit codes.
_children: list[subprocess.Popen[bytes]] = []


def start_trainer(run: Run, *, environment: Mapping[str, str] | None = None) -> int:
    """Start `python -m core.training.process` on a prepared run. Returns its pid once it holds the run.

    The process gets its own session, so that neither a closed terminal, nor Ctrl-C, nor the death of this
    process affects it. Raises UserError if the run is alive already, or if the trainer ends at once; the
    message is then the end of trainer.log as a sentence.
    """
    if is_alive(run):
        raise UserError(refusal(run.name, read_holder(run.lock_path)))
    _children[:] = [child for child in _children if child.poll() is None]
    command = module_command("core.training.process", str(run.path.resolve()))
    with _open_log(run) as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**module_environment(), "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
    _children.append(child)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        holder = read_holder(run.lock_path)
        held = holder is not None and holder.pid == child.pid
        if held and (ended or is_locked(run.lock_path)):
            return child.pid  # if it ended before we looked, its history says why
        if ended:
            raise UserError(_first_words(run, child.returncode))
        time.sleep(0.01)
    raise UserError(f"the trainer of {run.name} did not start in {START_SECONDS:g} s; see {run.log_path}")


def trainer_exit_code(pid: int) -> int | None:
    """The exit code of a trainer that this process started; None while it runs. A killed one counts as 1."""
    child = next(child for child in _children if child.pid == pid)
    code = child.poll()
    return code if code is None or code >= 0 else 1


def _first_words(run: Run, code: int) -> str:
    tail = log_tail(run.log_path)
    if code == 2 and tail:
        return tail
    return f'the trainer of run "{run.name}" could not start: {explain_log(tail)}'


def _open_log(run: Run) -> IO[bytes]:
    try:
        with Folder(run.path, follow_links=True) as folder:
            info = folder.status(run.log_path.name)
            if info is not None and info.st_size > LARGEST_LOG:
                folder.move(run.log_path.name, f"{run.log_path.name}.1")
        log = open_to_append(run.log_path)
        log.write(f"{ATTEMPT}{time.strftime('%Y-%m-%d %H:%M:%S')} ===\n".encode())
    except OSError as error:
        raise UserError(f"{run.log_path} cannot be written ({error.strerror})") from None
    return log


def send_command(run: Run, command: str, **arguments: object) -> str:
    """Send a command to a run's trainer. Returns its id; a `command` event answers it.

    Raises UserError if the command is unknown or there is no trainer to receive it.
    """
    if command not in COMMANDS:
        raise UserError(f'"{command}" is not a command; accepted: {", ".join(COMMANDS)}')
    if not run.exists:
        raise UserError(f'there is no run "{run.name}" in {run.path.parent}')
    if not is_alive(run):
        now = status(run)
        raise UserError(
            f'run "{run.name}" is not running ({now.state} at step {now.step}): it cannot {command}'
        )
    try:
        return post_command(run.control_path, command, dict(arguments))
    except OSError as error:
        raise UserError(f"{run.control_path} cannot be written ({error.strerror})") from None


def wait_for_command(run: Run, identity: str, seconds: float = 30.0) -> CommandEvent:
    """The `command` event that answers a command. Raises UserError if none comes."""
    return wait_for_answer(run.events_path, run.lock_path, identity, seconds)


def signal_trainer(run: Run, number: int) -> int:
    """Send a signal to a run's trainer, and never to another process. Returns its pid."""
    return signal_holder(run.lock_path, signal.Signals(number))
