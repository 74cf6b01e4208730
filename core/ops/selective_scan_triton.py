"""The selective scan on CUDA, in Triton: same function as `core.ops.selective_scan`.

One warp owns 32 channels and walks through time. A lane keeps all N states of its channel in registers, so
the sum over N costs nothing and the forward exchanges nothing. What bounds the work is one exponential per
state and step; everything else is arranged to stay in its shadow.

- When gradients are wanted the forward keeps the state before every BLOCK steps (a border). The backward
  recomputes a block's states from its border, half a block at a time so that they fit in registers.
- dB and dC are sums over channels, across lanes. A lane holds 2N values; an exchange that halves the list at
  each step needs 2N - 1 exchanges where plain reductions need 10 N. Every warp writes its share, and the
  shares are added in a fixed order.
- Long texts in few channels leave the chip idle, so time is cut into chunks: each finds its own last state
  from zero, a short scan carries them on, and only then the chunks run with their true entry. Likewise
  backwards.

Inside, states are (..., N, D), channels innermost. Sources: arXiv 2312.00752 (the recurrence, and to recompute
it), arXiv 2405.21060 section 6 (states of chunks passed on).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops import selective_scan_kernels as kernels

BLOCK = 8
"""Steps from border to border."""
HALVES = 2
"""Parts of a block whose states the backward holds in registers one after the other."""
LANES = 32
LOG2_E = 1.4426950408889634
MIN_CHUNK = 64
WARPS_PER_PROCESSOR = 16
"""As many as there should be at least, so that waiting for memory is hidden."""


def exchange_assembly(states: int) -> str:
    """PTX that sums 2 x `states` values over the 32 lanes of a warp, each lane ending with one total.

    At every exchange a lane sends the half of its list that it will not keep. The total that lane l ends
    with has the index l * 2 * states // 32; it is the first output, the others are zero.
    """
    values = [f"${states + i}" for i in range(2 * states)]
    lines, count = [], 0
    for distance in (16, 8, 4, 2, 1):
        half = len(values) // 2
        lines.append(f"and.b32 bit, lane, {distance}; setp.ne.b32 upper, bit, 0;")
        merged = []
        for i in range(max(half, 1)):
            low, high = values[i], values[(i + half) % len(values)]
            if half:
                lines.append(f"selp.b32 sent, {low}, {high}, upper; selp.b32 kept, {high}, {low}, upper;")
            else:
                lines.append(f"mov.b32 sent, {low}; mov.b32 kept, {low};")
            lines.append(f"shfl.sync.bfly.b32 got, sent, {distance}, 0x1f, 0xffffffff;")
            lines.append(f"add.f32 v{count}, kept, got;")
            merged.append(f"v{count}")
            count += 1
        values = merged
    outputs = [f"mov.b32 $0, {values[0]};", *(f"mov.b32 ${i}, 0;" for i in range(1, states))]
    registers = ".reg .b32 lane, bit, sent, kept, got; .reg .pred upper;"
    registers += f" .reg .b32 v<{count}>; mov.u32 lane, %laneid;"
    return "{ " + "\n".join([registers, *lines, *outputs]) + " }"


def exchange_constraints(states: int) -> str:
    """The registers that `exchange_assembly` reads and writes."""
    return ",".join(["=&r"] * states + ["r"] * (2 * states))


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
    batch: int, length: int, width: int, states: int, device: torch.device, chunk: int | None = None
) -> Plan:
    """Choose the layout for (batch, length, width) with `states` a channel; `chunk` forces the chunk length."""
    padded = max(4, triton.next_power_of_2(states))
    channels = LANES if padded <= 16 else LANES * 16 // padded
    if chunk is None:
        warps = batch * triton.cdiv(width, channels)
        wanted = WARPS_PER_PROCESSOR * _processors(device)
        chunks = 1 if 2 * warps > wanted else triton.cdiv(wanted, warps)
        chunk = max(MIN_CHUNK, triton.cdiv(length, chunks))
    chunk = triton.cdiv(chunk, BLOCK) * BLOCK
    return Plan(padded, channels, chunk, max(1, triton.cdiv(length, chunk)), device.type != "cuda")


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
    return _SelectiveScan.apply(x, dt, A, B, C, D, z, dt_bias, h0, reset, chunk)


def _rows(tensor: Tensor | None) -> Tensor | None:
    """The tensor with its last dimension contiguous; other strides may be anything."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _state(tensor: Tensor | None) -> Tensor | None:
    """(B, D, N) to a contiguous float32 (B, N, D)."""
    return None if tensor is None else tensor.transpose(1, 2).to(torch.float32).contiguous()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        h0: Tensor | None,
        reset: Tensor | None,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        rates = (A.to(torch.float32) * LOG2_E).t().contiguous()
        inputs = [_rows(tensor) for tensor in (x, dt, B, C, z)]
        flags = None if reset is None else reset.contiguous().view(torch.uint8)
        batch, length, width = x.shape
        layout = plan(batch, length, width, A.shape[1], x.device, chunk)
        keep = any(ctx.needs_input_grad)
        y, borders, last, sums = _forward(layout, inputs, rates, D, dt_bias, _state(h0), flags, keep)
        if keep:
            ctx.save_for_backward(*inputs, A, rates, D, dt_bias, flags, borders, sums)
            ctx.layout = layout
        return y, last.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_y, grad_last = gradients
        *inputs, A, rates, D, dt_bias, flags, borders, sums = ctx.saved_tensors
        x, dt, B, C, z = inputs
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y
        wants_first = ctx.needs_input_grad[8]
        found = _backward(
            ctx.layout,
            inputs,
            rates,
            D,
            dt_bias,
            flags,
            borders,
            sums,
            grad_y.contiguous(),
            _state(grad_last),
            wants_first,
        )
        grad_x, grad_dt, grad_z, grad_A, grad_BC, grad_D, grad_bias, grad_first = found
        both = grad_BC.sum(1)
        states, padded = A.shape[1], ctx.layout.states
        return (
            grad_x,
            grad_dt,
            grad_A.flatten(0, 1).sum(0).t().to(A.dtype),
            both[..., :states].to(B.dtype),
            both[..., padded : padded + states].to(C.dtype),
            None if grad_D is None or D is None else grad_D.flatten(0, 1).sum(0).to(D.dtype),
            grad_z,
            None if grad_bias is None or dt_bias is None else grad_bias.flatten(0, 1).sum(0).to(dt_bias.dtype),
            None if grad_first is None else grad_first.transpose(1, 2),
            None,
            None,
        )


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides over batch and time of each, zeros for a missing one."""
    return [stride for tensor in tensors for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))]


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
    """Output, borders if `keep`, last state (B, N, D), and each chunk's sum of step sizes if there are more."""
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
        kernels.forward_kernel[grid](
            *tensors, None, y, None, entries, sums, *sizes,
            LOCAL=True, KEEP_BORDERS=False, HAS_ENTRY=False, **options,
        )  # fmt: skip
        _carry(layout, rates, sums, h0, entries, backward=False)
    kernels.forward_kernel[grid](
        *tensors, entries, y, borders, last, None, *sizes,
        LOCAL=False, KEEP_BORDERS=keep, HAS_ENTRY=entries is not None, **options,
    )  # fmt: skip
    return y, borders, last, sums


