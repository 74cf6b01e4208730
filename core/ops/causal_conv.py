"""The short causal convolution of a Mamba layer, depthwise, followed by SiLU.

The last K - 1 inputs are its state, and no tap reaches across a reset.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import takes_triton

MOST_TRITON_TAPS = 8
"""The kernels unroll their loop over taps; with more taps, compiling takes a minute."""
CACHED = 1 << 17
"""How many numbers fit in a core's own cache together with the inputs they are computed from."""


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """silu(sum_k weight[:, K - 1 - k] x_{t-k} + bias), for each channel separately.

    Args:
        x: input, (B, L, D).
        weight: taps, oldest first, (D, K).
        bias: (D,).
        conv_state: the K - 1 inputs before x, (B, K - 1, D); zeros if None.
        reset: (B, L), true where earlier inputs must not be visible.

    Returns:
        the activated convolution (B, L, D) and the new state (B, K - 1, D), zero before its newest reset.
    """
    if takes_triton(x, "causal_conv") and weight.shape[1] <= MOST_TRITON_TAPS:
        from core.ops.triton.causal_conv import causal_conv_triton

        return causal_conv_triton(x, weight, bias, conv_state=conv_state, reset=reset)
    batch, length, channels = x.shape
    past = weight.shape[1] - 1
    if conv_state is None:
        conv_state = x.new_zeros(batch, past, channels)
    padded = torch.cat((conv_state.to(x.dtype), x), 1)
    masks = None if reset is None else _tap_masks(reset, past).to(x.dtype)
    new_conv_state = padded[:, length:]
    if reset is not None:
        # An entry of the state survives if no reset lies after it.
        newest = torch.cummax(_pad_front(reset, past).flip(1).int(), 1).values.flip(1)
        after = F.pad(newest, (0, 1))[:, length + 1 :]
        new_conv_state = new_conv_state * (after == 0).unsqueeze(2)
    if not torch.is_grad_enabled():
        return F.silu(convolve(padded, weight, bias, masks)), new_conv_state
    return _CausalConv.apply(padded, weight, bias, masks), new_conv_state


def _pad_front(reset: Tensor, past: int) -> Tensor:
    return F.pad(reset, (past, 0))


def _tap_masks(reset: Tensor, past: int) -> Tensor:
    """(B, K, L, 1), oldest tap first: true where no reset lies between a tap and its output."""
    padded = _pad_front(reset, past)
    length = reset.shape[1]
    blocked = torch.zeros_like(reset)
    masks = [~blocked]
    for distance in range(1, past + 1):
        blocked = blocked | padded[:, past - distance + 1 : past - distance + 1 + length]
        masks.append(~blocked)
    return torch.stack(masks[::-1], 1).unsqueeze(3)


def convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None = None) -> Tensor:
    """The convolution before its activation: `padded` (B, K - 1 + L, D) to (B, L, D).

    `masks` (B, K, L, 1) is 0 where a tap must not be visible.
    """
    past = weight.shape[1] - 1
    length = padded.shape[1] - past
    columns = _columns(weight, padded)
    newest = padded.narrow(1, past, length)
    if bias is None:
        out = newest * columns[past]
    else:
        out = torch.addcmul(bias.to(padded.dtype), newest, columns[past])
    for k in reversed(range(past)):
        seen = padded.narrow(1, k, length)
        out.addcmul_(seen if masks is None else seen * masks[:, k], columns[k])
    return out


def convolve_backward(
    grad: Tensor, padded: Tensor, weight: Tensor, into: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias, given the gradient of `convolve`'s result (B, L, D).

    `into` receives the gradient of the inputs: (B, L, D), or (B, K - 1 + L, D) if it includes conv_state's.
    """
    past = weight.shape[1] - 1
    length = grad.shape[1]
    conv_state = into.shape[1] - length
    if conv_state:
        into[:, :conv_state] = 0
    columns = _columns(weight, padded)
    for k in reversed(range(past + 1)):
        part = grad if masks is None or k == past else grad * masks[:, k]
        late = past - k - conv_state  # through this tap, the first `late` steps read inputs outside `into`
        if late > 0:
            part = part[:, late:]
        target = into.narrow(1, max(0, -late), part.shape[1])
        if k == past:
            torch.mul(part, columns[k], out=target)
        else:
            target.addcmul_(part, columns[k])
    return _weight_gradient(grad, padded, weight, masks), grad.sum((0, 1)).to(weight.dtype)


def _weight_gradient(grad: Tensor, padded: Tensor, weight: Tensor, masks: Tensor | None) -> Tensor:
    """(D, K): each tap's inputs times `grad`, summed over all batch rows and steps.

    Takes all taps at once, and as many batch rows as fit in the processor's cache.
    """
    batch, length, channels = grad.shape
    taps = weight.shape[1]
    seen = padded.unfold(1, length, 1).transpose(2, 3)  # (B, K, L, D), the same memory
    parts = grad.unsqueeze(1)
    rows = max(1, CACHED // (taps * length * channels))
    total = grad.new_zeros(min(rows, batch), taps, length, channels)
    for row in range(0, batch, rows):
        part = parts[row : row + rows]
        if masks is not None:
            part = part * masks[row : row + rows]
        total[: part.shape[0]].addcmul_(seen[row : row + rows], part)
    return total.sum((0, 2)).t().contiguous().to(weight.dtype)


def _columns(weight: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """The weights of each tap, oldest first, (D,) each."""
    return weight.to(like.dtype).t().contiguous().unbind()


class _CausalConv(torch.autograd.Function):
    """Convolution and activation in one function; `padded` is (B, K - 1 + L, D)."""

    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None, masks: Tensor | None
    ) -> Tensor:
        before = convolve(padded, weight, bias, masks)
        ctx.save_for_backward(padded, weight, masks, before)
        return F.silu(before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, masks, before = ctx.saved_tensors
        grad = torch.ops.aten.silu_backward(grad_out, before)
        grad_padded = torch.empty_like(padded)
        grad_weight, grad_bias = convolve_backward(grad, padded, weight, grad_padded, masks)
        return grad_padded, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None
