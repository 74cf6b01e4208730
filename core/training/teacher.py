"""A trained model whose predictions another model learns from, in addition to the text itself.

A teacher reads the same batches as its student, with its own state. It passes on features and head instead of
probabilities, of which a batch has tokens x vocabulary (`core/ops/distillation_loss.py`).

A student uses the tokenizer and the split of its teacher: the student's validation text must not have been
the teacher's training text. The run stores a copy of the teacher's weights, so that it doesn't depend on the
teacher's run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.checkpoint import Payload, check_fits, config_of, judged_weights, load, load_weights
from core.config.schema import RunConfig
from core.errors import UserError
from core.model import GPT, ModelState
from core.ops.distillation_loss import Lesson
from core.runs import Run
from core.runs.checkpoints import choose_checkpoint
from core.system.files import copy, replacing
from core.training.arithmetic import autocast

COPIED = ("format", "step", "config", "vocab_size", "tokenizer")


class Teacher:
    """Reads the same batches as its student.

    Attributes:
        state: its memory of each batch row; the tensors keep their addresses.
    """

    def __init__(self, model: GPT, rows: int, config: RunConfig, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self._config, self._device = config, device
        with autocast(config, device):
            half = torch.is_autocast_enabled(device.type)
        self.state = model.initial_state(rows, device, torch.bfloat16 if half else None)

    @torch.no_grad()
    def lesson(self, tokens: Tensor, doc_start: Tensor) -> Lesson:
        """Its predictions for a batch (B, T). Its state advances."""
        with autocast(self._config, self._device):
            features, state = self.model.features(tokens, self.state, doc_start)
        self.load_state(state)
        return Lesson(features, self.model.head.weight, self._config.training.teacher_share)

    @torch.no_grad()
    def load_state(self, state: ModelState) -> None:
        """Continue from this state."""
        before = self.state.tensors()
        for name, tensor in state.tensors().items():
            before[name].copy_(tensor)


def read_teacher(run: Run, config: RunConfig) -> Payload | None:
    """The teacher that the configuration names; None without one. The first call copies it into the run.

    Raises UserError if it can't be used.
    """
    if not config.training.teacher:
        return None
    if run.teacher_path.exists():
        return load(run.teacher_path, unverified=True)
    original = teacher_checkpoint(config.training.teacher)
    payload = load(original)
    taken = {key: payload[key] for key in COPIED} | {"model": payload[judged_weights(payload)]}
    try:
        if (split := original.parent / run.split_path.name).exists():
            copy(split, run.split_path)
        with replacing(run.teacher_path) as file:
            torch.save(taken, file)
    except OSError as error:
        raise UserError(f"{original} cannot be copied to {run.path}: {error.strerror}") from None
    return taken


def teacher_checkpoint(name: str) -> Path:
    """The checkpoint that `teacher` names: a file, or the best one of a run's folder. Raises UserError."""
    path = Path(name)
    if not path.is_dir():
        return path
    best = choose_checkpoint(path)
    if best is None:
        raise UserError(f"teacher is {path}, which has no checkpoint; accepted: a run that has saved one")
    return best.path


def build_teacher(payload: Payload, rows: int, config: RunConfig, device: torch.device) -> Teacher:
    """A payload's teacher for `batch_size` batch rows. Raises UserError if its model isn't valid."""
    path = Path(config.training.teacher)
    model = config_of(payload, path).model
    check_fits(model, payload["vocab_size"], payload, path)
    teacher = GPT(model, payload["vocab_size"])
    load_weights(teacher, payload, path)
    return Teacher(teacher, rows, config, device)
