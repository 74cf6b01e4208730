"""A feed-forward layer: up, squared ReLU, down.

Squared ReLU learns as well as GELU and costs a fraction of its time on CPU (arXiv 2109.08668).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import ALIGNED, product_type, takes_triton


def feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """max(x up^T, 0)^2 down^T.

    Args:
        x: (..., C).
        up: (J, C).
        down: (C', J).

    Returns:
        (..., C').
    """
    if _takes_kernel(x, down.shape[0]):
        from core.ops.triton.feed_forward import feed_forward_triton

        return feed_forward_triton(x.to(torch.bfloat16), up, down)
    return F.linear(squared_relu(F.linear(x, up)), down)


def _takes_kernel(x: Tensor, next_width: int) -> bool:
    """Whether products are bfloat16 and the GPU has a tensor copy engine, which needs aligned rows."""
    if not (takes_triton(x, "feed_forward") and x.shape[-1] % ALIGNED == 0 and next_width % ALIGNED == 0):
        return False
    return product_type(x) == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major >= 9


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, in as few passes over memory as torch allows on CPU."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.relu(x).square()
    squared: Tensor = _SquaredReLU.apply(x)
    return squared


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
        return torch.addcmul(zero, grad, positive, value=2)
