"""The short causal convolution of a Mamba layer, depthwise, followed by SiLU.

Its last K - 1 inputs are carried as a tail, and a tap never reaches across a reset.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import takes_triton

MOST_TRITON_TAPS = 8
"""The kernels are unrolled over taps; with more of them compiling takes a minute."""


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tail: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """silu(sum_k weight[:, K - 1 - k] x_{t-k} + bias), each channel by itself.

    Args:
        x: input, (B, L, D).
        weight: taps, oldest first, (D, K).
        bias: (D,).
        tail: the K - 1 inputs before x, (B, K - 1, D); zeros if None.
        reset: (B, L), true where nothing earlier may be seen.

    Returns:
        the activated convolution (B, L, D) and the new tail (B, K - 1, D), zero before its newest reset.
    """
    if takes_triton(x) and weight.shape[1] <= MOST_TRITON_TAPS:
        from core.ops.causal_conv_triton import causal_conv_triton

        return causal_conv_triton(x, weight, bias, tail=tail, reset=reset)
    batch, length, channels = x.shape
    past = weight.shape[1] - 1
    if tail is None:
        tail = x.new_zeros(batch, past, channels)
    padded = torch.cat((tail.to(x.dtype), x), 1)
    masks = None if reset is None else _tap_masks(reset, past).to(x.dtype)
    new_tail = padded[:, length:]
    if reset is not None:
        # A tail entry survives if no reset lies after it.
        newest = torch.cummax(_pad_front(reset, past).flip(1).int(), 1).values.flip(1)
        after = F.pad(newest, (0, 1))[:, length + 1 :]
        new_tail = new_tail * (after == 0).unsqueeze(2)
    if not torch.is_grad_enabled():
        return F.silu(_convolve(padded, weight.to(x.dtype), bias, masks)), new_tail
    return _CausalConv.apply(padded, weight, bias, masks), new_tail


def _pad_front(reset: Tensor, past: int) -> Tensor:
    return F.pad(reset, (past, 0))


def _tap_masks(reset: Tensor, past: int) -> Tensor:
    """(past, B, L, 1): entry d - 1 is true where the tap d steps back meets no reset on its way."""
    padded = _pad_front(reset, past)
    length = reset.shape[1]
    blocked = torch.zeros_like(reset)
    masks = []
    for distance in range(1, past + 1):
        blocked = blocked | padded[:, past - distance + 1 : past - distance + 1 + length]
        masks.append(~blocked)
    return torch.stack(masks).unsqueeze(3)


def _taps(padded: Tensor, taps: int) -> list[Tensor]:
    """The inputs at distance 0, 1, ..., each (B, L, D)."""
    length = padded.shape[1] - taps + 1
    return [padded[:, taps - 1 - distance :][:, :length] for distance in range(taps)]


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None) -> Tensor:
    """(B, K - 1 + L, D) to the convolution before its activation, (B, L, D)."""
    taps = weight.shape[1]
    columns = weight.t().contiguous().unbind()[::-1]
    for distance, (seen, column) in enumerate(zip(_taps(padded, taps), columns)):
        if distance == 0:
            out = seen * column if bias is None else torch.addcmul(bias.to(seen.dtype), seen, column)
        elif masks is None:
            out.addcmul_(seen, column)
        else:
            out.addcmul_(seen * masks[distance - 1], column)
    return out


class _CausalConv(torch.autograd.Function):
    """Convolution and activation in one; `padded` is (B, K - 1 + L, D)."""

    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None
    ) -> Tensor:
        before = _convolve(padded, weight.to(padded.dtype), bias, masks)
        ctx.save_for_backward(padded, weight, bias, masks, before)
        return F.silu(before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, bias, masks, before = ctx.saved_tensors
        taps = weight.shape[1]
        columns = weight.to(padded.dtype).t().contiguous().unbind()[::-1]
        grad = torch.ops.aten.silu_backward(grad_out, before)
        grad_padded = torch.empty_like(padded)
        grad_padded[:, : taps - 1] = 0
        product = torch.empty_like(grad)
        grad_columns = []
        for distance, (seen, into, column) in enumerate(
            zip(_taps(padded, taps), _taps(grad_padded, taps), columns)
        ):
            part = grad if masks is None or distance == 0 else grad * masks[distance - 1]
            if distance == 0:
                torch.mul(part, column, out=into)
            else:
                into.addcmul_(part, column)
            grad_columns.append(torch.mul(part, seen, out=product).sum((0, 1)))
        grad_weight = torch.stack(grad_columns[::-1], 1).to(weight.dtype)
        grad_bias = None if bias is None else grad.sum((0, 1)).to(bias.dtype)
        return grad_padded, grad_weight, grad_bias, None
