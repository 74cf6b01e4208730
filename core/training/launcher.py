"""Starts the ranks of a run with torchrun's elastic agent, and starts them again when one dies.

    python -P -m core.training.process RUN_DIR     this process: holds run.lock for the run's whole life
        elastic agent (a thread)                       starts the ranks, ends them all when one has ended
            rank 0 ... rank N-1                        the same command, with torchrun's environment

The ranks are `core/training/process.py` again. Rank 0 writes the history; this process writes only
while there is no rank 0. On several machines torchrun itself takes this place (docs/ranks.md).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from types import FrameType
from typing import Any, NoReturn

from core.config.schema import RunConfig
from core.runs import EventWriter, Run
from core.runs.event_file import read_tail
from core.runs.events import EndEvent, ErrorEvent, RunEvent
from core.training.requests import say

EXIT_LOST = 75
"""Exit code of a rank that ends because another one did: EX_TEMPFAIL of sysexits.h."""
EXIT_CODES = {"finished": 0, "stopped": 130, "interrupted": 130}
FAILURE, INTERRUPTED = 1, 130
LOCK_VARIABLE = "MAMBA_TUI_LOCK_HOLDER"
"""Tells a rank which process holds the run's lock for it."""
TRIES = 5
"""How many attempts in a row may fail without saving anything new."""


def torchrun_place() -> tuple[int, int, int]:
    """This process's rank, the number of ranks, and its rank on this machine, as torchrun says."""
    rank, size, local = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if "MASTER_ADDR" in os.environ and rank.isdecimal() and size.isdecimal() and local.isdecimal():
        return int(rank), int(size), int(local)
    return 0, 1, 0


def launched() -> bool:
    """Whether the process that started this one holds the run's lock for it."""
    return os.environ.get(LOCK_VARIABLE) == str(os.getppid())


def end_process(code: int) -> NoReturn:
    """End this process.

    A rank ends at once, because NCCL would wait for every captured graph to be destroyed.
    """
    if torchrun_place()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def launch(run: Run, config: RunConfig, count: int) -> int:
    """Train a run with `count` ranks. Returns the exit code. This process must hold the run's lock."""
    return Launcher(run, config, count).run()


