"""Checkpoints in the fuzzer: makes a valid one, and uses one as a command and a trainer would."""

from __future__ import annotations

import functools
import io
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.fuzz_cases import MODEL
from core.checkpoint import RESUMABLE, check_keys, load, load_model
from core.config.sampling import SamplingSettings
from core.config.schema import RunConfig, build
from core.generation.generation import generate_text
from core.runs import CheckpointInfo, prepare_run
from core.training.build import Parts, build_parts, payload_of, restore


def right_checkpoint(config: RunConfig, root: Path) -> bytes:
    """A checkpoint as training writes it after two steps."""
    torch.set_num_threads(1)
    parts = _parts(config, root)
    for step in (1, 2):
        parts.training_step.run(step)
    buffer = io.BytesIO()
    torch.save(payload_of(parts, parts.config, 2, {"train_loss": 1.0}, 96, 0), buffer)
    return buffer.getvalue()


def use(path: Path) -> None:
    """Let it write a few words, then resume training from it. Raises UserError."""
    model, tokenizer, _ = load_model(path)
    generate_text(model, tokenizer, "The", SamplingSettings(seed=1, max_new_tokens=2))
    payload = load(path, unverified=True)
    check_keys(payload, RESUMABLE, path)
    restore(_own_parts(), payload, CheckpointInfo(2, path, 0, "", None, None, None, 0.0, False))


@functools.cache
def _own_parts() -> Parts:
    root = Path(tempfile.mkdtemp(prefix="runs-", dir=Path(os.environ["XDG_STATE_HOME"]).parent))
    texts = root / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("The old man walked home and the rain fell.\n" * 50)
    return _parts(build(MODEL | {"dataset_dir": str(texts)}), root / "runs")


def _parts(config: RunConfig, root: Path) -> Parts:
    return build_parts(prepare_run(root, "r", config), config, None, lambda words, share: None)
