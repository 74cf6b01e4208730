"""The selective scan on CUDA, in Triton: same function as `core.ops.selective_scan`.

One warp owns 32 channels and walks through time. A lane keeps all N states of its channel in registers, so
the sum over N costs nothing and the forward exchanges nothing. What bounds the work is one exponential per
state and step; everything else is arranged to stay in its shadow.

- When gradients are wanted the forward keeps the state before every BLOCK steps (a border). The backward
  recomputes a block's states from its border, half a block at a time so that they fit in registers.
- dB and dC are sums over channels, across lanes. A lane holds 2N values; an exchange that halves the list at
  each step needs 2N - 1 exchanges where plain reductions need 10 N. For 16-bit inputs the tensor cores do
  most of it. Every warp writes its share, and the shares are added in a fixed order.
- Long texts in few channels leave the chip idle, so time is cut into chunks: each finds its own last state
  from zero, a short scan carries them on, and only then the chunks run with their true entry. Likewise
  backwards.

Inside, states are (..., N, D), channels innermost. Sources: arXiv 2312.00752 (the recurrence, and to
recompute it), arXiv 2405.21060 section 6 (states of chunks passed on).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from core.ops import selective_scan_kernels as kernels
from core.ops.operators import define
from core.ops.warp_sums import exchange_assembly, exchange_constraints, tensor_core_assembly

BLOCK = 8
"""Steps from border to border."""
HALF = 4
"""Steps whose states the backward holds in registers at a time."""
LANES = 32
LOG2_E = 1.4426950408889634
MIN_CHUNK = 64
CHUNK_BELOW = 5
"""With fewer warps a processor than this, time is cut into chunks,"""
WARPS_PER_PROCESSOR = 32
"""to have about so many. Both were chosen on an H100 (benchmarks/RESULTS.md)."""


@functools.cache
def _has_tensor_float(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Plan(NamedTuple):
    """How a scan is laid over the chip."""

    states: int
    """N, padded to a power of two."""
    channels: int
    """Channels of a warp."""
    chunk: int
    chunks: int
    interpreted: bool

    def grid(self, batch: int, width: int) -> tuple[int, int, int]:
        """Warps over channels, lanes of text and chunks of time."""
        return triton.cdiv(width, self.channels), batch, self.chunks


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def plan(
    batch: int,
    length: int,
    width: int,
    states: int,
    device: torch.device,
    chunk: int = 0,
) -> Plan:
    """The layout for (batch, length, width) with `states` a channel; `chunk` forces how time is cut."""
    padded = max(4, triton.next_power_of_2(states))
    channels = LANES if padded <= 16 else LANES * 16 // padded
    processors = _processors(device)
    if chunk == 0:
        warps = batch * triton.cdiv(width, channels)
        chunks = (
            1 if warps >= CHUNK_BELOW * processors else triton.cdiv(WARPS_PER_PROCESSOR * processors, warps)
        )
        chunk = max(MIN_CHUNK, triton.cdiv(length, chunks))
    chunk = triton.cdiv(chunk, BLOCK) * BLOCK
    return Plan(padded, channels, chunk, max(1, triton.cdiv(length, chunk)), device.type != "cuda")


def _plan_of(x: Tensor, A: Tensor, chunk: int) -> Plan:
    batch, length, width = x.shape
    return plan(batch, length, width, A.shape[1], x.device, chunk)


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
    """`core.ops.selective_scan.selective_scan` on the GPU; `chunk` forces how time is cut.

    The last state is a (B, D, N) view of (B, N, D), which the next call takes without a copy.
    """
    given = (x, dt, A, B, C, D, z, dt_bias, h0)
    keep = torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in given)
    y, last, _, _ = _operator(x, dt, A, B, C, D, z, dt_bias, h0, reset, chunk or 0, keep)
    return y, last.transpose(1, 2)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its last dimension contiguous; other strides may be anything."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _state(tensor: Tensor | None) -> Tensor | None:
    """(B, D, N) to a contiguous float32 (B, N, D)."""
    return None if tensor is None else tensor.transpose(1, 2).to(torch.float32).contiguous()


def _rates(A: Tensor) -> Tensor:
    """(D, N) to (N, D), for powers of two."""
    return (A.to(torch.float32) * LOG2_E).t().contiguous()


def _flags(reset: Tensor | None) -> Tensor | None:
    return None if reset is None else reset.contiguous().view(torch.uint8)


def _found(tensor: Tensor) -> Tensor | None:
    """An operator has to return tensors: an empty one stands for None."""
    return tensor if tensor.numel() else None


# Operators, so that torch.compile can take them as they are. What the backward needs besides the inputs
# is returned as integers: those have no gradient that would have to be filled with zeros.
INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? h0, "
    "Tensor? reset, int chunk"
)


def _run_selective_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    inputs = [_rows(tensor) for tensor in (x, dt, B, C, z)]
    layout = _plan_of(x, A, chunk)
    y, borders, last, sums = _forward(layout, inputs, _rates(A), D, dt_bias, _state(h0), _flags(reset), keep)
    nothing = last.new_empty(0)
    return (
        y,
        last,
        (nothing if borders is None else borders).view(torch.int32),
        (nothing.clone() if sums is None else sums).view(torch.int32),
    )


def _fake_selective_scan(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    batch, length, width = x.shape
    states = A.shape[1]
    layout = _plan_of(x, A, chunk)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    blocks = -(-length // BLOCK)
    return (
        new(batch, length, width, dtype=x.dtype),
        new(batch, states, width, dtype=torch.float32),
        new(*((batch, blocks, states, width) if keep else (0,)), dtype=torch.int32),
        new(*((batch, layout.chunks, width) if layout.chunks > 1 else (0,)), dtype=torch.int32),
    )


def _run_selective_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any, chunk: int,
    borders: Any, sums: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    inputs = [_rows(tensor) for tensor in (x, dt, B, C, z)]
    layout = _plan_of(x, A, chunk)
    states, padded = A.shape[1], layout.states
    grad_x, grad_dt, grad_z, grad_A, grad_BC, grad_D, grad_bias, grad_first = _backward(
        layout, inputs, _rates(A), D, dt_bias, _flags(reset), borders.view(torch.float32),
        _found(sums.view(torch.float32)), grad_y.contiguous(),
        None if grad_last is None else grad_last.contiguous(), wants_first,
    )  # fmt: skip
    both = grad_BC.sum(1)
    nothing = grad_A.new_empty(0)
    return (
        grad_x,
        grad_dt,
        grad_A.flatten(0, 1).sum(0).t().contiguous().to(A.dtype),
        both[..., :states].to(B.dtype, memory_format=torch.contiguous_format, copy=True),
        both[..., padded : padded + states].to(C.dtype, memory_format=torch.contiguous_format, copy=True),
        nothing if grad_D is None else grad_D.flatten(0, 1).sum(0).to(D.dtype),
        nothing.clone() if grad_z is None else grad_z,
        nothing.clone() if grad_bias is None else grad_bias.flatten(0, 1).sum(0).to(dt_bias.dtype),
        nothing.clone() if grad_first is None else grad_first,
    )


def _fake_selective_scan_backward(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any, chunk: int,
    borders: Any, sums: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    def like(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return torch.empty(0, dtype=torch.float32, device=x.device)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device)

    first = torch.empty(
        (x.shape[0], A.shape[1], x.shape[2]) if wants_first else (0,), dtype=torch.float32, device=x.device
    )
    return (*(like(tensor) for tensor in (x, dt, A, B, C, D, z, dt_bias)), first)


_backward_operator = define(
    "selective_scan_backward",
    f"({INPUTS}, Tensor borders, Tensor sums, Tensor grad_y, Tensor? grad_last, bool wants_first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_selective_scan_backward,
    _fake_selective_scan_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.chunk, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[2:])


def _gradients(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, *_: Any) -> tuple[Any, ...]:
    *tensors, borders, sums = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    *grads, grad_first = _backward_operator(
        *tensors, ctx.chunk, borders, sums, grad_y, grad_last, ctx.needs_input_grad[8]
    )
    given = [None if tensor is None else grad for tensor, grad in zip(tensors, grads)]
    first = grad_first.transpose(1, 2) if ctx.needs_input_grad[8] else None
    return *given, first, None, None, None


_operator = define(
    "selective_scan",
    f"({INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_selective_scan,
    _fake_selective_scan,
    keep=_keep,
    gradients=_gradients,
)


def _exchange(layout: Plan, x: Tensor) -> str:
    """How dB and dC are summed over channels."""
    if layout.interpreted or layout.states > 16:
        return ""
    if layout.states == 16 and x.element_size() == 2 and _has_tensor_float(x.device):
        return "tensor cores"
    return "lanes"


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides over batch and time of each, zeros for a missing one."""
    return [
        stride for tensor in tensors for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))
    ]


