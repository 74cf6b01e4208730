"""Runs of the real trainer for benchmarks that need a model; a run that has ended is not trained again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.config.files import preset
from core.config.schema import build, flat
from core.runs import EventReader, Run, prepare_run
from core.runs.checkpoints import choose_checkpoint
from core.runs.events import EvaluationEvent, RunEvent, StepEvent

QUIET: dict[str, Any] = {
    "sample_tokens": 0, "compile": "false", "keep_last": 1, "keep_best": 1, "patience": 0, "auto": "",
}  # fmt: skip
DONE = "benchmark.json"


def trained(
    folder: Path, name: str, data: Path, *, cuda: bool, **settings: Any
) -> tuple[Path, dict[str, Any]]:
    """The best checkpoint of a run of the `book` preset with these settings, and how it went.

    A relative `time_budget` is in minutes. The text is every file of the folder `data`.
    """
    run = Run(folder / name)
    facts = run.path / DONE
    if not facts.is_file():
        config = build(flat(preset("book", cuda=cuda)) | QUIET | {"dataset_dir": str(data)} | settings)
        prepare_run(folder, name, config, mode="fresh")
        began = time.monotonic()
        command = [sys.executable, "-P", "-m", "core.training.process", str(run.path)]
        subprocess.run(command, check=True, env=os.environ, stdout=subprocess.DEVNULL)
        facts.write_text(json.dumps({"seconds": time.monotonic() - began, **history(run)}))
    best = choose_checkpoint(run.path, "best")
    assert best is not None, f"{run.path} has no checkpoint"
    return best.path, json.loads(facts.read_text())


def history(run: Run) -> dict[str, Any]:
    """What a run's events say of how it went."""
    events = list(EventReader(run.events_path).poll())
    evaluations = [event for event in events if isinstance(event, EvaluationEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    parameters = [event.parameters for event in events if isinstance(event, RunEvent)]
    best = min(evaluations, key=lambda event: event.validation_loss)
    return {
        "parameters": parameters[-1], "steps": steps[-1].step, "bits_per_byte": best.bits_per_byte,
        "best_step": best.step, "passes": steps[-1].epoch,
    }  # fmt: skip
