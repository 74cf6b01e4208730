"""One arm of a recipe experiment: train it, read the validation text with its model, record the results."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipe_experiments import EXPERIMENTS
from core.checkpoint import judged_weights, load
from core.config.schema import RunConfig, build
from core.data.corpus import prepare, read_split
from core.data.loader import EvaluationLoader
from core.data.tokenizer.tokenizer import Tokenizer
from core.model import GPT
from core.runs import EventReader, Run, prepare_run
from core.runs.events import EvaluationEvent, RunEvent, StepEvent
from core.training.build import open_device
from core.training.evaluation import split_loss, token_lengths

LONG_TEXT = 400_000
"""Tokens from which a text is read in four streams: one would take longer than training."""


def main(name: str, arm: str, seed: int, data: Path, out: Path, device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(name, arm, seed, data, out, Path(folder), device)


def train(name: str, arm: str, seed: int, data: Path, out: Path, folder: Path, device: str) -> Run:
    """Train an arm to its end and write down its results.

    An arm with the key `teacher` trains the arm of that name first, whose results count as well.
    """
    experiment = EXPERIMENTS[name]
    shelf = data / experiment.dataset
    changes, own_seed = dict(experiment.arms[arm]), seed
    if teacher := changes.pop("teacher", ""):
        run = train(name, teacher, seed, data, out, folder, device)
        changes["teacher"] = str(run.checkpoints()[-1].path)
        own_seed = (
            run.config().training.seed + 1000
        )  # a student that began as its teacher did is no other view
    given = {"seed": own_seed, "device": device, "dataset_dir": str(shelf)}
    run = prepare_run(folder, arm, build({**experiment.base, **changes, **given}), mode="fresh")
    if experiment.validation_files:
        sides = {path.name: "validation" if path.name in experiment.validation_files else "train"
                 for path in shelf.iterdir()}  # fmt: skip
        run.split_path.write_text(json.dumps({file: ["", side] for file, side in sides.items()}))
    began = time.time()
    command = [sys.executable, "-P", "-m", "core.training.process", str(run.path)]
    subprocess.run(command, check=True, env=os.environ)
    row = {"experiment": name, "arm": arm, "seed": seed, "seconds": time.time() - began}
    row |= history(run) | whole_validation(run, run.config())
    with open(out / "results.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")
    return run


def history(run: Run) -> dict[str, Any]:
    """What the run's events say of how it went."""
    events = list(EventReader(run.events_path).poll())
    evaluations = [event for event in events if isinstance(event, EvaluationEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    starts = [event for event in events if isinstance(event, RunEvent)]
    best = min(evaluations, key=lambda event: event.validation_loss)
    return {
        "last": evaluations[-1].validation_loss, "best": best.validation_loss, "best_step": best.step,
        "train": evaluations[-1].train_loss, "parameters": starts[-1].parameters,
        "passes": steps[-1].epoch, "steps": steps[-1].step,
        "curve": [(one.step, one.train_loss, one.validation_loss) for one in evaluations],
    }  # fmt: skip


def whole_validation(run: Run, config: RunConfig) -> dict[str, Any]:
    """The newest checkpoint's model over the whole validation text, streamed and in windows."""
    payload = load(run.checkpoints()[-1].path)
    tokenizer = Tokenizer.load(run.tokenizer_path)
    split = read_split(run.split_path)
    stream = prepare(config.data, config.training.seed, tokenizer=tokenizer, split=split).validation
    device = open_device(config)
    model = GPT(config.model, tokenizer.vocab_size)
    model.load_state_dict(payload[judged_weights(payload)])
    model.to(device).eval()
    block, lengths = config.model.block_size, token_lengths(tokenizer.tokens)
    one = EvaluationLoader(stream, tokenizer.eot, 1 if len(stream) < LONG_TEXT else 4, block)
    apart = EvaluationLoader(stream, tokenizer.eot, 64, block, carried=False)
    streamed, windows = (split_loss(model, loader, lengths, config, device) for loader in (one, apart))
    return {
        "streamed": streamed.loss, "standard_error": streamed.standard_error, "windows": windows.loss,
        "bits_per_byte": streamed.bits_per_byte, "windows_bits_per_byte": windows.bits_per_byte,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    name, arm, seed, data, out, device = sys.argv[1:]
    main(name, arm, int(seed), Path(data), Path(out), device)
