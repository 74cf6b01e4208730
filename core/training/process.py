"""The trainer process: `python -P -m core.training.process RUN_DIR`.

With `ranks` it starts several processes like itself under torchrun's agent (core/training/launcher.py). Rank
0 of these does what follows, and the others compute (core/training/follow.py).

It holds the run's lock for its whole life, is the only writer of the run's history, and takes commands and
signals between steps. Exit codes: 0 done, 130 stopped after saving, 2 bad input, 1 failure. torch is imported
only after the lock is held and the history says that work has begun.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.preflight import check_divides, ranks_wanted
from core.config.schema import RunConfig, flat
from core.errors import UserError
from core.runs import CheckpointInfo, EventWriter, Run, RunLock, boot_id, verify
from core.runs.alerts import DIVERGED_ADVICE, AlertWatch, load_settings, run_command
from core.runs.directory import portable
from core.runs.events import EndEvent, ErrorEvent, RunEvent
from core.system.allocator import keep_freed_memory
from core.system.processes import calm_threads
from core.training.launcher import EXIT_LOST, end_process, launched, torchrun_place
from core.training.requests import Requests, StopRequestedError, run_folder, say

if TYPE_CHECKING:
    from core.training.build import Parts
    from core.training.shared_requests import SharedRequests
    from core.training.trainer import Trainer

PROGRESS_SECONDS = 0.2
OK, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str]) -> int:
    """Train the run named on the command line. Returns the exit code."""
    folder = run_folder(arguments)
    if folder is None:
        say("usage: python -P -m core.training.process RUN_DIR")
        return BAD_INPUT
    run = Run(folder.resolve())
    calm_threads(os.environ)
    keep_freed_memory()
    try:
        config = portable(run.config())
        # From here on every path is relative to the working directory, so that renaming or moving the run's
        # folder takes the trainer along.
        os.chdir(run.path)
        run = Run(Path())
        rank, size, local = torchrun_place()
        if rank > 0:
            from core.training.follow import follow
            from core.training.ranks import Ranks

            return follow(run, config, Ranks(rank, size, local))
        with contextlib.nullcontext() if launched() else RunLock(run.lock_path):
            if size == 1 and not launched() and (count := ranks_wanted(config)) > 1:
                from core.training.launcher import launch

                return launch(run, config, count)
            return TrainerProcess(run, config, size).run()
    except UserError as error:
        say(str(error))
        return BAD_INPUT
    except OSError as error:
        place = os.path.abspath(error.filename or run.path)
        say(f"{place} cannot be used ({error.strerror}); accepted: a folder that can be written to")
        return BAD_INPUT


class TrainerProcess:
    """One trainer's work on one run; rank 0's if there are several."""

    def __init__(self, run: Run, config: RunConfig, size: int = 1) -> None:
        self.size = size
        self.joined = False
        self.run_directory = run
        self.config = config
        self.writer = EventWriter(run.events_path)
        self._send_alerts()
        self.requests = Requests(run, self.writer)
        self.trainer: Trainer | None = None
        self.resumed_from: CheckpointInfo | None = None
        self._vocabulary = config.data.vocab_size or 4096
        self._told = 0.0

    def _send_alerts(self) -> None:
        """Send alerts to the user's command, as alerts.toml asks."""
        try:
            wishes = load_settings()
        except UserError as error:
            self.writer.warning(f"no alerts: {error}")
            return
        if wishes.notify:
            run = self.run_directory
            watch = AlertWatch(run.name, run.path, wishes, lambda alert: run_command(alert, wishes))
            self.writer.listener = watch.feed

    def run(self) -> int:
        """Train, and record how it ended, whatever happens."""
        self.requests.catch_signals(self._end_at_once)
        if launched():
            # From torchrun's agent this means that another rank has failed: end at once, and write no ending.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            finished = self._train()
        except StopRequestedError:
            if self.requests.folder_gone:
                code = self._leave_removed()
            else:
                code = self._end(INTERRUPTED, "stopped while preparing; nothing was lost")
        except UserError as error:
            code = self._fail(BAD_INPUT, str(error))
        except Exception as error:
            code = self._explain(error)
            if code == EXIT_LOST:
                return code
        else:
            if finished:
                code = self._end(OK, f"finished at step {self.step}")
            elif self.requests.folder_gone:
                code = self._leave_removed()
            else:
                saved = f"; {self.checkpoint} is the checkpoint to resume from" if self.checkpoint else ""
                code = self._end(INTERRUPTED, f"stopped at step {self.step}{saved}")
        self.requests.refuse_the_rest("the run has ended")
        self.writer.close()
        # torchrun treats any exit code other than 0 as a failure and starts the rank again.
        return OK if self.joined and code == INTERRUPTED else code

    def _train(self) -> bool:
        run, config = self.run_directory, self.config
        newest, damaged = newest_checkpoint(run)
        started = self._announce(newest)
        self.writer.state("preparing", newest.step if newest else 0, "loading torch")
        for problem in damaged:
            self.writer.warning(f"{problem}; resuming from {newest.path.name if newest else 'the start'}")
        self.resumed_from = newest

        from core.config.files import save_file
        from core.training.build import build_parts, open_device
        from core.training.ranks import Ranks
        from core.training.trainer import Trainer

        self.requests.listen_or_leave()
        ranks = Ranks(0, self.size, torchrun_place()[2])
        check_divides(config, self.size)
        ranks.join(open_device(config, ranks), self._rank_lost)
        self.joined = ranks.several
        if launched():
            # From now on the failed exchange says so, and a checkpoint that is being written is finished.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ranks.from_first(lambda: newest)
        parts = build_parts(run, config, newest, self._preparing, ranks)
        self.requests.listen_or_leave()
        if parts.config != config:  # the text has decided the values that the configuration left open
            save_file(parts.config, run.config_path)
        self.config = config = parts.config
        announce_model(config, parts, self.writer, started)
        self._vocabulary = parts.tokenizer.vocab_size
        for notice in parts.notices:
            self.writer.warning(notice)
        self.requests.ready()
        requests: Requests | SharedRequests = self.requests
        if ranks.several:
            from core.training.shared_requests import SharedRequests

            requests = SharedRequests(ranks, self.requests)
        self.trainer = Trainer(run, config, parts, self.writer, requests)
        finished = self.trainer.train()
        ranks.leave()
        return finished

    def _rank_lost(self, message: str) -> None:
        """Report which rank has failed, and where the run can be resumed from."""
        saved = self.trainer.saved() if self.trainer else self.resumed_from
        where = f"{saved.path.name} is the last checkpoint" if saved else "nothing was saved yet"
        say(f"{message}; {where}")
        if not launched():  # the process that started this one reports the same in more detail
            # An event may be half written: a new writer cuts off the incomplete line.
            writer = EventWriter(self.run_directory.events_path)
            writer.warning(f"{message}; {where}")
            writer.close()

    @property
    def step(self) -> int:
        """The training step reached."""
        return self.trainer.step if self.trainer else self.resumed_from.step if self.resumed_from else 0

    @property
    def checkpoint(self) -> str | None:
        """The file that a resumed run would start from."""
        saved = self.trainer.last_saved if self.trainer else self.resumed_from
        return saved.path.name if saved else None

    def _announce(self, newest: CheckpointInfo | None) -> RunEvent:
        """Report the trainer before anything slow; values that aren't known yet are 0."""
        config, training = self.config, self.config.training
        event = RunEvent(
            run=self.run_directory.name,
            pid=os.getpid(),
            boot_id=boot_id(),
            started=time.time(),
            device=config.hardware.device,
            parameters=0,
            vocab_size=0,
            tokens_per_step=training.batch_size
            * config.model.block_size
            * training.gradient_accumulation_steps,
            max_iters=training.max_iters,
            resumed_from=newest.step if newest else None,
            versions=versions(),
            config=flat(config),
        )
        self.writer.write(event)
        self.requests.refuse_stale()
        return event

    def _preparing(self, detail: str, share: float | None) -> None:
        self.requests.listen_or_leave()
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self.writer.state("preparing", self.step, detail, share)

    def _explain(self, error: Exception) -> int:
        """Describe an error in words, with its traceback."""
        trace = traceback.format_exc()
        try:
            from core.training.out_of_memory import memory_advice, out_of_memory
            from core.training.ranks import RankLostError
            from core.training.trainer import DivergenceError
        except Exception:  # torch itself is broken
            return self._fail(FAILURE, f"torch cannot be used here: {error}", "install it again", trace)
        if isinstance(error, RankLostError):
            self._rank_lost(str(error))
            return EXIT_LOST
        if isinstance(error, DivergenceError):
            return self._fail(FAILURE, str(error), DIVERGED_ADVICE)
        if out_of_memory(error):
            message, advice = memory_advice(self.config, self._vocabulary)
            return self._fail(FAILURE, message, advice, trace)
        last = f"{type(error).__name__}: {error}"
        return self._fail(FAILURE, f"training failed: {last}", "see trainer.log", trace)

    def _fail(self, code: int, message: str, advice: str = "", trace: str | None = None) -> int:
        if trace:
            say(trace)
        say(f"{message}; {advice}" if advice else message)
        self.writer.write(ErrorEvent(message=message, advice=advice, traceback=trace))
        self._write_end("failed", message)
        return code

    def _end(self, code: int, message: str) -> int:
        reason = "finished" if code == OK else "interrupted" if self.requests.signalled else "stopped"
        self._write_end(reason, message)
        return code

    def _leave_removed(self) -> int:
        """The history, perhaps with the whole folder, was removed: say so where somebody may still see it."""
        message = f"the run's folder or its history was removed; training stopped at step {self.step}"
        if self.run_directory.exists:
            self.writer.close()
            self.writer = EventWriter(self.run_directory.events_path)
        return self._fail(FAILURE, message, "do not remove a run's files while it trains")

    def _write_end(self, reason: str, message: str) -> None:
        self.writer.write(
            EndEvent(reason=reason, step=self.step, message=message, checkpoint=self.checkpoint)
        )

    def _end_at_once(self) -> None:
        """A second signal: end without saving or waiting. The last checkpoint remains."""
        whole = [info for info in self.run_directory.checkpoints() if not info.problem]
        # The signal may have interrupted an event: a new writer cuts off the incomplete line.
        writer = EventWriter(self.run_directory.events_path)
        writer.write(
            EndEvent(
                reason="interrupted",
                step=self.step,
                message="ended at once by a second signal, without saving",
                checkpoint=whole[-1].path.name if whole else None,
            )
        )
        writer.sync()
        os._exit(INTERRUPTED)


