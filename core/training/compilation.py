"""When a run uses torch.compile, and where compiled kernels are kept."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from core.config.schema import RunConfig
from core.model import GPT, ModelState, Output
from core.ops.dispatch import HAS_TRITON
from core.system.files import make_own_folder
from core.system.folders import cache_root

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
WORTH_COMPILING = 100_000
"""With `compile = "auto"`, runs are compiled from this many layers times steps on.

On an H100, compiling costs 50 s the first time and saves half a millisecond per layer and step.
"""


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile can save more time than it takes. On a CPU it takes minutes and saves little."""
    return device.type == "cuda"


def compiles(config: RunConfig, device: torch.device) -> bool:
    """Whether this run is compiled: the same at every start of a run, so that resuming changes nothing."""
    hardware, training = config.hardware, config.training
    if hardware.compile == "false" or not can_compile(device):
        return False
    if hardware.compile == "true":
        return True
    passes = training.max_iters * training.gradient_accumulation_steps
    return HAS_TRITON and hardware.capture and passes * config.model.n_layer >= WORTH_COMPILING


def compiled(model: GPT) -> Callable[..., object]:
    """The model under torch.compile, which starts working at the first call.

    The returned state has no gradient. The compiler has to know that, or the backward would begin with zeros
    as large as the whole state.
    """
    keep_what_is_compiled()

    def forward(*inputs: Tensor | ModelState | None) -> Output:
        logits, loss, state = model(*inputs)
        return Output(logits, loss, state.detach())

    compiled_forward: Callable[..., object] = torch.compile(forward)
    return compiled_forward


def keep_what_is_compiled() -> None:
    """Have torch keep its compiled kernels in the user's cache, not in a folder that a restart empties."""
    if CACHE_VARIABLE in os.environ:
        return
    folder = cache_root() / "compiled"
    try:
        make_own_folder(folder)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ[CACHE_VARIABLE] = str(folder)
