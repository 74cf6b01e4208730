"""The causal convolution on CUDA, in Triton: same function as `core.ops.causal_conv`.

It is bound by memory, so every input is read once: a warp owns a strip of channels over ROWS steps and slides
a window of the last K inputs, kept in registers, through time. The backward slides a second window of gradients
behind the first; only the K - 1 steps behind each strip are computed twice. Sums for the weights are per strip
and added in a fixed order.
"""
# ruff: noqa: ANN001, ANN202, RUF005
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Steps a warp produces."""
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
"""Channels of a warp; the backward needs more registers for each."""


@triton.jit
def _sigmoid(value):
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    return tl.where(value >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _input(x, tail, t, x_time, length, width, d, PAST: tl.constexpr, HAS_TAIL: tl.constexpr):
    """Row t of the input, from the tail where t is negative, zeros outside."""
    row = tl.load(x + t * x_time, mask=d < tl.where((t >= 0) & (t < length), width, 0), other=0.0)
    row = row.to(tl.float32)
    if HAS_TAIL:
        old = tl.load(tail + (PAST + t) * width, mask=d < tl.where(t < 0, width, 0), other=0.0)
        row += old.to(tl.float32)
    return row


@triton.jit
def _reset_at(reset, t, length, HAS_RESET: tl.constexpr):
    """1 where step t forgets all before it, else 0."""
    flag = t * 0
    if HAS_RESET:
        flag = tl.load(reset + t, mask=(t >= 0) & (t < length), other=0).to(tl.int64)
    return flag


@triton.jit
def _convolve(window, taps, flags, offset, TAPS: tl.constexpr, HAS_RESET: tl.constexpr):
    """The newest output of a window of inputs and the flags beside it, both oldest first."""
    total = offset + taps[TAPS - 1] * window[TAPS - 1]
    blocked = flags[TAPS - 1]
    for distance in tl.static_range(1, TAPS):
        tap = taps[TAPS - 1 - distance]
        if HAS_RESET:
            tap = tl.where(blocked != 0, 0.0, tap)
            blocked = blocked | flags[TAPS - 1 - distance]
        total += tap * window[TAPS - 1 - distance]
    return total


@triton.jit
def _load_taps(weight, bias, d, width, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr):
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + d * TAPS + k, mask=d < width, other=0.0).to(tl.float32),)
    offset = d * 0.0
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=d < width, other=0.0).to(tl.float32)
    return taps, offset


@triton.jit
def forward_kernel(
    x, weight, bias, tail, reset, y, new_tail, length, width, x_batch, x_time,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """ROWS activated outputs of a strip of channels; the last strip also writes the new tail."""
    PAST: tl.constexpr = TAPS - 1
    batch = tl.program_id(1).to(tl.int64)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(2) * ROWS
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_batch + d
    tail_rows = tail
    if HAS_TAIL:
        tail_rows = tail + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    y_rows = y + batch * length * width + d
    rows = ()
    flags = ()
    for k in tl.static_range(ROWS + PAST):
        t = zero + first + k - PAST
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL and k < PAST),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
    for k in tl.static_range(ROWS):
        t = zero + first + k
        before = _convolve(rows[k : k + TAPS], taps, flags[k : k + TAPS], offset, TAPS, HAS_RESET)
        tl.store(y_rows + t * width, before * _sigmoid(before), mask=d < tl.where(t < length, width, 0))
    if first + ROWS >= length:
        blocked = zero
        for k in tl.static_range(PAST):
            t = zero + length - 1 - k
            row = _input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL)
            if HAS_RESET:
                row = tl.where(blocked != 0, 0.0, row)
                blocked = blocked | _reset_at(reset_row, t, length, HAS_RESET)
            tl.store(new_tail + (batch * PAST + PAST - 1 - k) * width + d, row, mask=d < width)


@triton.jit
def backward_kernel(
    x, weight, bias, tail, reset, grad_y, grad_x, grad_tail, grad_weight, grad_bias,
    length, width, x_batch, x_time,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr, WANTS_TAIL: tl.constexpr,
):  # fmt: skip
    """Gradients of ROWS inputs of a strip of channels, and the strip's share of those of the weights."""
    PAST: tl.constexpr = TAPS - 1
    batch, part, parts = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = part * ROWS
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_batch + d
    tail_rows = tail
    if HAS_TAIL:
        tail_rows = tail + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    plain = batch * length * width + d
    rows = ()
    flags = ()
    for k in tl.static_range(PAST):
        t = zero + first + k - PAST
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
    sums = ()
    for _ in tl.static_range(TAPS):
        sums = sums + (d * 0.0,)
    sum_bias = d * 0.0
    grads = ()
    for _ in tl.static_range(PAST):
        grads = grads + (d * 0.0,)
    for k in tl.static_range(ROWS + PAST):
        # rows, flags and, further down, grads hold steps t - PAST to t.
        t = zero + first + k
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, False),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
        out = tl.load(grad_y + plain + t * width, mask=d < tl.where(t < length, width, 0), other=0.0)
        before = _convolve(rows, taps, flags, offset, TAPS, HAS_RESET)
        sigmoid = _sigmoid(before)
        grad = out.to(tl.float32) * sigmoid * (1.0 + before * (1.0 - sigmoid))
        if k < ROWS:
            sum_bias += grad
            blocked = flags[PAST]
            sums = sums[:PAST] + (sums[PAST] + grad * rows[PAST],)
            for distance in tl.static_range(1, TAPS):
                piece = grad * rows[PAST - distance]
                if HAS_RESET:
                    piece = tl.where(blocked != 0, 0.0, piece)
                    blocked = blocked | flags[PAST - distance]
                sums = sums[: PAST - distance] + (sums[PAST - distance] + piece,) + sums[TAPS - distance :]
        grads = grads + (grad,)
        # These are all the outputs that the input at t - PAST has an effect on.
        total = taps[PAST] * grads[0]
        blocked = zero
        for distance in tl.static_range(1, TAPS):
            piece = taps[PAST - distance] * grads[distance]
            if HAS_RESET:
                blocked = blocked | flags[distance]
                piece = tl.where(blocked != 0, 0.0, piece)
            total += piece
        if k >= PAST:
            into = t - PAST
            tl.store(grad_x + plain + into * width, total, mask=d < tl.where(into < length, width, 0))
        elif WANTS_TAIL:
            if first == 0:
                tl.store(grad_tail + (batch * PAST + k) * width + d, total, mask=d < width)
        grads = grads[1:]
        rows = rows[1:]
        flags = flags[1:]
    strip = (batch * parts + part) * width + d
    for k in tl.static_range(TAPS):
        tl.store(grad_weight + strip * TAPS + k, sums[k], mask=d < width)
    if HAS_BIAS:
        tl.store(grad_bias + strip, sum_bias, mask=d < width)


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


