"""Launches the kernels of the selective scan; the package's docstring explains the order."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from core.ops.triton.selective_scan import backward_kernels, forward_kernels
from core.ops.triton.selective_scan.layout import (
    BLOCK,
    BORDER_AT,
    GATED_WEIGHTS_AHEAD,
    ROWS_AT,
    SPAN,
    WEIGHTS_AHEAD,
    Plan,
    between_type,
    border_numbers,
    exchange_kind,
    registers,
)
from core.ops.triton.selective_scan.warp_sums import (
    exchange_assembly,
    exchange_constraints,
    tensor_core_assembly,
)


def _strides(*tensors: Tensor | None) -> list[tuple[int, ...]]:
    """Strides over batch and time of each tensor, zeros for None."""
    return [(0, 0) if tensor is None else tensor.stride()[:2] for tensor in tensors]


def _masks(layout: Plan, length: int, width: int, states: int, block: int) -> dict[str, Any]:
    even = length % block == 0
    full = even and width % layout.channels == 0 and states == layout.states
    return {"EVEN": even, "FULL": full, "BLOCK": block}


def prepare(layout: Plan, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Rates (N, D), scaled for powers of two, and rows (B, L, 2N padded) of B and C, in float32."""
    batch, length, states = B.shape
    width = A.shape[0]
    rates = torch.empty(states, width, dtype=torch.float32, device=A.device)
    rows = torch.empty(batch, length, 2 * layout.states, dtype=torch.float32, device=A.device)
    per_program = 1024 // layout.states
    row_programs = triton.cdiv(batch * length, per_program)
    forward_kernels.scan_prepare_kernel[(row_programs + triton.cdiv(width, per_program),)](
        A, B, C, rates, rows, length, batch * length, row_programs, width, states,
        A.stride(), B.stride(), C.stride(),
        N=layout.states, ROWS=per_program, CHANNELS=per_program, num_warps=4,
    )  # fmt: skip
    return rates, rows


