"""The causal convolution on CUDA, in Triton: same function as `core.ops.causal_conv`.

    one warp: CHANNELS channels x `steps` steps of a batch row

    window = the K - 1 inputs before the first step          (conv_state at the start of the chunk)
    for each strip of ROWS steps:
        start reading the next strip                         (it arrives while this one is computed)
        for each step t of the strip:
            forward    y_t = silu(bias + taps . [window, x_t]), without taps that reach across a reset
            backward   g_t = grad_y_t times silu's derivative; share += g_t [window, x_t]
                       grad_x_{t-K+1} = taps . [g_{t-K+1} ... g_t]     (a second window, K - 1 steps behind)
            window = the last K - 1 of [window, x_t]

Memory bandwidth is the limit, so every input is read once and windows stay in registers. The backward runs
K - 1 steps past each warp's last one; only those are computed twice. Each warp writes its share of the
weights' gradient, and a second kernel adds the shares in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from core.ops.operators import contiguous_rows, define, reset_bytes
from core.ops.triton import causal_conv_kernels as kernels

FORWARD_ROWS, BACKWARD_ROWS = 4, 8
"""Steps in a strip: a warp reads one strip ahead of the one it works on."""
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
"""Channels per warp; the backward needs more registers for each."""
WARPS = 2048
"""Time is cut until a launch has at least this many warps, or `LEAST` steps per warp. An H100 holds about
3000."""
LEAST, MOST = 32, 512
"""Steps per warp. The K - 1 after them are computed twice."""
SHARES, SUMMED_CHANNELS = 128, 32
"""How many shares of the weights' gradient a program adds at a time, and for how many channels."""


