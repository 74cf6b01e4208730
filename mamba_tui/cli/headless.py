"""`--no-ui`: follow a run as plain text, with a live line on a terminal and only whole lines when piped.

Like the console, it only reads the run's events and sends commands; training doesn't depend on it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.config.schema import RunConfig
from core.errors import UserError
from core.runs import EventReader, LatestEvents, Run, is_alive, status, trainer_exit_code
from core.runs.alerts import (
    Alert,
    AlertSettings,
    AlertWatch,
    load_settings,
    run_command,
    terminal_sequence,
)
from core.runs.events import (
    CheckpointEvent,
    EvaluationEvent,
    Event,
    PlanEvent,
    RunEvent,
    SampleEvent,
    ScheduleEvent,
    StateEvent,
    WarningEvent,
)
from core.system.files import open_to_append
from mamba_tui.cli.streams import leave_quietly, say_error, say_note
from mamba_tui.widgets.numbers import duration
from mamba_tui.widgets.safe_text import visible
from mamba_tui.wording import plan_event_lines

EXIT_UNSEEN = 1
EXIT_CODES = {"finished": 0, "stopped": 130, "interrupted": 130, "failed": 1}
POLL_SECONDS = 0.1
TAIL_BYTES = 1 << 16
PLAIN_LINE_SECONDS = 5.0
LONGEST_START = 60.0
"""Seconds that a detached start waits for its trainer's messages about a changed schedule."""


def reader_at_end(run: Run) -> EventReader:
    """A reader that skips everything so far: create it before starting a trainer."""
    reader = EventReader(run.events_path)
    if run.events_path.exists():
        reader.skip_to_tail(TAIL_BYTES)
        reader.poll()
    return reader


def follow(run: Run, reader: EventReader, *, pid: int | None = None) -> int:
    """Show the events of a run that `reader` hasn't read yet, until the run ends.

    With `pid`, this process has just started the trainer: Ctrl-C saves and ends the run, and the trainer's
    exit code is returned. Without it the run is somebody else's, and Ctrl-C only stops following. If the
    output can no longer be written, this says so and ends with EXIT_UNSEEN, and the run continues.
    """
    try:
        return _follow(run, reader, pid)
    except OSError as error:
        _say_unseen(run, error, ours=pid is not None)
        return EXIT_UNSEEN


def _say_unseen(run: Run, error: OSError, *, ours: bool) -> None:
    """Never leave a run without a display silently: say so on standard error and where `logs` shows it."""
    reason = error.strerror or str(error)
    words = (
        f"the display of {run.name} has ended ({reason}); its training continues: mamba-tui attach {run.name}"
    )
    leave_quietly()  # writing the rest at exit would fail again
    say_error(f"mamba-tui: {words}")
    if ours:
        with contextlib.suppress(OSError), open_to_append(run.log_path) as log:
            log.write(f"{words}\n".encode("utf-8", "replace"))


class _Console(Console):
    """Rich's own reaction to a reader that is gone is to end the program without a message."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _follow(run: Run, reader: EventReader, pid: int | None) -> int:
    console = _Console(highlight=False)
    wishes = _alert_settings()
    alerts = AlertWatch(run.name, run.path, wishes, lambda alert: _ring(console, alert, wishes))
    display = (LiveDisplay if console.is_terminal else PlainDisplay)(console, run.config())
    if pid is None:
        console.print(f"Following {visible(run.name)}; Ctrl-C leaves, training continues.", style="dim")
    else:
        console.print(f"Training {visible(run.name)}; Ctrl-C saves and ends.", style="dim")
    gone = False
    with _interrupts(display, run, pid) as left, display:
        while True:
            if pid is not None and not gone and not run.path.is_dir():
                gone = True
                display.say(
                    f"warning: the folder of {run.name} is gone; its trainer is still running", "yellow"
                )
            ended = not _alive(run, pid)
            for event in reader.poll():
                display.take(event)
                alerts.feed(event)
            display.tick()
            if ended or left:
                break
            time.sleep(POLL_SECONDS)
    if left and pid is None:
        return 0
    if display.latest.end is None and run.exists:
        alerts.alert("died", "its trainer ended without a message")
    return _conclude(console, run, display, pid)


def show_schedule(run: Run, reader: EventReader, pid: int) -> None:
    """Print a new trainer's messages about its schedule and text, once its model is known."""
    known, deadline = False, time.monotonic() + LONGEST_START
    while time.monotonic() < deadline:
        ended = trainer_exit_code(pid) is not None
        for event in reader.poll():
            known |= isinstance(event, RunEvent) and event.parameters > 0
            if isinstance(event, WarningEvent):
                print(visible(f"note: {event.message}"), flush=True)
            elif isinstance(event, StateEvent) and known and event.state != "preparing":
                return
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _alert_settings() -> AlertSettings:
    """The user's alert settings. A bad file must not stop the display, so it only causes a warning."""
    try:
        return load_settings()
    except UserError as error:
        say_note(f"no alerts: {error}")
        return AlertSettings()


