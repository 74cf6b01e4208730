"""The causal convolution on CUDA, in Triton: same function as `core.ops.causal_conv`.

It is bound by memory, so every input is read once: a warp owns a strip of channels over ROWS steps and slides
a window of the last K inputs, kept in registers, through time. The backward slides a second window, of
gradients, behind the first; only the K - 1 steps behind each strip are computed twice. Sums for the weights
are per strip and added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from core.ops import causal_conv_kernels as kernels
from core.ops.operators import define

ROWS = 16
"""Steps a warp produces."""
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
"""Channels of a warp; the backward needs more registers for each."""


def causal_conv_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    tail: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`core.ops.causal_conv.causal_conv` on the GPU."""
    y, new_tail = _operator(x, weight, bias, tail, reset)
    return y, new_tail


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _options(bias: Any, tail: Any, reset: Any) -> dict[str, Any]:
    return {
        "ROWS": ROWS,
        "HAS_BIAS": bias is not None,
        "HAS_TAIL": tail is not None,
        "HAS_RESET": reset is not None,
        "num_warps": 1,
    }


def _run_causal_conv(x: Any, weight: Any, bias: Any, tail: Any, reset: Any) -> Any:
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, length, width = x.shape
    taps = weight.shape[1]
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    new_tail = torch.empty(batch, taps - 1, width, dtype=x.dtype, device=x.device)
    kernels.conv_forward_kernel[(triton.cdiv(width, FORWARD_CHANNELS), batch, triton.cdiv(length, ROWS))](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), y, new_tail,
        length, width, *x.stride()[:2], TAPS=taps, CHANNELS=FORWARD_CHANNELS, **_options(bias, tail, reset),
    )  # fmt: skip
    return y, new_tail


def _fake_causal_conv(x: Any, weight: Any, bias: Any, tail: Any, reset: Any) -> Any:
    batch, length, width = x.shape
    return x.new_empty(batch, length, width), x.new_empty(batch, weight.shape[1] - 1, width)


def _run_causal_conv_backward(
    x: Any, weight: Any, bias: Any, tail: Any, reset: Any, grad_y: Any, wants_tail: Any
) -> Any:
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, length, width = x.shape
    taps = weight.shape[1]
    strips = triton.cdiv(length, ROWS)
    grad_x = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    grad_tail = torch.empty(tail.shape if wants_tail else (0,), dtype=x.dtype, device=x.device)
    sums = torch.empty(batch * strips, width, taps, dtype=torch.float32, device=x.device)
    sum_bias = torch.empty(0 if bias is None else batch * strips, width, dtype=torch.float32, device=x.device)
    kernels.conv_backward_kernel[(triton.cdiv(width, BACKWARD_CHANNELS), batch, strips)](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), grad_y.contiguous(),
        grad_x, grad_tail, sums, sum_bias, length, width, *x.stride()[:2],
        TAPS=taps, CHANNELS=BACKWARD_CHANNELS, WANTS_TAIL=wants_tail, **_options(bias, tail, reset),
    )  # fmt: skip
    return grad_x, sums.sum(0).to(weight.dtype), sum_bias.sum(0), grad_tail


def _fake_causal_conv_backward(
    x: Any, weight: Any, bias: Any, tail: Any, reset: Any, grad_y: Any, wants_tail: Any
) -> Any:
    grad_tail = x.new_empty(tail.shape if wants_tail else (0,))
    grad_bias = x.new_empty(x.shape[2], dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, grad_tail


_backward_operator = define(
    "causal_conv_backward",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset, Tensor grad_y, "
    "bool wants_tail) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_causal_conv_backward,
    _fake_causal_conv_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_y: Tensor | None, grad_new_tail: Tensor | None) -> tuple[Any, ...]:
    x, weight, bias, tail, reset = ctx.saved_tensors
    wants_tail = ctx.needs_input_grad[3]
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_x, grad_weight, grad_bias, grad_tail = _backward_operator(
        x, weight, bias, tail, reset, grad_y, wants_tail
    )
    grad_tail = grad_tail.to(tail.dtype) if wants_tail else None
    if grad_new_tail is not None:
        grad_x, grad_tail = _pass_tail_on(grad_new_tail, reset, grad_x, grad_tail)
    return grad_x, grad_weight, None if bias is None else grad_bias.to(bias.dtype), grad_tail, None


_operator = define(
    "causal_conv",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset) -> (Tensor, Tensor)",
    _run_causal_conv,
    _fake_causal_conv,
    keep=_keep,
    gradients=_gradients,
)


def _flags(reset: Tensor | None) -> Tensor | None:
    return None if reset is None else reset.contiguous().view(torch.uint8)


def _survivors(reset: Tensor, length: int, past: int) -> Tensor:
    """(B, past): true for the tail entries after which no reset comes."""
    padded = F.pad(reset, (past, 1))[:, length + 1 :]
    return padded.flip(1).int().cumsum(1).flip(1) == 0


def _pass_tail_on(
    grad_new_tail: Tensor, reset: Tensor | None, grad_x: Tensor, grad_tail: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Add the gradient of the new tail to what it was copied from: the last inputs, or the old tail."""
    length, past = grad_x.shape[1], grad_new_tail.shape[1]
    if reset is not None:
        grad_new_tail = grad_new_tail * _survivors(reset, length, past).unsqueeze(2)
    fresh = min(length, past)
    grad_x = grad_x + F.pad(grad_new_tail[:, past - fresh :], (0, 0, length - fresh, 0))
    if grad_tail is not None and fresh < past:
        grad_tail = grad_tail + F.pad(grad_new_tail[:, : past - fresh], (0, 0, fresh, 0))
    return grad_x, grad_tail
