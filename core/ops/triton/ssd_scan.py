"""The scan of Mamba-2 on CUDA, in Triton: same function as `core.ops.ssd_scan`.

Time is cut into chunks of CHUNK steps. Inside a chunk of a head everything is a matrix product for the tensor
cores, where decay(s, t) is what remains at step t of what entered at step s:

    h -> [ chunk ] -> h' -> [ chunk ] -> ...     h (P, N): the state at a border between chunks

    y_t = sum over s <= t of decay(s, t) delta_s (B_s . C_t) x_s  +  decay(start, t) h C_t  +  D x_t
    h'  = decay(start, end) h  +  sum over s of decay(s, end) delta_s x_s B_s^T

- Forward, a program owns a head of a batch row, or a tile of its channels, and walks over the chunks with the
  state in registers. When gradients are wanted it stores the states at the borders.
- Backward, one kernel walks from the end to the beginning and computes the gradients of those states. The
  chunks are then independent: a program owns a chunk and takes its heads one by one, adding the gradients of
  B and C, which the heads share, in registers. If there are too few chunks to fill the chip, the heads are
  split into groups, and the groups' shares are added in a fixed order.
- Long texts with few heads would leave the chip idle, so time is also cut into parts: each part computes its
  last state starting from zero, a short scan carries the states across parts, and then every part runs from
  its true first state. The same happens in the backward.

A decay is the exponential of a difference of two running sums of logarithms. The sums are computed in float64
and stored as two float32 each, so that their differences keep their digits. A reset is a logarithm of -10^4.

Factors of products are in bfloat16 where the inputs are; float16 becomes TF32, which has as many digits and a
wider range; float32 is split into three TF32. Source: arXiv 2405.21060.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.dispatch import processors_of
from core.ops.operators import contiguous_rows, define, empty_gradient, reset_bytes
from core.ops.triton import ssd_scan_kernels as kernels

CHUNK = 64
"""Steps per chunk; half as many if factors are wide or there are many states."""
TILE = 64
"""Channels of a head per program; halved likewise."""
LEAST_TILE = 32
"""With half of this, 32 states and bfloat16, Triton 3.6 computes wrong gradients on an H100."""
PARTS_BELOW = 2
"""With fewer programs per processor than this, time is cut into parts."""
PROGRAMS_PER_PROCESSOR = 4
"""About how many programs per processor cutting aims for; also when the backward splits heads into groups."""
MANY_STATES = 32
"""With more states than this, the backward's sums over heads need the registers of eight warps."""
PIECE = 1024


class Plan(NamedTuple):
    """How a scan is divided among programs."""

    chunk: int
    tile: int
    """Channels per program."""
    chunks: int
    part_chunks: int
    """Chunks per part of time."""
    parts: int
    group_heads: int
    groups: int
    bf16: bool
    """Whether factors of products are bfloat16."""
    options: dict[str, Any]
    """Options of all kernels with matrix products."""


def plan(x: Tensor, B: Tensor, C: Tensor, part_chunks: int = 0) -> Plan:
    """The layout for x (B, L, H, P), B and C (B, L, N); `part_chunks` overrides how time is cut."""
    batch, length, heads, size = x.shape
    processors = processors_of(x.device)
    states = max(16, triton.next_power_of_2(B.shape[2]))
    bf16 = x.dtype == B.dtype == C.dtype == torch.bfloat16
    cut = 1 if bf16 and states <= 64 else 2
    chunk = CHUNK // cut
    tile = min(TILE // cut, max(LEAST_TILE, triton.next_power_of_2(size)))
    chunks = triton.cdiv(length, chunk)
    if part_chunks == 0:
        programs = batch * heads * triton.cdiv(size, tile)
        parts = 1
        if programs < PARTS_BELOW * processors:
            parts = triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, programs)
        part_chunks = max(2, triton.cdiv(chunks, parts))
    groups = min(heads, triton.cdiv(PROGRAMS_PER_PROCESSOR * processors, batch * chunks))
    group_heads = triton.cdiv(heads, groups)
    exact = any(tensor.element_size() > 2 for tensor in (x, B, C))
    options = {
        "Q": chunk,
        "P": tile,
        "N": states,
        "PRODUCT_TYPE": tl.bfloat16 if bf16 else tl.float32,
        "PRECISION": "tf32x3" if exact else "tf32",
        "num_warps": 4 if states <= 64 else 8,
    }
    parts, groups = triton.cdiv(chunks, part_chunks), triton.cdiv(heads, group_heads)
    return Plan(chunk, tile, chunks, part_chunks, parts, group_heads, groups, bf16, options)


def ssd_scan_triton(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    part_chunks: int = 0,
) -> tuple[Tensor, Tensor]:
    """`core.ops.ssd_scan.ssd_scan` on the GPU; `part_chunks` overrides the chunks per part of time."""
    given = (x, dt, A, B, C, D, dt_bias, h0)
    keep = torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in given)
    y, last, *_ = _operator(x, dt, A, B, C, D, dt_bias, h0, reset, part_chunks, keep)
    return y, last


