"""`core.ops.selective_scan` on CUDA as an operator that torch.compile calls without looking inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.ops.operators import contiguous_rows, define, empty_gradient, reset_bytes
from core.ops.triton.selective_scan.launch import launch_backward, launch_finish, launch_forward, prepare
from core.ops.triton.selective_scan.layout import between_type, border_numbers, plan_of


def selective_scan_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`core.ops.selective_scan.selective_scan` on the GPU; `chunk` overrides how time is cut.

    The last state is a (B, D, N) view of (B, N, D), which the next call uses without a copy.
    """
    given = (x, dt, A, B, C, D, z, dt_bias, h0)
    keep = torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in given)
    y, last, _, _, _ = _operator(x, dt, A, B, C, D, z, dt_bias, h0, reset, chunk or 0, keep)
    return y, last.transpose(1, 2)


def _rows(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as the kernels read them: channels contiguous, other strides anything."""
    return [None if tensor is None else contiguous_rows(tensor) for tensor in tensors]


def _state(tensor: Tensor | None) -> Tensor | None:
    """(B, D, N) to a contiguous float32 (B, N, D)."""
    return None if tensor is None else tensor.transpose(1, 2).to(torch.float32).contiguous()


# Operators, so that torch.compile calls them without looking inside. What the backward needs besides the
# inputs is returned as integers, which have no gradients for autograd to fill with zeros.
INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? h0, "
    "Tensor? reset, int chunk"
)


def _run_selective_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    layout = plan_of(x, A, chunk)
    rates, rows = prepare(layout, A, B, C)
    y, borders, last = launch_forward(
        layout, _rows(x, dt, z), rates, rows, D, dt_bias,
        _state(h0), reset_bytes(reset), keep,
    )  # fmt: skip
    if borders is None:
        nothing = last.new_empty(0)
        return y, last, *(nothing.clone().view(torch.int32) for _ in range(3))
    return y, last, borders.view(torch.int32), rates.view(torch.int32), rows.view(torch.int32)


def _fake_selective_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    batch, length, width = x.shape
    states = A.shape[1]
    layout = plan_of(x, A, chunk)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    border = border_numbers(layout, batch, length, width) * between_type(x).itemsize // 4
    return (
        new(batch, length, width, dtype=x.dtype),
        new(batch, states, width, dtype=torch.float32),
        *(
            new(*(size if keep else (0,)), dtype=torch.int32)
            for size in ((border,), (states, width), (batch, length, 2 * layout.states))
        ),
    )


def _run_selective_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any, chunk: int,
    borders: Any, rates: Any, rows: Any, grad_y: Any, grad_last: Any, wants_first: bool, into: Any = None,
) -> Any:  # fmt: skip
    """The gradients; z's is written to `into` (B, L, D) if given, whose channels are contiguous."""
    layout = plan_of(x, A, chunk)
    grad_x, grad_dt, grad_z, *shares, grad_first = launch_backward(
        layout, _rows(x, dt, z), rates.view(torch.float32), rows.view(torch.float32),
        D, dt_bias, reset_bytes(reset), borders.view(between_type(x)), grad_y.contiguous(),
        None if grad_last is None else grad_last.contiguous(), wants_first, into,
    )  # fmt: skip
    grad_A, grad_B, grad_C, grad_D, grad_bias = launch_finish(layout, shares, A, B, C, D, dt_bias)
    nothing = rates.new_empty(0).view(torch.float32)
    return (
        grad_x,
        grad_dt,
        grad_A,
        grad_B,
        grad_C,
        *(nothing.clone() if grad is None else grad for grad in (grad_D, grad_z, grad_bias, grad_first)),
    )


def _fake_selective_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any, chunk: int,
    borders: Any, rates: Any, rows: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    first = torch.empty(
        (x.shape[0], A.shape[1], x.shape[2]) if wants_first else (0,), dtype=torch.float32, device=x.device
    )
    return (*(empty_gradient(tensor, x.device) for tensor in (x, dt, A, B, C, D, z, dt_bias)), first)


_backward_operator = define(
    "selective_scan_backward",
    f"({INPUTS}, Tensor borders, Tensor rates, Tensor rows, Tensor grad_y, Tensor? grad_last,"
    " bool wants_first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_selective_scan_backward,
    _fake_selective_scan_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.chunk, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])


def _gradients(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *tensors, borders, rates, rows = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    *grads, grad_first = _backward_operator(
        *tensors, ctx.chunk, borders, rates, rows, grad_y, grad_last, ctx.needs_input_grad[8]
    )
    given = [None if tensor is None else grad for tensor, grad in zip(tensors, grads)]
    first = grad_first.transpose(1, 2) if ctx.needs_input_grad[8] else None
    return *given, first, None, None, None


_operator = define(
    "selective_scan",
    f"({INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_selective_scan,
    _fake_selective_scan,
    keep=_keep,
    gradients=_gradients,
)
