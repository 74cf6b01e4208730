"""How an operation becomes an operator that torch.compile takes as it is, without looking inside.

`torch.library.custom_op` would do the same, but its first call imports torch._dynamo, which costs seconds of
the time to the first step.
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
        function: what it does; its results are new tensors.
        fake: gives empty results of the right shape, type and layout.
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
    """The same bits as integers: a result that has no gradient, which would have to be filled with zeros."""
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)