@torch.library.custom_op(
    "mamba_tui::causal_conv",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset) -> (Tensor, Tensor)",
)
def _operator(x, weight, bias, tail, reset):
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, length, width = x.shape
    taps = weight.shape[1]
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    new_tail = torch.empty(batch, taps - 1, width, dtype=x.dtype, device=x.device)
    forward_kernel[(triton.cdiv(width, FORWARD_CHANNELS), batch, triton.cdiv(length, ROWS))](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), y, new_tail,
        length, width, *x.stride()[:2], TAPS=taps, CHANNELS=FORWARD_CHANNELS, **_options(bias, tail, reset),
    )  # fmt: skip
    return y, new_tail


@_operator.register_fake
def _(x, weight, bias, tail, reset):
    batch, length, width = x.shape
    return x.new_empty(batch, length, width), x.new_empty(batch, weight.shape[1] - 1, width)


@torch.library.custom_op(
    "mamba_tui::causal_conv_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? tail, Tensor? reset, Tensor grad_y, "
    "bool wants_tail) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_operator(x, weight, bias, tail, reset, grad_y, wants_tail):
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, length, width = x.shape
    taps = weight.shape[1]
    strips = triton.cdiv(length, ROWS)
    grad_x = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    grad_tail = torch.empty(tail.shape if wants_tail else (0,), dtype=x.dtype, device=x.device)
    sums = torch.empty(batch * strips, width, taps, dtype=torch.float32, device=x.device)
    sum_bias = torch.empty(0 if bias is None else batch * strips, width, dtype=torch.float32, device=x.device)
    backward_kernel[(triton.cdiv(width, BACKWARD_CHANNELS), batch, strips)](
        x, weight.contiguous(), bias, _contiguous(tail), _flags(reset), grad_y.contiguous(),
        grad_x, grad_tail, sums, sum_bias, length, width, *x.stride()[:2],
        TAPS=taps, CHANNELS=BACKWARD_CHANNELS, WANTS_TAIL=wants_tail, **_options(bias, tail, reset),
    )  # fmt: skip
    return grad_x, sums.sum(0).to(weight.dtype), sum_bias.sum(0), grad_tail


@_backward_operator.register_fake
def _(x, weight, bias, tail, reset, grad_y, wants_tail):
    grad_tail = x.new_empty(tail.shape if wants_tail else (0,))
    grad_bias = x.new_empty(x.shape[2], dtype=torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), grad_bias, grad_tail


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_y, grad_new_tail):
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


_operator.register_autograd(_gradients, setup_context=_keep)


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