def _ring(console: Console, alert: Alert, wishes: AlertSettings) -> None:
    """Ring or notify in a terminal. Here the user's command is only told if a trainer dies."""
    if console.is_terminal:
        console.file.write(terminal_sequence(alert, wishes))
        console.file.flush()
    if alert.kind == "died":
        run_command(alert, wishes)


@contextmanager
def _interrupts(display: Display, run: Run, pid: int | None) -> Iterator[list[int]]:
    """Make Ctrl-C and SIGTERM stop our own run (a second time: at once), or stop following another's.

    Yields a list that is no longer empty once following should end.
    """
    left: list[int] = []
    seen: list[int] = []

    def interrupted(number: int, _: object) -> None:
        seen.append(number)
        if pid is None:
            left.append(number)
        elif len(seen) == 1:
            display.say("saving, then ending; Ctrl-C again ends at once without saving")
            os.kill(pid, signal.SIGTERM)
        elif _alive(run, pid):
            os.kill(pid, signal.SIGTERM)

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield left
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _alive(run: Run, pid: int | None) -> bool:
    if pid is None:
        return is_alive(run)
    return trainer_exit_code(pid) is None


def _conclude(console: Console, run: Run, display: Display, pid: int | None) -> int:
    """Say how the run ended, and return its exit code."""
    end, error = display.latest.end, display.latest.error
    if pid is not None:
        code = trainer_exit_code(pid) or 0
    else:
        code = EXIT_CODES.get(end.reason, 1) if end else 1
    if error is not None:
        message, advice = error.message, error.advice
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        errors.print(
            f"mamba-tui: {visible(message)}" + (f" ({visible(advice)})" if advice else ""), markup=False
        )
    elif end is None:
        now = status(run)
        errors = Console(stderr=True, highlight=False, soft_wrap=True)
        if now.state == "gone":
            errors.print(f"mamba-tui: {visible(now.message)}", markup=False)
            return code or 1
        errors.print(f"mamba-tui: the trainer of {visible(run.name)} died; the end of its log:", markup=False)
        errors.print(visible(now.log_tail, lines=True), markup=False)
    elif end.reason == "finished":
        console.print(f"Done. Let it write: mamba-tui generate --run {visible(run.name)}", markup=False)
    else:
        saved = f"saved {visible(end.checkpoint)}; " if end.checkpoint else ""
        how = f"{saved}continue it: mamba-tui train --run {visible(run.name)} --resume"
        console.print(f"Ended at step {end.step:,}: {how}", markup=False)
    return code