class Launcher:
    """The ranks of a run on one machine, from the first start to the last end."""

    def __init__(self, run: Run, config: RunConfig, count: int) -> None:
        self._run = run
        self._count = count
        self._signals = 0
        self._forwarded = 0
        self._first_pid = 0
        os.environ[LOCK_VARIABLE] = str(os.getpid())
        if config.hardware.threads == 0 and config.hardware.device == "cpu":
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        # otherwise torchrun sets it to 1 and logs a warning
        os.environ.setdefault("OMP_NUM_THREADS", "1")

    def run(self) -> int:
        """Start the ranks until they end normally. Returns the exit code."""
        signal.signal(signal.SIGINT, self._caught)
        signal.signal(signal.SIGTERM, self._caught)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        tries, saved = 0, self._newest()
        while True:
            began = time.time()
            failures = self._attempt(began)
            end = self._ending(began)
            if end is not None:
                return self._exit_code(end, failures)
            if self._signals:
                self._write_end("interrupted", "stopped; anything not saved yet is lost")
                return INTERRUPTED
            broken = [failure for failure in failures.values() if failure.exitcode in (1, 2)]
            if broken:
                return self._give_up(f"rank {broken[0].local_rank} failed: {_words(broken[0])}")
            tries, saved = (1, self._newest()) if self._newest() != saved else (tries + 1, saved)
            if tries >= TRIES:
                return self._give_up(f"{_who(failures)}, {TRIES} times without a new checkpoint in between")
            where = f"resumes from {saved}" if saved else "starts over, because nothing was saved yet"
            self._warn(f"{_who(failures)}; training {where}")

    def _attempt(self, began: float) -> dict[int, Any]:
        """Start all ranks and wait for them to end. Returns those that failed, by rank."""
        failures: dict[int, Any] = {}
        # In a thread, because there torch leaves the signals to us.
        arguments = ("-m", "core.training.process", str(self._run.path.resolve()))
        agent = threading.Thread(
            target=lambda: failures.update(start_ranks(self._count, *arguments)), name="agent", daemon=True
        )
        agent.start()
        self._forwarded, self._first_pid = 0, 0
        while agent.is_alive():
            agent.join(0.1)
            if not self._first_pid:
                self._find_first(began)
            elif self._forwarded < self._signals:
                self._forwarded += 1
                # Not SIGTERM, by which the agent ends ranks when another one has failed.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._first_pid, signal.SIGINT)
        return failures

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _find_first(self, began: float) -> None:
        """Read in the history which process is rank 0."""
        for event in read_tail(self._run.events_path):
            if isinstance(event, RunEvent) and event.started >= began:
                self._first_pid = event.pid

    def _ending(self, began: float) -> EndEvent | None:
        """The final status that rank 0 wrote for this attempt; None if it couldn't write one."""
        end: EndEvent | None = None
        for event in read_tail(self._run.events_path):
            if isinstance(event, RunEvent):
                end = None
            elif isinstance(event, EndEvent) and event.time >= began:
                end = event
        return end

    def _exit_code(self, end: EndEvent, failures: dict[int, Any]) -> int:
        if end.reason in EXIT_CODES:
            return EXIT_CODES[end.reason]
        first = failures.get(0)
        return first.exitcode if first is not None and first.exitcode in (1, 2) else FAILURE

    def _newest(self) -> str:
        whole = [info.path.name for info in self._run.checkpoints() if not info.problem]
        return whole[-1] if whole else ""

    def _warn(self, message: str) -> None:
        say(message)
        writer = EventWriter(self._run.events_path)
        writer.warning(message)
        writer.close()

    def _give_up(self, message: str) -> int:
        say(message)
        writer = EventWriter(self._run.events_path)
        saved = self._newest()
        advice = f"{saved} is the checkpoint to resume from" if saved else "nothing was saved yet"
        writer.write(ErrorEvent(message=message, advice=advice, traceback=None))
        writer.close()
        self._write_end("failed", message)
        return FAILURE

    def _write_end(self, reason: str, message: str) -> None:
        whole = [info for info in self._run.checkpoints() if not info.problem]
        step, name = (whole[-1].step, whole[-1].path.name) if whole else (0, None)
        writer = EventWriter(self._run.events_path)
        writer.write(EndEvent(reason=reason, step=step, message=message, checkpoint=name))
        writer.close()


def start_ranks(count: int, *arguments: str) -> dict[int, Any]:
    """Run `python -P ARGUMENTS` as `count` ranks until they end. Returns those that failed, by rank."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would warn that the signals aren't its own, which is intended.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    plan = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # this process restarts them, reports each failure and counts those without a save
        monitor_interval=0.1,
    )
    try:
        elastic_launch(plan, sys.executable)("-P", *arguments)
    except ChildFailedError as error:
        return dict(error.failures)
    except Exception as error:
        say(f"torchrun: {type(error).__name__}: {error}")
    return {}


def _who(failures: dict[int, Any]) -> str:
    """A description of the rank that failed first, not of those that ended because of it."""
    dead = [failure for failure in failures.values() if failure.exitcode not in (EXIT_LOST, -signal.SIGTERM)]
    if not dead:
        return "the ranks lost each other"
    first = min(dead, key=lambda failure: failure.timestamp)
    code = first.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"rank {first.local_rank} (process {first.pid}) {how}"


def _words(failure: Any) -> str:
    """The message of a rank's error."""
    message = getattr(failure, "message", "")
    if isinstance(message, dict):
        message = message.get("message", "")
    lines = str(message).strip().splitlines()
    return lines[0] if lines else "see trainer.log"
