"""Runs made of files, a generator without torch, and ways to drive and read the console in tests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from core.config.changes import replace
from core.config.schema import RunConfig
from core.runs import EventWriter, Run, RunLock, prepare_run
from core.runs.events import CommandEvent, EndEvent, Event, decode
from mamba_tui.app import LaunchOptions, MambaTUI

NOW = 1_800_000_000.0
FAKE_INSPECTOR = [sys.executable, str(Path(__file__).parent / "fake_inspector.py")]
FAKE_GENERATOR = [sys.executable, str(Path(__file__).parent / "fake_generator.py")]
SMALL, LARGE = (80, 24), (120, 40)
PATIENCE = 120.0


def configuration(**changes: object) -> RunConfig:
    return replace(RunConfig(), **{"max_iters": 1000, "threads": 1, **changes})


def run_event(step: int | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "run", "schema": 1, "run": "r", "pid": 1, "boot_id": "b", "started": NOW - 600,
        "device": "cpu", "parameters": 1_300_000, "vocab_size": 1024, "tokens_per_step": 512,
        "max_iters": 1000, "resumed_from": step, "versions": {}, "config": {}, "changes": {}, **changes,
    }  # fmt: skip


def step_event(step: int, loss: float | None = None, **changes: Any) -> dict[str, Any]:
    value = 2.0 + 6.0 * math.exp(-step / 200) + 0.1 * math.sin(step) if loss is None else loss
    return {
        "kind": "step", "step": step, "steps": 5, "loss": value, "loss_min": value - 0.2,
        "loss_max": value + 0.2, "learning_rate": 1e-3 * (1 - step / 2000), "gradient_norm": 0.5 + 10 / step,
        "tokens_per_second": 3000.0 + step % 50, "tokens": 512 * step, "data_wait": 0.01,
        "device_memory": None, "device_utilization": 0.9 + 0.05 * math.sin(step), "epoch": step / 300,
        **changes,
    }  # fmt: skip


def eval_event(step: int) -> dict[str, Any]:
    value = 2.1 + 6.0 * math.exp(-step / 200)
    return {"kind": "eval", "step": step, "train_loss": value - 0.05, "validation_loss": value,
            "bits_per_byte": value * 0.6, "train_bits_per_byte": value * 0.58, "seconds": 1.0}  # fmt: skip


def typed(events: Iterable[dict[str, Any]]) -> list[Event]:
    """Events as a reader gives them."""
    decoded = [decode(dict(event)) for event in events]
    assert None not in decoded
    return [event for event in decoded if event is not None]


def write_events(run: Run, events: list[dict[str, Any]], start: float = NOW - 600) -> None:
    with open(run.events_path, "a", encoding="utf-8") as file:
        for index, event in enumerate(events):
            plain = {
                key: ("NaN" if isinstance(value, float) and math.isnan(value) else value)
                for key, value in event.items()
            }
            file.write(json.dumps({"time": start + index, **plain}) + "\n")


def add_checkpoint(run: Run, step: int, *, validation: float = 2.5, content: bytes = b"weights") -> Path:
    path = run.path / f"checkpoint_step_{step}.pt"
    path.write_bytes(content)
    manifest = {
        "format": 1, "step": step, "file": path.name, "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "train_loss": validation - 0.1,
        "validation_loss": validation, "bits_per_byte": validation * 0.6, "time": NOW - 1000 + step,
        "best": False,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return path


def make_run(
    root: Path, name: str = "run-001", *, steps: int = 400, sample: str = "Once upon a time", **changes: Any
) -> Run:
    """A run as its trainer would have left it in the middle of training."""
    run = prepare_run(root, name, configuration(**changes))
    run.tokenizer_path.write_text(json.dumps({"kind": "auto", "vocab_size": 1024}))
    events: list[dict[str, Any]] = [run_event(run=name, config={})]
    events.append({"kind": "state", "state": "training", "detail": "", "step": 0, "progress": None})
    for step in range(5, steps + 1, 5):
        events.append(step_event(step))
        if step % 100 == 0:
            events.append(eval_event(step))
            events.append({"kind": "sample", "step": step, "prompt": "", "text": f"{sample} {step}"})
            validation = 2.1 + 6.0 * math.exp(-step / 200)
            path = add_checkpoint(run, step, validation=validation)
            events.append({"kind": "checkpoint", "step": step, "file": path.name, "bytes": 7,
                           "train_loss": validation - 0.1, "validation_loss": validation,
                           "bits_per_byte": validation * 0.6, "best": True, "seconds": 0.1})  # fmt: skip
    write_events(run, events)
    return run


def end_run(run: Run, reason: str = "stopped", step: int = 400) -> None:
    write_events(run, [{"kind": "end", "reason": reason, "step": step, "message": f"{reason} at step {step}",
                        "checkpoint": None}], start=NOW)  # fmt: skip


class FakeTrainer:
    """Holds a run's lock and answers commands like a trainer, without training."""

    def __init__(self, run: Run) -> None:
        from core.runs import CommandInbox

        self.run = run
        self.commands: list[tuple[str, dict[str, Any]]] = []
        run.control_path.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(run.lock_path)
        self._inbox = CommandInbox(run.control_path)
        self.alive = False

    def __enter__(self) -> FakeTrainer:
        self._lock.__enter__()
        self.alive = True
        self.writer = EventWriter(self.run.events_path)
        return self

    def __exit__(self, *details: object) -> None:
        if self.alive:
            self.writer.close()
            self._lock.__exit__(None, None, None)
            self.alive = False

    def answer(self) -> None:
        """Take the commands that wait."""
        if not self.alive:
            return
        for command in self._inbox.poll():
            self.commands.append((command.name, command.arguments))
            message = f"{command.name} done"
            self.writer.write(
                CommandEvent(id=command.id, command=command.name, accepted=True, message=message)
            )
            if command.name in ("pause", "resume"):
                self.writer.state("paused" if command.name == "pause" else "training", 400)
            elif command.name == "stop":
                self.writer.write(EndEvent(reason="stopped", step=400, message="stopped at step 400"))
                self.__exit__()
                return

    async def serve(self) -> None:
        """Answer until canceled."""
        while True:
            self.answer()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def serving(trainer: FakeTrainer) -> AsyncIterator[FakeTrainer]:
    with trainer:
        task = asyncio.create_task(trainer.serve())
        try:
            yield trainer
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def console(
    root: Path, size: tuple[int, int] = SMALL, **options: Any
) -> AsyncIterator[tuple[MambaTUI, Pilot[int]]]:
    """The application, headless, with a generator that doesn't need torch."""
    options.setdefault("config", configuration(dataset_dir=str(root / "texts")))
    state_path = options.pop("state_path", None)
    app = MambaTUI(LaunchOptions(checkpoints=root, **options), state_path=state_path)
    app.generator_command = FAKE_GENERATOR
    app.inspector_command = FAKE_INSPECTOR
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause()
        yield app, pilot


async def until(pilot: Pilot[int], condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for a condition, never for a fixed time; look ever less often, as looking takes time."""
    if condition():
        return
    loop = asyncio.get_running_loop()
    deadline, delay = loop.time() + seconds, 0.01
    await pilot.pause()
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"did not come true within {seconds} s; the screen is:\n{screen(pilot.app)}")
        await asyncio.sleep(delay)
        delay = min(0.1, delay * 1.25)
    await pilot.pause()


async def until_shown(pilot: Pilot[int], text: str, seconds: float = PATIENCE) -> None:
    """Wait until a text is on screen."""
    await until(pilot, lambda: text in screen(pilot.app), seconds)


def rows(app: Any) -> list[str]:
    """The rows of the screen, as text."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def screen(app: Any) -> str:
    """The screen's text; then the status line's messages, one per line."""
    notices = [f"notice: {text}" for text, _ in app.status_line.said]
    return "\n".join([*rows(app), *notices])


def texts_folder(root: Path) -> Path:
    """A dataset folder with a text, so that Start asks nothing."""
    folder = root / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "book.txt").write_text("It was a dark and stormy night. " * 400)
    return folder