def _state(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _border_types(layout: Plan) -> tuple[torch.dtype, torch.dtype]:
    """The type of states that are only used in products, and the integer type of the same size."""
    return (torch.bfloat16, torch.int16) if layout.bf16 else (torch.float32, torch.int32)


# Operators, so that torch.compile calls them without looking inside. What the backward needs besides the
# inputs is returned as integers, which have no gradients for autograd to fill with zeros.
INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? h0, "
    "Tensor? reset, int part_chunks"
)


def _run_ssd_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, h0: Any, reset: Any,
    part_chunks: int, keep: bool,
) -> Any:  # fmt: skip
    x, B, C = (contiguous_rows(tensor) for tensor in (x, B, C))
    batch, length, heads, size = x.shape
    states = B.shape[2]
    layout = plan(x, B, C, part_chunks)
    floats, integers = _border_types(layout)
    y = torch.empty(batch, length, heads, size, dtype=x.dtype, device=x.device)
    last = torch.empty(batch, heads, size, states, dtype=torch.float32, device=x.device)
    kept = (batch, heads, layout.chunks, size, states) if keep else (0,)
    borders = torch.empty(kept, dtype=floats, device=x.device)
    steps = torch.empty(5, batch, heads, layout.chunks, layout.chunk, dtype=torch.float32, device=x.device)
    flags, entries = reset_bytes(reset), _state(h0)
    kernels.ssd_steps_kernel[(layout.chunks, heads, batch)](
        dt, A, dt_bias, flags, steps, length, heads, steps.stride(0), dt.stride(),
        Q=layout.chunk, HAS_RESET=flags is not None, HAS_BIAS=dt_bias is not None, num_warps=1,
    )  # fmt: skip
    strides = (x.stride()[:3], B.stride()[:2], C.stride()[:2])
    sizes = (length, heads, size, states, layout.part_chunks, steps.stride(0), 0, *strides)
    options = layout.options | {"HAS_D": D is not None, "num_stages": 2 if layout.bf16 else 1}
    grid = (heads * triton.cdiv(size, layout.tile), layout.parts, batch)
    if layout.parts > 1:
        local, through = _parts(layout, last)
        kernels.ssd_forward_kernel[grid](
            x, steps, B, C, D, None, y, borders, local, through, *sizes,
            LOCAL=True, KEEP=False, HAS_ENTRY=False, **options,
        )  # fmt: skip
        _carry(through, entries, local, backward=False)
        entries = local
    kernels.ssd_forward_kernel[grid](
        x, steps, B, C, D, entries, y, borders, last, None, *sizes,
        LOCAL=False, KEEP=keep, HAS_ENTRY=entries is not None, **options,
    )  # fmt: skip
    if not keep:
        steps = steps.new_empty(0)
    return y, last, borders.view(integers), steps.view(torch.int32)


def _parts(layout: Plan, state: Tensor) -> tuple[Tensor, Tensor]:
    """Empty states (B, H, parts, P, N), and decays (B, H, parts) of the state that enters each part."""
    batch, heads, size, states = state.shape
    return state.new_empty(batch, heads, layout.parts, size, states), state.new_empty(
        batch, heads, layout.parts
    )


def _carry(through: Tensor, first: Tensor | None, local: Tensor, *, backward: bool) -> None:
    batch, heads, parts, size, states = local.shape
    kernels.ssd_carry_kernel[(triton.cdiv(size * states, PIECE), batch * heads)](
        through, first, local, parts, size * states,
        PIECE=PIECE, HAS_FIRST=first is not None, BACKWARD=backward, num_warps=4,
    )  # fmt: skip


def _fake_ssd_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, h0: Any, reset: Any,
    part_chunks: int, keep: bool,
) -> Any:  # fmt: skip
    batch, _, heads, size = x.shape
    layout = plan(x, B, C, part_chunks)
    kept = (batch, heads, layout.chunks, size, B.shape[2]) if keep else (0,)
    steps = (5, batch, heads, layout.chunks, layout.chunk) if keep else (0,)
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((batch, heads, size, B.shape[2]), dtype=torch.float32, device=x.device),
        torch.empty(kept, dtype=_border_types(layout)[1], device=x.device),
        torch.empty(steps, dtype=torch.int32, device=x.device),
    )


