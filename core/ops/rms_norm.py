"""Root mean square norms in as few passes over memory as plain torch allows.

On CPU, torch computes them as chains of small operations, forward and backward. If types are mixed or the
device is no CPU they are left to torch, whose compiler makes one kernel of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; x (..., C), weight (C,)."""
    if not _worth_it(x, weight):
        return F.rms_norm(x, weight.shape, weight, eps)
    if not torch.is_grad_enabled():
        return _normed(x, weight, eps)[0]
    normed: Tensor = _RMSNorm.apply(x, weight, eps)
    return normed


def _worth_it(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype.itemsize >= 4


def norm_rate(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalized x (..., C), and the factor (..., 1)."""
    rate = norm_rate(x, eps)
    return (x * rate).mul_(weight), rate


def _normed_backward(grad: Tensor, x: Tensor, weight: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    product = (grad * x).flatten(0, -2)
    along = (product @ weight).view_as(rate)
    grad_x = (grad * weight).mul_(rate)
    grad_x.addcmul_(x, along.mul_(rate.pow(3)), value=-1 / x.shape[-1])
    return grad_x, rate.flatten() @ product


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, rate = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, rate)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_normed_backward(grad, *ctx.saved_tensors), None
