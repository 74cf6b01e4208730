"""All of a Mamba layer between its two outer projections, on CUDA, as one operation.

Elsewhere `core.ops.mamba_mixer` does the same with single operations. As one operation, the gradients of
inputs and gates are written directly into the inner projection's gradient instead of being concatenated,
those of the convolution's output are added inside a product, and the three norms are one kernel.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define, hidden
from core.ops.triton.causal_conv import _add_state_gradient, _run_causal_conv, _run_causal_conv_backward
from core.ops.triton.selective_scan.operator import (
    _fake_selective_scan,
    _run_selective_scan,
    _run_selective_scan_backward,
)

ROWS = 16
"""Rows that a program of the norms takes at a time."""
PROGRAMS = 256
"""The backward's programs number at least this many if there are enough rows, and fewer than twice as many:
each writes a share of the weights' gradients."""


@triton.jit
def _normed(raw, weight, rows, row_stride, count, first, size, eps, SIZE: tl.constexpr):
    """Columns `first` to `first + size` of rows, the factor that normalizes them, and their weights."""
    column = tl.arange(0, SIZE)
    mask = (rows[:, None] < count) & (column[None, :] < size)
    x = tl.load(raw + rows[:, None] * row_stride + first + column[None, :], mask=mask, other=0.0)
    x = x.to(tl.float32)
    scale = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    rate = 1.0 / tl.sqrt(tl.sum(x * x, 1) / size + eps)
    return x, rate[:, None], scale[None, :], column, mask


