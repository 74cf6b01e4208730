"""How parameters learn: which of them decay, AdamW over them, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from core.config import TrainingConfig

# Mamba's own parameters say how fast a channel forgets: decay would pull them to a meaning of its own.
WITHOUT_DECAY = ("A_log", "D", "dt_bias")


def learning_rate(step: int, training: TrainingConfig) -> float:
    """The rate of optimiser step `step` (the first is 1): linear warm-up, then a cosine to the minimum.

    A function of the step and the configuration alone, so that resuming needs no other memory.
    """
    if step < training.warmup_iters:
        return training.learning_rate * step / training.warmup_iters
    span = max(1, training.max_iters - training.warmup_iters)
    share = min(1.0, (step - training.warmup_iters) / span)
    high, low = training.learning_rate, training.min_learning_rate
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * share))


def decays(name: str, parameter: nn.Parameter, embeddings: set[int]) -> bool:
    """Whether weight decay applies: to matrices, but not to embeddings (nor a head tied to one)."""
    plain_name = name.rpartition(".")[2]
    return parameter.ndim >= 2 and plain_name not in WITHOUT_DECAY and id(parameter) not in embeddings


def parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, object]]:
    """The parameters in two groups, with and without decay, in the model's own order."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if decays(name, parameter, embeddings)]
    others = [parameter for name, parameter in named if not decays(name, parameter, embeddings)]
    return [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """Fused AdamW: one pass over all parameters, and able to skip a step by `found_inf` on the device."""
    return torch.optim.AdamW(
        parameter_groups(model, training),
        lr=learning_rate(1, training),
        betas=(training.beta1, training.beta2),
        fused=True,
    )


def apply_settings(optimizer: torch.optim.Optimizer, training: TrainingConfig) -> None:
    """Let changed settings count after a checkpoint's optimiser state, which holds the old ones."""
    for group, decay in zip(optimizer.param_groups, (training.weight_decay, 0.0), strict=True):
        group["weight_decay"] = decay
        group["betas"] = (training.beta1, training.beta2)
