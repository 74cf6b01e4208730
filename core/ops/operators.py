"""How a Triton path becomes an operator that torch.compile calls without looking inside, and small helpers.

`torch.library.custom_op` would do the same, but its first call imports torch._dynamo, which adds
seconds to the time to the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "mamba_tui"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(
    name: str,
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    keep: Callable[..., None] | None = None,
    gradients: Callable[..., tuple[Any, ...]] | None = None,
) -> Callable[..., Any]:
    """Register an operator and return it.

    Args:
        name: of the operator.
        schema: "(arguments) -> (results)" in torch's notation.
        function: its implementation; the results are new tensors.
        fake: returns empty results of the right shape, type and layout.
        keep: keep(ctx, inputs, output) stores what the backward needs.
        gradients: gradients(ctx, *grads) of the inputs.
    """
    _library.define(name + schema)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if gradients is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=keep, lib=_library)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def hidden(tensor: Tensor) -> Tensor:
    """The same bits as integers. Integer results have no gradient, so autograd fills none with zeros."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous; other strides may be anything."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def reset_bytes(reset: Tensor | None) -> Tensor | None:
    """Resets (B, L) as the kernels read them, one byte per step."""
    return None if reset is None else reset.contiguous().view(torch.uint8)


def empty_gradient(tensor: Tensor | None, device: torch.device) -> Tensor:
    """An uninitialized contiguous gradient of a tensor; an empty one for None."""
    if tensor is None:
        return torch.empty(0, dtype=torch.float32, device=device)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