def newest_checkpoint(run: Run) -> tuple[CheckpointInfo | None, list[str]]:
    """The newest intact checkpoint, and what is wrong with newer ones.

    Raises UserError if there are checkpoints but none is intact: starting over must be requested.
    """
    damaged: list[str] = []
    for info in reversed(run.checkpoints()):
        problem = verify(info)
        if not problem:
            return info, damaged
        damaged.append(f"{info.path.name} is damaged ({problem})")
    if damaged:
        raise UserError(
            f'run "{run.name}" has no checkpoint to resume from: ' + "; ".join(damaged) + "; start over "
            "with --fresh (the old run is moved aside, not deleted)"
        )
    return None, []


def announce_model(config: RunConfig, parts: Parts, writer: EventWriter, started: RunEvent) -> None:
    """Write the `run` event again, of a trainer that now knows its model."""
    writer.write(
        dataclasses.replace(
            started,
            device=parts.device_name,
            max_iters=config.training.max_iters,
            parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
            vocab_size=parts.tokenizer.vocab_size,
            tokens_per_step=parts.tokens_per_step,
            config=flat(config),
            changes=parts.changes,
        )
    )


def versions() -> dict[str, str]:
    """The versions and the machine of this run, without importing any package."""
    numbers = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("mamba-tui", "torch", "numpy", "triton"):
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