def _carry(
    layout: Plan, rates: Tensor, sums: Tensor, first: Tensor | None, local: Tensor, *, backward: bool
) -> None:
    states, width = rates.shape
    kernels.carry_kernel[(triton.cdiv(width, layout.channels), local.shape[0])](
        rates, sums, first, local, layout.chunks, width, states, 0,
        N=layout.states, CHANNELS=layout.channels, HAS_FIRST=first is not None, BACKWARD=backward, num_warps=1,
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
) -> tuple[Tensor | None, ...]:
    """Gradients of x, dt, z, and shares of those of A, B and C, D, bias to be added up; of h0 (B, N, D)."""
    x, dt, B, C, z = inputs
    assert x is not None and dt is not None
    batch, length, width = x.shape
    states = rates.shape[0]
    grid = layout.grid(batch, width)
    masks = _masks(layout, length, width, states)
    entries = grad_last
    if sums is not None:
        entries = rates.new_empty(batch, layout.chunks, states, width)
        kernels.backward_local_kernel[grid](
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
    exchange = not layout.interpreted and layout.states <= 16
    kernels.backward_kernel[grid](
        x, dt, rates, B, C, D, z, bias, flags, borders, grad_y, entries, *grads,
        length, width, layout.chunk, states, *_strides(x, dt, z, B, C), 0,
        N=layout.states, CHANNELS=layout.channels, BLOCK=BLOCK, HALVES=HALVES,
        EXCHANGE=exchange, ASSEMBLY=exchange_assembly(layout.states) if exchange else "",
        CONSTRAINTS=exchange_constraints(layout.states) if exchange else "",
        HAS_ENTRY=entries is not None, HAS_RESET=flags is not None, HAS_BIAS=bias is not None,
        HAS_D=D is not None, HAS_Z=z is not None, WANTS_FIRST=wants_first, num_warps=1, **masks,
    )  # fmt: skip
    return grads
