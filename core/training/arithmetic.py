"""The arithmetic of matrix products in training."""

from __future__ import annotations

import contextlib

import torch

from core.config.schema import RunConfig


def autocast(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The arithmetic that `dtype` asks for on this device."""
    wanted = config.hardware.dtype
    half = wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda")
    if not half:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, torch.bfloat16)
    return context
