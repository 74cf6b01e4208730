"""Chooses the kind of training step for a run."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.config.schema import RunConfig
from core.data.loader import SequentialLoader
from core.model import GPT
from core.training.optimizer import AdamW
from core.training.ranks import ALONE, Ranks
from core.training.step import EagerStep, TrainingStep
from core.training.teacher import Teacher


def make_step(
    model: GPT,
    forward: Callable[..., object],
    optimizer: AdamW,
    loader: SequentialLoader,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    teacher: Teacher | None = None,
) -> TrainingStep:
    """The fastest step that this device and configuration allow."""
    if device.type == "cuda" and config.hardware.capture:
        from core.training.cuda_graph_step import CUDAGraphStep

        return CUDAGraphStep(model, forward, optimizer, loader, config, device, ranks, teacher)
    return EagerStep(model, forward, optimizer, loader, config, device, ranks, teacher)