def _masks(layout: Plan, length: int, width: int, states: int) -> dict[str, bool]:
    even = length % BLOCK == 0
    full = even and width % layout.channels == 0 and states == layout.states
    return {"EVEN": even, "FULL": full}


def _forward(
    layout: Plan,
    inputs: list[Tensor | None],
    rates: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    h0: Tensor | None,
    flags: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Output, borders if `keep`, last state (B, N, D), sums of step sizes if there are several chunks."""
    x, dt, B, C, z = inputs
    assert x is not None
    batch, length, width = x.shape
    states = rates.shape[0]
    y = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    last = rates.new_empty(batch, states, width)
    borders = rates.new_empty(batch, triton.cdiv(length, BLOCK), states, width) if keep else None
    grid = layout.grid(batch, width)
    sizes = (length, width, layout.chunk, states, *_strides(x, dt, z, B, C), 0)
    options: dict[str, Any] = {
        "N": layout.states,
        "CHANNELS": layout.channels,
        "BLOCK": BLOCK,
        "HAS_RESET": flags is not None,
        "HAS_BIAS": bias is not None,
        "HAS_D": D is not None,
        "HAS_Z": z is not None,
        "num_warps": 1,
        **_masks(layout, length, width, states),
    }
    tensors = (x, dt, rates, B, C, D, z, bias, flags)
    entries, sums = h0, None
    if layout.chunks > 1:
        entries = rates.new_empty(batch, layout.chunks, states, width)
        sums = rates.new_empty(batch, layout.chunks, width)
        kernels.scan_forward_kernel[grid](
            *tensors, None, y, None, entries, sums, *sizes,
            LOCAL=True, KEEP_BORDERS=False, HAS_ENTRY=False, **options,
        )  # fmt: skip
        _carry(layout, rates, sums, h0, entries, backward=False)
    kernels.scan_forward_kernel[grid](
        *tensors, entries, y, borders, last, None, *sizes,
        LOCAL=False, KEEP_BORDERS=keep, HAS_ENTRY=entries is not None, **options,
    )  # fmt: skip
    return y, borders, last, sums


def _carry(
    layout: Plan, rates: Tensor, sums: Tensor, first: Tensor | None, local: Tensor, *, backward: bool
) -> None:
    states, width = rates.shape
    kernels.scan_carry_kernel[(triton.cdiv(width, layout.channels), local.shape[0])](
        rates, sums, first, local, layout.chunks, width, states, 0,
        N=layout.states, CHANNELS=layout.channels, HAS_FIRST=first is not None, BACKWARD=backward,
        num_warps=1,
    )  # fmt: skip


def _backward(
    layout: Plan,
    inputs: list[Tensor | None],
    rates: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    flags: Tensor | None,
    borders: Tensor,
    sums: Tensor | None,
    grad_y: Tensor,
    grad_last: Tensor | None,
    wants_first: bool,
) -> tuple[Any, ...]:
    """Gradients of x, dt, z, and shares of those of A, B and C, D, bias to be added up; of h0 (B, N, D)."""
    x, dt, B, C, z = inputs
    assert x is not None
    assert dt is not None
    batch, length, width = x.shape
    states = rates.shape[0]
    grid = layout.grid(batch, width)
    masks = _masks(layout, length, width, states)
    entries = grad_last
    if sums is not None:
        entries = rates.new_empty(batch, layout.chunks, states, width)
        kernels.scan_backward_local_kernel[grid](
            dt, rates, C, z, bias, flags, grad_y, entries,
            length, width, layout.chunk, states, *_strides(dt, z, C), 0,
            N=layout.states, CHANNELS=layout.channels, BLOCK=BLOCK,
            HAS_RESET=flags is not None, HAS_BIAS=bias is not None, HAS_Z=z is not None, num_warps=1, **masks,
        )  # fmt: skip
        _carry(layout, rates, sums, grad_last, entries, backward=True)

    def share(*shape: int) -> Tensor:
        return rates.new_empty(batch, *shape)

    grads = (
        torch.empty(batch, length, width, dtype=x.dtype, device=x.device),
        torch.empty(batch, length, width, dtype=dt.dtype, device=x.device),
        None if z is None else torch.empty(batch, length, width, dtype=z.dtype, device=x.device),
        share(layout.chunks, states, width),
        share(grid[0], length, 2 * layout.states),
        None if D is None else share(layout.chunks, width),
        None if bias is None else share(layout.chunks, width),
        share(states, width) if wants_first else None,
    )
    exchange, assembly = _exchange(layout, x), ""
    if exchange == "lanes":
        assembly = exchange_assembly(layout.states)
    elif exchange:
        assembly = tensor_core_assembly()
    kernels.scan_backward_kernel[grid](
        x, dt, rates, B, C, D, z, bias, flags, borders, grad_y, entries, *grads,
        length, width, layout.chunk, states, *_strides(x, dt, z, B, C), 0,
        N=layout.states, CHANNELS=layout.channels, BLOCK=BLOCK, HALF=HALF,
        EXCHANGE=exchange, ASSEMBLY=assembly,
        CONSTRAINTS=exchange_constraints(layout.states) if exchange else "",
        HAS_ENTRY=entries is not None, HAS_RESET=flags is not None, HAS_BIAS=bias is not None,
        HAS_D=D is not None, HAS_Z=z is not None, WANTS_FIRST=wants_first, num_warps=1, **masks,
    )  # fmt: skip
    return grads