@triton.jit
def norms_forward_kernel(
    raw, dt_weight, B_weight, C_weight, dt, BC, count, rank, states, eps,
    ROWS: tl.constexpr, RANK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Normalized dt (M, R) and B beside C (M, 2N), from their raw columns (M, R + 2N)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    stride = rank + 2 * states
    x, rate, scale, column, mask = _normed(raw, dt_weight, rows, stride, count, 0, rank, eps, RANK)
    into = dt + rows[:, None] * rank + column[None, :]
    tl.store(into, (x * rate * scale).to(dt.dtype.element_ty), mask=mask)
    x, rate, scale, column, mask = _normed(raw, B_weight, rows, stride, count, rank, states, eps, STATES)
    into = BC + rows[:, None] * 2 * states + column[None, :]
    tl.store(into, x * rate * scale, mask=mask)
    first = rank + states
    x, rate, scale, column, mask = _normed(raw, C_weight, rows, stride, count, first, states, eps, STATES)
    tl.store(into + states, x * rate * scale, mask=mask)


@triton.jit
def _norm_back(x, rate, scale, grad, size):
    """Gradients of a norm's input and, per row, of its weights."""
    product = grad * x * rate
    along = tl.sum(product * scale, 1)[:, None] / size
    return rate * (grad * scale - x * rate * along), product


@triton.jit
def norms_backward_kernel(
    raw, dt_weight, B_weight, C_weight, grad_dt, grad_B, grad_C, grad_raw, shares, count, rank, states, eps,
    ROWS: tl.constexpr, PIECES: tl.constexpr, RANK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Gradients of PIECES x ROWS raw rows, and a share of the weights' gradients (R + 2N)."""
    part = tl.program_id(0).to(tl.int64)
    stride = rank + 2 * states
    rank_column = tl.arange(0, RANK)
    column = tl.arange(0, STATES)
    sum_dt = tl.zeros((RANK,), tl.float32)
    sum_B = tl.zeros((STATES,), tl.float32)
    sum_C = tl.zeros((STATES,), tl.float32)
    for piece in range(PIECES):
        rows = (part * PIECES + piece) * ROWS + tl.arange(0, ROWS)
        # Everything is read before anything is written: the compiler never moves a read above an earlier
        # write.
        x, rate, scale, _, mask = _normed(raw, dt_weight, rows, stride, count, 0, rank, eps, RANK)
        grad = tl.load(grad_dt + rows[:, None] * rank + rank_column[None, :], mask=mask, other=0.0)
        x_B, rate_B, scale_B, _, mask_B = _normed(
            raw, B_weight, rows, stride, count, rank, states, eps, STATES
        )
        first = rank + states
        x_C, rate_C, scale_C, _, _ = _normed(raw, C_weight, rows, stride, count, first, states, eps, STATES)
        offsets = rows[:, None] * states + column[None, :]
        of_B = tl.load(grad_B + offsets, mask=mask_B, other=0.0).to(tl.float32)
        of_C = tl.load(grad_C + offsets, mask=mask_B, other=0.0).to(tl.float32)
        grad, product = _norm_back(x, rate, scale, grad.to(tl.float32), rank)
        sum_dt += tl.sum(product, 0)
        into = grad_raw + rows[:, None] * stride
        tl.store(into + rank_column[None, :], grad.to(grad_raw.dtype.element_ty), mask=mask)
        of_B, product = _norm_back(x_B, rate_B, scale_B, of_B, states)
        sum_B += tl.sum(product, 0)
        into += column[None, :]
        tl.store(into + rank, of_B.to(grad_raw.dtype.element_ty), mask=mask_B)
        of_C, product = _norm_back(x_C, rate_C, scale_C, of_C, states)
        sum_C += tl.sum(product, 0)
        tl.store(into + first, of_C.to(grad_raw.dtype.element_ty), mask=mask_B)
    share = shares + part * stride
    tl.store(share + rank_column, sum_dt, mask=rank_column < rank)
    tl.store(share + rank + column, sum_B, mask=column < states)
    tl.store(share + rank + states + column, sum_C, mask=column < states)


def _sizes(rank: int, states: int) -> dict[str, int]:
    return {"ROWS": ROWS, "RANK": triton.next_power_of_2(rank), "STATES": triton.next_power_of_2(states)}


def _pieces(count: int) -> int:
    """Blocks of ROWS rows per program of the backward: a power of two, so that few variants are compiled."""
    pieces = max(1, count // (ROWS * PROGRAMS))
    return 1 << pieces.bit_length() - 1


def _norms(raw: Tensor, weights: tuple[Tensor, Tensor, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Normalized dt (M, R) in raw's type, and B beside C (M, 2N) in float32."""
    rank, states = weights[0].shape[0], weights[1].shape[0]
    count = raw.shape[0]
    dt = raw.new_empty(count, rank)
    BC = torch.empty(count, 2 * states, dtype=torch.float32, device=raw.device)
    norms_forward_kernel[(triton.cdiv(count, ROWS),)](
        raw, *weights, dt, BC, count, rank, states, eps, **_sizes(rank, states)
    )
    return dt, BC


def _norms_backward(
    raw: Tensor, weights: tuple[Tensor, Tensor, Tensor], grads: tuple[Tensor, Tensor, Tensor], eps: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of raw (M, R + 2N) and of the weights."""
    rank, states = weights[0].shape[0], weights[1].shape[0]
    pieces = _pieces(raw.shape[0])
    programs = triton.cdiv(raw.shape[0], ROWS * pieces)
    grad_raw = torch.empty_like(raw)
    shares = torch.empty(programs, raw.shape[1], dtype=torch.float32, device=raw.device)
    norms_backward_kernel[(programs,)](
        raw, *weights, *grads, grad_raw, shares, raw.shape[0], rank, states, eps,
        PIECES=pieces, **_sizes(rank, states),
    )  # fmt: skip
    grads_of_weights = shares.sum(0).split((rank, states, states))
    # Compiled code relies on results that begin at a multiple of 16 bytes.
    aligned = (part.clone() if part.storage_offset() % 4 else part for part in grads_of_weights)
    return grad_raw, tuple(part.to(weight.dtype) for part, weight in zip(aligned, weights))


def _run_mamba_mixer(
    projected, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, A, D, dt_bias,
    conv_state, h0, reset, eps, keep,
):  # fmt: skip
    batch, length, _ = projected.shape
    width, states = A.shape
    x, new_conv_state = _run_causal_conv(projected[..., :width], conv_weight, conv_bias, conv_state, reset)
    raw = x.flatten(0, 1) @ x_proj.t()
    low, BC = _norms(raw, (dt_norm, B_norm, C_norm), eps)
    dt = (low @ dt_proj.t()).view(batch, length, width)
    BC = BC.view(batch, length, -1)
    y, last, *kept = _run_selective_scan(
        x, dt, A, BC[..., :states], BC[..., states:], D, projected[..., width:], dt_bias, h0, reset,
        0, keep,
    )  # fmt: skip
    return y, last, new_conv_state, *(hidden(item) for item in (x, raw, low, dt, BC)), *kept


def _fake_mamba_mixer(
    projected, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, A, D, dt_bias,
    conv_state, h0, reset, eps, keep,
):  # fmt: skip
    batch, length, _ = projected.shape
    width, states = A.shape
    rows = batch * length
    x = projected.new_empty(batch, length, width)
    BC = projected.new_empty(batch, length, states, dtype=torch.float32)
    y, last, *of_scan = _fake_selective_scan(x, x, A, BC, BC, D, x, dt_bias, h0, reset, 0, keep)
    kept = (
        x,
        x.new_empty(rows, x_proj.shape[0]),
        x.new_empty(rows, dt_norm.shape[0]),
        x.new_empty(batch, length, width),
        BC.new_empty(batch, length, 2 * states),
    )
    new_conv_state = x.new_empty(batch, conv_weight.shape[1] - 1, width)
    return y, last, new_conv_state, *(hidden(item) for item in kept), *of_scan


def _run_mamba_mixer_backward(
    projected, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, A, D, dt_bias,
    conv_state, h0, reset, x, raw, low, dt, BC, borders, rates, rows_of_scan, grad_y, grad_last, eps,
    wants_conv_state, wants_first,
):  # fmt: skip
    batch, length, _ = projected.shape
    width, states = A.shape
    kind = projected.dtype
    x, raw, low, dt = (item.view(kind) for item in (x, raw, low, dt))
    BC = BC.view(torch.float32)
    rows = batch * length
    grad_projected = torch.empty_like(projected, memory_format=torch.contiguous_format)
    grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, _, grad_bias, grad_first = (
        _run_selective_scan_backward(
            x, dt, A, BC[..., :states], BC[..., states:], D, projected[..., width:], dt_bias, h0, reset,
            0, borders, rates, rows_of_scan, grad_y, grad_last, wants_first, grad_projected[..., width:],
        )
    )  # fmt: skip
    grad_dt = grad_dt.view(rows, width)
    grad_dt_proj = grad_dt.t() @ low
    grad_raw, grad_norms = _norms_backward(
        raw,
        (dt_norm, B_norm, C_norm),
        (grad_dt @ dt_proj, grad_B.view(rows, states), grad_C.view(rows, states)),
        eps,
    )
    grad_x_proj = grad_raw.t() @ x.view(rows, width)
    grad_x.view(rows, width).addmm_(grad_raw, x_proj)  # in place, which saves a copy
    _, grad_weight, grad_conv_bias, grad_conv_state = _run_causal_conv_backward(
        projected[..., :width], conv_weight, conv_bias, conv_state, reset, grad_x, wants_conv_state,
        grad_projected[..., :width],
    )  # fmt: skip
    return (
        grad_projected, grad_weight, grad_conv_bias, grad_x_proj, *grad_norms, grad_dt_proj,
        grad_A, grad_D, grad_bias, grad_conv_state, grad_first,
    )  # fmt: skip


def _fake_mamba_mixer_backward(
    projected, conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, A, D, dt_bias,
    conv_state, h0, reset, x, raw, low, dt, BC, borders, rates, rows_of_scan, grad_y, grad_last, eps,
    wants_conv_state, wants_first,
):  # fmt: skip
    kind, batch = projected.dtype, projected.shape[0]
    parameters = (conv_weight, conv_bias, x_proj, dt_norm, B_norm, C_norm, dt_proj, A, D, dt_bias)
    return (
        projected.new_empty(projected.shape),
        *(parameter.new_empty(parameter.shape) for parameter in parameters),
        projected.new_empty(conv_state.shape if wants_conv_state else (0,), dtype=kind),
        A.new_empty((batch, A.shape[1], A.shape[0]) if wants_first else (0,), dtype=torch.float32),
    )


PARAMETERS = (
    "Tensor projected, Tensor conv_weight, Tensor conv_bias, Tensor x_proj, Tensor dt_norm, Tensor B_norm, "
    "Tensor C_norm, Tensor dt_proj, Tensor A, Tensor D, Tensor dt_bias, Tensor? conv_state, Tensor? h0, "
    "Tensor? reset"
)
TENSORS = 14

_backward_operator = define(
    "mamba_mixer_backward",
    f"({PARAMETERS}, Tensor x, Tensor raw, Tensor low, Tensor dt, Tensor BC, Tensor borders, "
    "Tensor rates, Tensor rows_of_scan, Tensor grad_y, Tensor? grad_last, float eps, bool wants_conv_state, "
    "bool wants_first) -> (" + ", ".join(["Tensor"] * 13) + ")",
    _run_mamba_mixer_backward,
    _fake_mamba_mixer_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[3:])


def _gradients(ctx: Any, grad_y: Any, grad_last: Any, grad_new_conv_state: Any, *_: Any) -> tuple[Any, ...]:
    projected, *_, conv_state, _, reset = ctx.saved_tensors[:TENSORS]
    wants_conv_state, wants_first = ctx.needs_input_grad[11:13]
    if grad_y is None:
        grad_y = projected.new_zeros(*projected.shape[:2], projected.shape[2] // 2)
    *grads, grad_conv_state, grad_first = _backward_operator(
        *ctx.saved_tensors, grad_y, grad_last, ctx.eps, wants_conv_state, wants_first
    )
    grad_conv_state = grad_conv_state.to(conv_state.dtype) if wants_conv_state else None
    if grad_new_conv_state is not None:
        passed, grad_conv_state = _add_state_gradient(
            grad_new_conv_state, reset, grads[0][..., : projected.shape[2] // 2], grad_conv_state
        )
        grads[0] = torch.cat((passed, grads[0][..., projected.shape[2] // 2 :]), 2)
    first = grad_first.transpose(1, 2) if wants_first else None
    return *grads, grad_conv_state, first, None, None, None


_operator = define(
    "mamba_mixer",
    f"({PARAMETERS}, float eps, bool keep) -> (" + ", ".join(["Tensor"] * 11) + ")",
    _run_mamba_mixer,
    _fake_mamba_mixer,
    keep=_keep,
    gradients=_gradients,
)


def mamba_mixer_triton(
    projected: Tensor,
    conv: tuple[Tensor, Tensor],
    x_proj: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    conv_state: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`core.ops.mamba_mixer.mamba_mixer` on the GPU, from `h0` to the new ssm_state, which is float32."""
    inputs = (
        projected, *conv, x_proj.to(projected.dtype), *norms, dt_proj.to(projected.dtype), A, D, dt_bias,
        conv_state, h0, reset,
    )  # fmt: skip
    keep = torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in inputs)
    y, last, new_conv_state, *_ = _operator(*inputs, eps, keep)
    return y, new_conv_state, last.transpose(1, 2)