def launch_forward(
    layout: Plan,
    inputs: list[Tensor | None],
    rates: Tensor,
    rows: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    h0: Tensor | None,
    flags: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Output, borders if `keep`, last state (B, N, D)."""
    x, dt, z = inputs
    assert x is not None
    batch, length, width = x.shape
    states = rates.shape[0]
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    last = rates.new_empty(batch, states, width)
    borders = None
    if keep:
        borders = rates.new_empty(border_numbers(layout, batch, length, width), dtype=between_type(x))
    grid = layout.grid(batch, width)
    sizes = (length, width, layout.chunk, states, layout.chunks, *_strides(x, dt, z), 0)
    options: dict[str, Any] = {
        "N": layout.states,
        "CHANNELS": layout.channels,
        "SPAN": SPAN,
        "HAS_RESET": flags is not None,
        "HAS_BIAS": bias is not None,
        "HAS_D": D is not None,
        "HAS_Z": z is not None,
        "WEIGHTS_AHEAD": WEIGHTS_AHEAD if z is None else GATED_WEIGHTS_AHEAD,
        "num_warps": 1,
        **_masks(layout, length, width, states, BLOCK),
    }
    tensors = (x, dt, rates, rows, D, z, bias, flags)
    entries = h0
    if layout.chunks > 1:
        entries = rates.new_empty(batch, layout.chunks, states, width)
        sums = rates.new_empty(batch, layout.chunks, width)
        forward_kernels.scan_forward_kernel[(*grid[:2], layout.chunks - 1)](
            *tensors, None, y, None, entries, sums, *sizes,
            LOCAL=True, KEEP_BORDERS=False, HAS_ENTRY=False, **options,
        )  # fmt: skip
        _carry(layout, rates, sums, h0, entries, backward=False)
    forward_kernels.scan_forward_kernel[grid](
        *tensors, entries, y, borders, last, None, *sizes,
        LOCAL=False, KEEP_BORDERS=keep, HAS_ENTRY=entries is not None, **options,
    )  # fmt: skip
    return y, borders, last


def _carry(
    layout: Plan, rates: Tensor, sums: Tensor, first: Tensor | None, local: Tensor, *, backward: bool
) -> None:
    states, width = rates.shape
    forward_kernels.scan_carry_kernel[(triton.cdiv(width, layout.channels), local.shape[0])](
        rates, sums, first, local, layout.chunks, width, states, 0,
        N=layout.states, CHANNELS=layout.channels, HAS_FIRST=first is not None, BACKWARD=backward,
        num_warps=1,
    )  # fmt: skip


def launch_backward(
    layout: Plan,
    inputs: list[Tensor | None],
    rates: Tensor,
    rows: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    flags: Tensor | None,
    borders: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
    wants_first: bool,
    into: Tensor | None = None,
) -> tuple[Any, ...]:
    """Gradients of x, dt and z (in `into`, if given), shares of A's, B and C's, D's and the bias's, and h0's.

    The last is (B, N, D).
    """
    x, dt, z = inputs
    assert x is not None
    assert dt is not None
    batch, length, width = x.shape
    states = rates.shape[0]
    grid = layout.grid(batch, width)
    entries = grad_last
    if layout.chunks > 1:
        entries = rates.new_empty(batch, layout.chunks, states, width)
        sums = rates.new_empty(batch, layout.chunks, width)
        backward_kernels.scan_backward_local_kernel[(*grid[:2], layout.chunks - 1)](
            dt, rates, rows, z, bias, flags, grad_y, entries, sums,
            length, width, layout.chunk, states, layout.chunks, *_strides(dt, z), 0,
            N=layout.states, CHANNELS=layout.channels,
            HAS_RESET=flags is not None, HAS_BIAS=bias is not None, HAS_Z=z is not None,
            WEIGHTS_AHEAD=WEIGHTS_AHEAD, num_warps=1,
            **_masks(layout, length, width, states, BLOCK),
        )  # fmt: skip
        _carry(layout, rates, sums, grad_last, entries, backward=True)

    def share(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return rates.new_empty(batch, *shape, dtype=dtype)

    if into is None and z is not None:
        into = torch.empty(batch, length, width, dtype=z.dtype, device=x.device)
    grads = (
        torch.empty(batch, length, width, dtype=x.dtype, device=x.device),
        torch.empty(batch, length, width, dtype=dt.dtype, device=x.device),
        into,
        share(layout.chunks, states, width),
        share(grid[0], length, 2 * layout.states, dtype=between_type(x)),
        None if D is None else share(layout.chunks, width),
        None if bias is None else share(layout.chunks, width),
        share(states, width) if wants_first else None,
    )
    exchange, assembly = exchange_kind(layout, x), ""
    if exchange == "lanes":
        assembly = exchange_assembly(layout.states)
    elif exchange:
        assembly = tensor_core_assembly()
    kept, ahead = registers(layout, x)
    backward_kernels.scan_backward_kernel[grid](
        x, dt, rates, rows, D, z, bias, flags, borders, grad_y, entries, *grads,
        length, width, layout.chunk, states, *_strides(x, dt, z, into), 0,
        N=layout.states, CHANNELS=layout.channels, KEPT=kept, ROWS_AT=ROWS_AT, BORDER_AT=BORDER_AT,
        EXCHANGE=exchange, ASSEMBLY=assembly,
        CONSTRAINTS=exchange_constraints(layout.states) if exchange else "",
        HAS_ENTRY=entries is not None, HAS_RESET=flags is not None, HAS_BIAS=bias is not None,
        HAS_D=D is not None, HAS_Z=z is not None, WANTS_FIRST=wants_first,
        WEIGHTS_AHEAD=ahead, num_warps=1,
        **_masks(layout, length, width, states, SPAN),
    )  # fmt: skip
    return grads


def launch_finish(
    layout: Plan,
    shares: list[Tensor],
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of A, B, C, D and the bias, added up from their shares (B and C have common shares)."""
    grads = [
        None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=A.device)
        for tensor in (A, B, C, D, bias)
    ]
    batch, length, states = B.shape
    width, groups = A.shape[0], shares[1].shape[1]
    # At least 16 bytes of shares per thread.
    per_program, channels = 1024 // shares[1].element_size(), 32
    BC_programs = triton.cdiv(length * 2 * layout.states, per_program)
    kinds = states + (D is not None) + (bias is not None)
    share_A, share_BC, share_D, share_bias = shares
    backward_kernels.scan_finish_kernel[(BC_programs * batch + triton.cdiv(width, channels) * kinds,)](
        share_BC, share_A, share_D, share_bias, *grads,
        length, groups, BC_programs, batch, batch * layout.chunks, width, states,
        N=layout.states, ITEMS=per_program, DEPTH=16, CHANNELS=channels,
        HAS_D=D is not None, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return grads
