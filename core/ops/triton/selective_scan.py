"""The selective scan on CUDA, in Triton: same function as `core.ops.selective_scan`.

One warp owns 32 channels and walks through time. A lane keeps all N states of its channel in registers, so
the sum over N costs nothing and the forward exchanges nothing. What bounds the work is one exponential per
state and step; everything else is arranged to stay in its shadow.

- B and C are the same for all channels: a small kernel before the scan spells them out as float32 rows, so
  that the scan reads four values at a time and unpacks nothing.
- When gradients are wanted the forward keeps the state before every SPAN steps (a border), for bfloat16
  inputs in bfloat16: they are used for gradients only. The backward recomputes the states in between.
- dB and dC are sums over channels, across lanes. A lane holds 2N values; an exchange that halves the list at
  each step needs 2N - 1 exchanges where plain reductions need 10 N. For 16-bit inputs the tensor cores do
  most of it. Every warp writes its share; one kernel at the end adds all shares in a fixed order.
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

from core.ops.dispatch import processors_of
from core.ops.operators import define
from core.ops.triton import selective_scan_backward as backward_kernels
from core.ops.triton import selective_scan_forward as forward_kernels
from core.ops.triton.warp_sums import exchange_assembly, exchange_constraints, tensor_core_assembly

SPAN = 4
"""Steps from border to border, whose states the backward holds in registers."""
BLOCK = 8
"""Steps of the other passes between two reads of rows."""
ROWS_AT = 2
BORDER_AT = 1
"""Before which steps of a span the backward reads the next span's rows and border."""
AHEAD = True
"""Whether the next block's rows are read before this one is computed."""
TOUCH = True
"""Whether the next block's rows of B and C are brought near before this one is computed."""
WEIGHTS_AHEAD, GATED_WEIGHTS_AHEAD = 2, 3
"""Steps before their use that the forward reads rows of B and C, without and with a gate; at most BLOCK."""
LANES = 32
MIN_CHUNK = 64
CHUNK_BELOW, SHORT_CHUNK_BELOW = 5, 3
"""With fewer warps a processor than this, time is cut into chunks; the second where it makes few chunks,"""
FEW_CHUNKS = 2
WARPS_PER_PROCESSOR = 32
"""to have at most so many. All were chosen on an H100 (benchmarks/RESULTS.md)."""


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
    processors = processors_of(device)
    if chunk == 0:
        warps = batch * triton.cdiv(width, channels)
        few = triton.cdiv(length, MIN_CHUNK) <= FEW_CHUNKS
        enough = warps >= (SHORT_CHUNK_BELOW if few else CHUNK_BELOW) * processors
        chunks = 1 if enough else WARPS_PER_PROCESSOR * processors // warps
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
    y, last, _, _, _ = _operator(x, dt, A, B, C, D, z, dt_bias, h0, reset, chunk or 0, keep)
    return y, last.transpose(1, 2)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its last dimension contiguous; other strides may be anything."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _state(tensor: Tensor | None) -> Tensor | None:
    """(B, D, N) to a contiguous float32 (B, N, D)."""
    return None if tensor is None else tensor.transpose(1, 2).to(torch.float32).contiguous()


def _borders(layout: Plan, batch: int, length: int, width: int) -> int:
    """Numbers in all borders: a tile for each warp and span."""
    tiles = batch * triton.cdiv(length, SPAN) * triton.cdiv(width, layout.channels)
    return tiles * layout.states * layout.channels


def _between_type(x: Tensor) -> torch.dtype:
    """Of the many numbers that pass between kernels: borders, and shares of dB and dC."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def _flags(reset: Tensor | None) -> Tensor | None:
    return None if reset is None else reset.contiguous().view(torch.uint8)


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
    layout = _plan_of(x, A, chunk)
    rates, rows = _prepare(layout, A, B, C)
    y, borders, last = _forward(
        layout, [_rows(tensor) for tensor in (x, dt, z)], rates, rows, D, dt_bias,
        _state(h0), _flags(reset), keep,
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
    layout = _plan_of(x, A, chunk)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    border = _borders(layout, batch, length, width) * _between_type(x).itemsize // 4
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
    """The gradients; that of z is written to `into` (B, L, D) if given, whose channels are contiguous."""
    layout = _plan_of(x, A, chunk)
    grad_x, grad_dt, grad_z, *shares, grad_first = _backward(
        layout, [_rows(tensor) for tensor in (x, dt, z)], rates.view(torch.float32), rows.view(torch.float32),
        D, dt_bias, _flags(reset), borders.view(_between_type(x)), grad_y.contiguous(),
        None if grad_last is None else grad_last.contiguous(), wants_first, into,
    )  # fmt: skip
    grad_A, grad_B, grad_C, grad_D, grad_bias = _finish(layout, shares, A, B, C, D, dt_bias)
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


class Registers(NamedTuple):
    """What the backward spends its few registers on; chosen on an H100."""

    kept: int
    """Newest steps of a span whose decays are held instead of being computed again."""
    ahead: int
    """Steps before their use that rows of B and C are read; at most SPAN. 0: in the step itself."""


def _registers(layout: Plan, x: Tensor) -> Registers:
    if layout.chunks > 1:
        return Registers(2, 0)
    return Registers(1, 0) if x.element_size() == 2 else Registers(1, 1)


def _masks(layout: Plan, length: int, width: int, states: int, block: int) -> dict[str, Any]:
    even = length % block == 0
    full = even and width % layout.channels == 0 and states == layout.states
    return {"EVEN": even, "FULL": full, "BLOCK": block, "AHEAD": AHEAD, "TOUCH": TOUCH}


def _prepare(layout: Plan, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Rates (N, D) for powers of two and rows (B, L, 2N padded) of B and C, in float32."""
    batch, length, states = B.shape
    width = A.shape[0]
    rates = torch.empty(states, width, dtype=torch.float32, device=A.device)
    rows = torch.empty(batch, length, 2 * layout.states, dtype=torch.float32, device=A.device)
    per_program = 1024 // layout.states
    row_programs = triton.cdiv(batch * length, per_program)
    forward_kernels.scan_prepare_kernel[(row_programs + triton.cdiv(width, per_program),)](
        A, B, C, rates, rows, length, batch * length, row_programs, width, states,
        *A.stride(), *B.stride(), *C.stride(),
        N=layout.states, ROWS=per_program, CHANNELS=per_program, num_warps=4,
    )  # fmt: skip
    return rates, rows


def _forward(
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
        borders = rates.new_empty(_borders(layout, batch, length, width), dtype=_between_type(x))
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


def _backward(
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
    """Gradients of x, dt, z (in `into`, if given), then shares of those of A, B and C, D, the bias.

    Last that of h0, (B, N, D).
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
        share(grid[0], length, 2 * layout.states, dtype=_between_type(x)),
        None if D is None else share(layout.chunks, width),
        None if bias is None else share(layout.chunks, width),
        share(states, width) if wants_first else None,
    )
    exchange, assembly = _exchange(layout, x), ""
    if exchange == "lanes":
        assembly = exchange_assembly(layout.states)
    elif exchange:
        assembly = tensor_core_assembly()
    kept, ahead = _registers(layout, x)
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


def _finish(
    layout: Plan,
    shares: list[Tensor],
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of A, B, C, D and the bias from shares of those of A, B and C, D, the bias."""
    grads = [
        None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=A.device)
        for tensor in (A, B, C, D, bias)
    ]
    batch, length, states = B.shape
    width, groups = A.shape[0], shares[1].shape[1]
    # As many shares as make 16 bytes a thread and more.
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
