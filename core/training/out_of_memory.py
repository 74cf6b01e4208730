"""The message after memory has run out."""

from __future__ import annotations

import torch

from core.config.schema import RunConfig


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )


def memory_advice(config: RunConfig, vocab_size: int) -> tuple[str, str]:
    """What happened, and which settings to lower to what, after memory ran out."""
    from core.config.estimates import lower_memory_advice, training_memory
    from core.system.hardware import describe, resolve_device

    device = resolve_device(config.hardware.device)
    cuda = device.startswith("cuda")
    hardware = describe(device)
    available = hardware.memory if cuda else hardware.memory_free
    needed = training_memory(config, vocab_size, cuda=cuda)
    has = f" and {device} has {available / 2**30:.1f} GiB" if available else ""
    message = f"memory ran out on {device}: this configuration needs about {needed / 2**30:.1f} GiB{has}"
    # It didn't fit, whatever the estimate says, so aim below both.
    limit = int(min(available or needed, needed) * 0.8)
    return message, lower_memory_advice(config, vocab_size, limit, cuda=cuda)