def causal_conv_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    conv_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`core.ops.causal_conv.causal_conv` on the GPU."""
    y, new_conv_state = _operator(x, weight, bias, conv_state, reset)
    return y, new_conv_state


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _cut(batch: int, length: int, width: int, channels: int) -> tuple[int, tuple[int, int, int]]:
    """Steps per warp, and the grid of warps over channels, batch rows and time."""
    across = triton.cdiv(width, channels)
    steps = MOST
    while steps > LEAST and across * batch * triton.cdiv(length, steps) < WARPS:
        steps //= 2
    return steps, (across, batch, triton.cdiv(length, steps))


def _options(weight: Tensor, bias: Any, conv_state: Any, reset: Any) -> dict[str, Any]:
    return {
        "TAPS": weight.shape[1],
        "HAS_BIAS": bias is not None,
        "HAS_STATE": conv_state is not None,
        "HAS_RESET": reset is not None,
        "num_warps": 1,
    }


def _run_causal_conv(x: Any, weight: Any, bias: Any, conv_state: Any, reset: Any) -> Any:
    x = contiguous_rows(x)
    batch, length, width = x.shape
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    new_conv_state = torch.empty(batch, weight.shape[1] - 1, width, dtype=x.dtype, device=x.device)
    steps, grid = _cut(batch, length, width, FORWARD_CHANNELS)
    kernels.conv_forward_kernel[grid](
        x, weight.contiguous(), bias, _contiguous(conv_state), reset_bytes(reset), y, new_conv_state,
        length, width, steps, x.stride()[:2], ROWS=FORWARD_ROWS, CHANNELS=FORWARD_CHANNELS,
        **_options(weight, bias, conv_state, reset),
    )  # fmt: skip
    return y, new_conv_state


def _fake_causal_conv(x: Any, weight: Any, bias: Any, conv_state: Any, reset: Any) -> Any:
    batch, length, width = x.shape
    return x.new_empty(batch, length, width), x.new_empty(batch, weight.shape[1] - 1, width)


def _run_causal_conv_backward(
    x: Any,
    weight: Any,
    bias: Any,
    conv_state: Any,
    reset: Any,
    grad_y: Any,
    wants_conv_state: Any,
    into: Any = None,
) -> Any:
    """The gradients; x's is written to `into` (B, L, D) if given, whose channels are contiguous."""
    x, grad_y = contiguous_rows(x), contiguous_rows(grad_y)
    batch, length, width = x.shape
    taps = weight.shape[1]
    steps, grid = _cut(batch, length, width, BACKWARD_CHANNELS)
    grad_x = torch.empty(batch, length, width, dtype=x.dtype, device=x.device) if into is None else into
    grad_conv_state = x.new_empty(conv_state.shape if wants_conv_state else (0,))
    shares = torch.empty(grid[1] * grid[2], taps + 1, width, dtype=torch.float32, device=x.device)
    kernels.conv_backward_kernel[grid](
        x, weight.contiguous(), bias, _contiguous(conv_state), reset_bytes(reset), grad_y, grad_x,
        grad_conv_state, shares, length, width, steps,
        x.stride()[:2], grad_y.stride()[:2], grad_x.stride()[:2],
        ROWS=BACKWARD_ROWS, CHANNELS=BACKWARD_CHANNELS, WANTS_STATE=wants_conv_state,
        **_options(weight, bias, conv_state, reset),
    )  # fmt: skip
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    grad_bias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    kernels.conv_sums_kernel[triton.cdiv(width, SUMMED_CHANNELS), taps + (bias is not None)](
        shares, grad_weight, grad_bias, shares.shape[0], width,
        TAPS=taps, SHARES=SHARES, CHANNELS=SUMMED_CHANNELS, HAS_BIAS=bias is not None, num_warps=8,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, grad_conv_state


def _fake_causal_conv_backward(
    x: Any, weight: Any, bias: Any, conv_state: Any, reset: Any, grad_y: Any, wants_conv_state: Any
) -> Any:
    grad_conv_state = x.new_empty(conv_state.shape if wants_conv_state else (0,))
    grad_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, grad_conv_state


_backward_operator = define(
    "causal_conv_backward",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? conv_state, Tensor? reset, Tensor grad_y, "
    "bool wants_conv_state) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_causal_conv_backward,
    _fake_causal_conv_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_y: Tensor | None, grad_new_conv_state: Tensor | None) -> tuple[Any, ...]:
    x, weight, bias, conv_state, reset = ctx.saved_tensors
    wants_conv_state = ctx.needs_input_grad[3]
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_x, grad_weight, grad_bias, grad_conv_state = _backward_operator(
        x, weight, bias, conv_state, reset, grad_y, wants_conv_state
    )
    grad_conv_state = grad_conv_state.to(conv_state.dtype) if wants_conv_state else None
    if grad_new_conv_state is not None:
        grad_x, grad_conv_state = _add_state_gradient(grad_new_conv_state, reset, grad_x, grad_conv_state)
    return grad_x, grad_weight, None if bias is None else grad_bias, grad_conv_state, None


_operator = define(
    "causal_conv",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? conv_state, Tensor? reset) -> (Tensor, Tensor)",
    _run_causal_conv,
    _fake_causal_conv,
    keep=_keep,
    gradients=_gradients,
)


def _survivors(reset: Tensor, length: int, past: int) -> Tensor:
    """(B, past): true for entries of the state that no reset follows."""
    padded = F.pad(reset, (past, 1))[:, length + 1 :]
    return padded.flip(1).int().cumsum(1).flip(1) == 0


def _add_state_gradient(
    grad_new_conv_state: Tensor, reset: Tensor | None, grad_x: Tensor, grad_conv_state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Add the new state's gradient to the gradients of its sources: the last inputs, or the old state."""
    length, past = grad_x.shape[1], grad_new_conv_state.shape[1]
    if reset is not None:
        grad_new_conv_state = grad_new_conv_state * _survivors(reset, length, past).unsqueeze(2)
    fresh = min(length, past)
    grad_x = grad_x + F.pad(grad_new_conv_state[:, past - fresh :], (0, 0, length - fresh, 0))
    if grad_conv_state is not None and fresh < past:
        grad_conv_state = grad_conv_state + F.pad(grad_new_conv_state[:, : past - fresh], (0, 0, fresh, 0))
    return grad_x, grad_conv_state
