"""The causal convolution on CUDA, in Triton: same function as `core.ops.causal_conv`.

It is bound by memory, so every input is read once: a warp owns some channels over many steps and slides a
window of the last K inputs, kept in registers, through time, a strip of rows at a time, while the rows of the
next strip are on their way. The backward slides a second window, of gradients, behind the first; only the
K - 1 steps behind each warp's own are computed twice. The weights' gradient is a share a warp, added up in a
fixed order by a kernel of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from core.ops.operators import define
from core.ops.triton import causal_conv_kernels as kernels

FORWARD_ROWS, BACKWARD_ROWS = 4, 8
"""Steps that a warp reads ahead and then works on."""
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
"""Channels of a warp; the backward needs more registers for each."""
WARPS = 2048
"""A launch is cut into at least so many, if its warps keep `LEAST` steps; an H100 holds about 3000."""
LEAST, MOST = 32, 512
"""Steps of a warp. The K - 1 after them are computed twice."""
SHARES, SUMMED_CHANNELS = 128, 32
"""Shares of the weights' gradient that a program adds up at a time, and for how many channels."""


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


def _cut(batch: int, length: int, width: int, channels: int) -> tuple[int, tuple[int, int, int]]:
    """Steps of a warp, and the grid of warps over channels, lanes of text and time."""
    across = triton.cdiv(width, channels)
    steps = MOST
    while steps > LEAST and across * batch * triton.cdiv(length, steps) < WARPS:
        steps //= 2
    return steps, (across, batch, triton.cdiv(length, steps))


def _options(weight: Tensor, bias: Any, tail: Any, reset: Any) -> dict[str, Any]:
    return {
        "TAPS": weight.shape[1],
        "HAS_BIAS": bias is not None,
        "HAS_TAIL": tail is not None,
        "HAS_RESET": reset is not None,
        "num_warps": 1,
    }


def _with_rows(tensor: Tensor) -> Tensor:
    """The tensor (B, L, D), its channels next to each other."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run_causal_conv(x: Any, weight: Any, bias: Any, tail: Any, reset: Any) -> Any:
    x = _with_rows(x)
    batch, length, width = x.shape
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    new_tail = torch.empty(batch, weight.shape[1] - 1, width, dtype=x.dtype, device=x.device)
    steps, grid = _cut(batch, length, width, FORWARD_CHANNELS)
    kernels.conv_forward_kernel[grid](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), y, new_tail,
        length, width, steps, *x.stride()[:2], ROWS=FORWARD_ROWS, CHANNELS=FORWARD_CHANNELS,
        **_options(weight, bias, tail, reset),
    )  # fmt: skip
    return y, new_tail


def _fake_causal_conv(x: Any, weight: Any, bias: Any, tail: Any, reset: Any) -> Any:
    batch, length, width = x.shape
    return x.new_empty(batch, length, width), x.new_empty(batch, weight.shape[1] - 1, width)


def _run_causal_conv_backward(
    x: Any, weight: Any, bias: Any, tail: Any, reset: Any, grad_y: Any, wants_tail: Any, into: Any = None
) -> Any:
    """The gradients; that of x is written to `into` (B, L, D) if given, whose channels are contiguous."""
    x, grad_y = _with_rows(x), _with_rows(grad_y)
    batch, length, width = x.shape
    taps = weight.shape[1]
    steps, grid = _cut(batch, length, width, BACKWARD_CHANNELS)
    grad_x = torch.empty(batch, length, width, dtype=x.dtype, device=x.device) if into is None else into
    grad_tail = torch.empty(tail.shape if wants_tail else (0,), dtype=x.dtype, device=x.device)
    shares = torch.empty(grid[1] * grid[2], taps + 1, width, dtype=torch.float32, device=x.device)
    kernels.conv_backward_kernel[grid](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), grad_y, grad_x, grad_tail, shares,
        length, width, steps, *x.stride()[:2], *grad_y.stride()[:2], *grad_x.stride()[:2],
        ROWS=BACKWARD_ROWS, CHANNELS=BACKWARD_CHANNELS, WANTS_TAIL=wants_tail,
        **_options(weight, bias, tail, reset),
    )  # fmt: skip
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    grad_bias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    kernels.conv_sums_kernel[triton.cdiv(width, SUMMED_CHANNELS), taps + (bias is not None)](
        shares, grad_weight, grad_bias, shares.shape[0], width,
        TAPS=taps, SHARES=SHARES, CHANNELS=SUMMED_CHANNELS, HAS_BIAS=bias is not None, num_warps=8,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, grad_tail


def _fake_causal_conv_backward(
    x: Any, weight: Any, bias: Any, tail: Any, reset: Any, grad_y: Any, wants_tail: Any
) -> Any:
    grad_tail = x.new_empty(tail.shape if wants_tail else (0,))
    grad_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
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
    return grad_x, grad_weight, None if bias is None else grad_bias, grad_tail, None


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
