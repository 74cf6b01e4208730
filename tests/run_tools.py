"""Helpers for tests of runs: a small text, a tiny model, a trainer in this process, and waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from core.config.schema import RunConfig, build
from core.runs import EventWriter, Follower, Run, RunHistory, RunLock, is_alive, prepare_run
from core.runs.events import RunEvent, StepEvent, WarningEvent
from core.training.requests import EVENT_SECONDS_VARIABLE, Requests

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0
EVERY_STEP = {EVENT_SECONDS_VARIABLE: "0"}


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> object:
    """Wait until `condition` is true. Returns its value; fails with a message if it never is.

    It looks ever less often, because looking takes processor time from what is waited for.
    """
    deadline, delay = time.monotonic() + seconds, 0.005
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(delay)
        delay = min(0.1, delay * 1.1)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


class Holds:
    """Holds a trainer at places, in order; see tests/held/sitecustomize.py."""

    def __init__(self, folder: Path, *places: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.environment = {
            **EVERY_STEP,
            "HOLD_AT": ",".join(places),
            "HOLD_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "held"), str(ROOT)]),
        }

    def wait(self, run: Run, number: int = 0) -> None:
        """Wait until the trainer is held at its nth place."""
        held = self.folder / f"held-{number}"
        wait_for(lambda: held.exists() or ended(run), f"the trainer to be held for the {number + 1}. time")
        assert held.exists(), f"the run ended instead: {run.log_path.read_text()}"

    def let_go(self, number: int = 0) -> None:
        """Let the trainer continue from its nth place."""
        (self.folder / f"go-{number}").touch()


def write_text(folder: Path, files: int = 3, words: int = 1500) -> Path:
    """A dataset of a few files with a text that can be learned a little."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        text = " ".join(f"word{(i * i + number) % 17} and" for i in range(words))
        (folder / f"book{number}.txt").write_text(text)
    return folder


def tiny(dataset: Path, **changes: object) -> RunConfig:
    """A model that takes a few milliseconds per training step on a CPU."""
    values: dict[str, object] = {
        "n_embd": [16, 12],
        "n_head": 2,
        "attention_type": ["mamba", "standard"],
        "block_size": 16,
        "batch_size": 3,
        "tokenizer": "byte",
        "carry_chunks": 3,
        "dropout": 0.1,
        "dataset_dir": str(dataset),
        "max_iters": 24,
        "eval_interval": 8,
        "eval_iters": 2,
        "warmup_iters": 4,
        "learning_rate": 3e-3,
        "sample_tokens": 3,
        "device": "cpu",
        "threads": 1,
    }
    return build(values | changes)


def new_run(root: Path, dataset: Path, name: str = "run", **changes: object) -> Run:
    return prepare_run(root, name, tiny(dataset, **changes), mode="auto")


class StopAt(Requests):
    """Asks for a stop once a step is reached, as a signal would."""

    step = 1 << 60

    def listen(self, step: int) -> None:
        super().listen(step)
        if step >= self.step:
            self.stopping = True


def train_here(run: Run, stop_at: int | None = None) -> int:
    """Train in this process, without signals; the exit code."""
    from core.training.process import TrainerProcess

    before = os.environ.get(EVENT_SECONDS_VARIABLE)
    os.environ[EVENT_SECONDS_VARIABLE] = "0"
    try:
        with RunLock(run.lock_path):
            process = TrainerProcess(run, run.config())
            process.requests = StopAt(run, process.writer)
            if stop_at is not None:
                process.requests.step = stop_at
            process.requests.catch_signals = lambda at_once: None  # type: ignore[method-assign]
            return process.run()
    finally:
        if before is None:
            del os.environ[EVENT_SECONDS_VARIABLE]
        else:
            os.environ[EVENT_SECONDS_VARIABLE] = before


def history(run: Run) -> Follower:
    """The whole history of a run, folded."""
    follower = Follower(run.events_path)
    follower.poll()
    return follower


def curve(run: Run, *, aggregated: bool = False) -> list[tuple[int, float]]:
    """(step, loss) of every step, exactly. With `aggregated`, an event may stand for several steps."""
    steps = history(run).history.steps
    every = steps.stride == 1 and list(steps.column("step")) == list(range(1, steps.count + 1))
    assert aggregated or every, "the curve was recorded with aggregated steps"
    return [(int(step), loss) for step, loss in zip(steps.column("step"), steps.column("loss"))]


def evaluations(run: Run) -> list[tuple[int, float, float]]:
    """(step, training loss, validation loss) of every evaluation, exactly."""
    column = history(run).history.evaluations.column
    return [
        (int(step), train, validation)
        for step, train, validation in zip(column("step"), column("train_loss"), column("validation_loss"))
    ]


def warnings(history: RunHistory) -> list[str]:
    """What a trainer warned of."""
    return [note.message for note in history.notes if isinstance(note, WarningEvent)]


def starts(history: RunHistory) -> list[RunEvent]:
    """The trainers that came to build their model."""
    return [note for note in history.notes if isinstance(note, RunEvent)]


def ended(run: Run) -> bool:
    return not is_alive(run)


def run_event(**changes: object) -> RunEvent:
    """The event of a trainer that starts."""
    fields: dict[str, object] = {
        "run": "run",
        "pid": 1,
        "boot_id": "boot",
        "started": 1.0,
        "device": "cpu",
        "parameters": 10,
        "vocab_size": 257,
        "tokens_per_step": 48,
        "max_iters": 100,
        "resumed_from": None,
        "versions": {},
        "config": {},
        "changes": {},
    }
    return RunEvent(**fields | changes)  # type: ignore[arg-type]


def step_fields(step: int, loss: float = 1.0, **changes: object) -> dict[str, object]:
    """The fields of a `step` event."""
    fields: dict[str, object] = {
        "step": step,
        "steps": 1,
        "loss": loss,
        "loss_min": loss,
        "loss_max": loss,
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "tokens_per_second": 1000.0,
        "tokens": 48 * step,
        "data_wait": 0.0,
        "device_memory": None,
        "epoch": 0.1,
    }
    return fields | changes


def step_event(step: int, loss: float = 1.0, **changes: object) -> StepEvent:
    """The event of one step."""
    return StepEvent(**step_fields(step, loss, **changes))  # type: ignore[arg-type]


def write_steps(writer: EventWriter, first: int, last: int, loss: float = 1.0) -> None:
    for step in range(first, last + 1):
        writer.write(step_event(step, loss))