class Display:
    """Turns events into lines. Subclasses show what changes: progress, loss, speed."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        training = config.training
        self.console = console
        self.tokens_per_step = (
            training.batch_size * config.model.block_size * training.gradient_accumulation_steps
        )
        self.latest = LatestEvents()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(visible(text, lines=True), style=style), soft_wrap=True)

    @property
    def max_iters(self) -> int:
        """The run's last step; 1 while it isn't known."""
        return self.latest.max_iters or 1

    def tick(self) -> None:
        """Called about ten times a second."""

    def take(self, event: Event) -> None:
        """Handle one event of the run."""
        self.latest.feed([event])
        match event:
            case RunEvent():
                self._started(event)
            case PlanEvent():
                for line in plan_event_lines(event):
                    self.say(line)
            case EvaluationEvent():
                words = self.latest.learning_words
                self.say(_evaluation(event) + (f"; {words}" if words else ""), "bold")
            case ScheduleEvent(phase="cool-down"):
                self.say(f"step {event.step:,}: cooling down until step {event.last_step:,}")
            case SampleEvent():
                self.say(f"sample at step {event.step:,}: {event.prompt}{event.text}", "italic")
            case CheckpointEvent():
                best = ", best so far" if event.best else ""
                self.say(f"saved {event.file} ({event.bytes / 1e6:.1f} MB{best})")
            case WarningEvent():
                self.say(f"warning: {event.message}", "yellow")

    def _started(self, event: RunEvent) -> None:
        if not event.parameters:
            return  # the trainer is running, but hasn't built its model yet
        origin = f", resumed from step {event.resumed_from:,}" if event.resumed_from is not None else ""
        self.say(
            f"{event.parameters:,} parameters, {event.vocab_size:,} tokens in the vocabulary, "
            f"{event.tokens_per_step:,} tokens per step, on {event.device}{origin}"
        )
        for key, (old, new) in event.changes.items():
            self.say(f"changed {key}: {old} -> {new}")

    def progress(self) -> str:
        """Step, loss, speed and time left in one line."""
        step = self.latest.last_step
        if step is None:
            return ""
        speed = step.tokens_per_second
        left = (self.max_iters - step.step) * self.tokens_per_step / speed if speed > 0 else math.inf
        return (
            f"step {step.step:,}/{self.max_iters:,}  loss {step.loss:.4f}  "
            f"{speed:,.0f} tokens/s  {duration(left)} left"
        )


def _evaluation(event: EvaluationEvent) -> str:
    return (
        f"step {event.step:,}: validation {event.validation_loss:.4f} nats/token, "
        f"{event.bits_per_byte:.3f} bits/byte (training {event.train_loss:.4f})"
    )


class PlainDisplay(Display):
    """For pipes and files: a line every few seconds."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        super().__init__(console, config)
        self._shown_at = -math.inf
        self._shown: object = None

    @property
    def max_iters(self) -> int:
        """The run's last step; 1 while it isn't known."""
        return self.latest.max_iters or 1

    def tick(self) -> None:
        """Print the latest progress, or a new state, if it is time."""
        now_doing, step = self.latest.state, self.latest.last_step
        state = (now_doing.state, now_doing.detail) if now_doing else ("", "")
        training = state[0] == "training"
        now = time.monotonic()
        news = step.step if training and step else state
        if news == self._shown or (training and now - self._shown_at < PLAIN_LINE_SECONDS):
            return
        self._shown, self._shown_at = news, now
        if training and step:
            self.say(self.progress())
        elif state[0] in ("preparing", "compiling", "paused", "stopping"):
            self.say(": ".join(part for part in state if part))


class LiveDisplay(Display):
    """For terminals: a bar and the latest figures, redrawn in place below the printed lines."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        super().__init__(console, config)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.tick()
        self._live.__exit__(None, None, None)
        if self.latest.last_step is not None:
            self.say(self.progress())

    @property
    def max_iters(self) -> int:
        """The run's last step; 1 while it isn't known."""
        return self.latest.max_iters or 1

    def tick(self) -> None:
        """Redraw."""
        words = "starting"
        share: float | None = None
        state, step = self.latest.state, self.latest.last_step
        if state is not None:
            words = ": ".join(part for part in (state.state, state.detail) if part)
            if state.state == "training":
                words = self.latest.learning_words or words
            share = state.progress
        if step is not None:
            share = step.step / self.max_iters
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        percent = f"{share:.0%}" if share is not None else ""
        moving = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None)
        bar.add_row(Text(visible(words), style="cyan"), moving, percent)
        self._live.update(Group(bar, Text(self.progress(), no_wrap=True)), refresh=True)