def _run_ssd_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, h0: Any, reset: Any, part_chunks: int,
    borders: Any, steps: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    x, B, C, grad_y = (contiguous_rows(tensor) for tensor in (x, B, C, grad_y))
    batch, length, heads, size = x.shape
    states = B.shape[2]
    layout = plan(x, B, C, part_chunks)
    borders, steps = borders.view(_border_types(layout)[0]), steps.view(torch.float32)
    plane = steps.stride(0)
    grad_borders, grad_first = _state_gradients(
        layout, steps, C, grad_y, borders, _state(grad_last), wants_first
    )
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_dt = torch.empty(dt.shape, dtype=dt.dtype, device=x.device)
    grad_B, grad_C = (torch.empty(part.shape, dtype=part.dtype, device=x.device) for part in (B, C))
    shares_B, shares_C = grad_B, grad_C
    if layout.groups > 1:
        shares_B, shares_C = steps.new_empty(2, layout.groups, *B.shape)
    flows, links = steps.new_empty(6, plane), steps.new_empty(batch, heads, layout.chunks)
    options = layout.options | ({"num_warps": 8} if states > MANY_STATES else {})
    kernels.ssd_backward_kernel[(layout.chunks, layout.groups, batch)](
        x, steps, B, C, D, borders, grad_borders, grad_y, grad_x, shares_B, shares_C, flows, links,
        length, heads, size, states, layout.group_heads, plane, 0,
        x.stride()[:3], B.stride()[:2], C.stride()[:2], grad_y.stride()[:3],
        TILES=triton.cdiv(size, layout.tile), HAS_D=D is not None, num_stages=1, **options,
    )  # fmt: skip
    if layout.groups > 1:
        kernels.ssd_sum_kernel[(triton.cdiv(grad_B.numel(), PIECE),)](
            shares_B, shares_C, grad_B, grad_C, layout.groups, grad_B.numel(), PIECE=PIECE, num_warps=4
        )
    sums = steps.new_empty(batch * layout.chunks, 3, heads)
    flags = reset_bytes(reset)
    kernels.ssd_flows_kernel[(layout.chunks, heads, batch)](
        dt, A, dt_bias, flags, steps, flows, links, grad_dt, sums, length, heads, plane, dt.stride(),
        Q=layout.chunk, HAS_RESET=flags is not None, HAS_BIAS=dt_bias is not None, num_warps=1,
    )  # fmt: skip
    grad_A, grad_D, grad_bias = sums.sum(0).unbind()
    nothing = sums.new_empty(0)
    return (
        grad_x,
        grad_dt,
        grad_A.to(A.dtype, copy=True),
        grad_B,
        grad_C,
        nothing if D is None else grad_D.to(D.dtype, copy=True),
        nothing.clone() if dt_bias is None else grad_bias.to(dt_bias.dtype, copy=True),
        nothing.clone() if grad_first is None else grad_first,
    )


def _state_gradients(
    layout: Plan,
    steps: Tensor,
    C: Tensor,
    grad_y: Tensor,
    borders: Tensor,
    grad_last: Tensor | None,
    wants_first: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the states at the end of each chunk, in the shape and type of `borders`, and of h0."""
    batch, length, heads, size = grad_y.shape
    states = C.shape[2]
    grad_borders = torch.empty_like(borders)
    first = steps.new_empty(batch, heads, size, states)
    grid = (heads * triton.cdiv(size, layout.tile), layout.parts, batch)
    strides = (C.stride()[:2], grad_y.stride()[:3])
    sizes = (length, heads, size, states, layout.part_chunks, steps.stride(0), *strides)
    options = layout.options | {"num_stages": 2 if layout.bf16 else 1}
    entries = grad_last
    if layout.parts > 1:
        entries, through = _parts(layout, first)
        kernels.ssd_state_gradients_kernel[grid](
            steps, C, grad_y, None, grad_borders, entries, through, *sizes,
            LOCAL=True, WANTS_FIRST=True, HAS_ENTRY=False, **options,
        )  # fmt: skip
        _carry(through, grad_last, entries, backward=True)
    kernels.ssd_state_gradients_kernel[grid](
        steps, C, grad_y, entries, grad_borders, first, None, *sizes,
        LOCAL=False, WANTS_FIRST=wants_first, HAS_ENTRY=entries is not None, **options,
    )  # fmt: skip
    return grad_borders, first if wants_first else None


def _fake_ssd_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, dt_bias: Any, h0: Any, reset: Any, part_chunks: int,
    borders: Any, steps: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    batch, _, heads, size = x.shape
    shape = (batch, heads, size, B.shape[2]) if wants_first else (0,)
    first = torch.empty(shape, dtype=torch.float32, device=x.device)
    return (*(empty_gradient(tensor, x.device) for tensor in (x, dt, A, B, C, D, dt_bias)), first)


_backward_operator = define(
    "ssd_scan_backward",
    f"({INPUTS}, Tensor borders, Tensor steps, Tensor grad_y, Tensor? grad_last, bool wants_first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_ssd_scan_backward,
    _fake_ssd_scan_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.part_chunks, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])


def _gradients(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *tensors, borders, steps = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    wants_first = ctx.needs_input_grad[7]
    *grads, grad_first = _backward_operator(
        *tensors, ctx.part_chunks, borders, steps, grad_y, grad_last, wants_first
    )
    given = [None if tensor is None else grad for tensor, grad in zip(tensors[:7], grads)]
    return *given, grad_first.to(tensors[7].dtype) if wants_first else None, None, None, None


_operator = define(
    "ssd_scan",
    f"({INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_ssd_scan,
    _fake_ssd_scan,
    keep=_keep,
    gradients=_gradients,
)
