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
import struct
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from core.ops import selective_scan_kernels as kernels

BLOCK = 8
"""Steps from border to border."""
HALF = 4
"""Steps whose states the backward holds in registers at a time."""
BACKWARD_REGISTERS = {16: 168}
"""The most a lane may use with so many channels a warp, so that more warps fit; as it comes elsewhere."""
LANES = 32
LOG2_E = 1.4426950408889634
MIN_CHUNK = 64
SPLIT_BELOW = 7
"""With fewer warps a processor than this, channels are shared by two lanes to have more."""
CHUNK_BELOW = 5
"""With still fewer, time is cut into chunks,"""
WARPS_PER_PROCESSOR = 32
"""to have about so many."""
FORCE_CHANNELS = 0


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


def exchange_constraints(registers: int) -> str:
    """The registers that an exchange of two tiles with so many each reads and writes."""
    return ",".join(["=&r"] * registers + ["r"] * (2 * registers))


def tensor_core_assembly(channels: int) -> str:
    """PTX with the effect of `exchange_assembly(16)` up to order, most of it on the tensor cores.

    A product with a matrix of ones adds a register over four lanes, four registers at a time. The tensor
    cores read 10 bits of fraction and drop the rest; the last line undoes the mean of that. With 32 channels
    lane l ends with the total of index 16 (l / 16) + 4 (l mod 4) + 2 (l / 8 mod 2) + l / 4 mod 2. With 16
    channels, two lanes to each, a lane has 8 + 8 registers and ends with that index of them, less 16 (l / 16).
    """
    inputs = channels  # registers of both tiles: 2 x 16 states x channels / 32
    names = "pq"[: inputs // 16]
    lines = [
        ".reg .b32 lane, group, bit, sent, kept, got; .reg .pred upper; .reg .b32 one<8>;",
        ".reg .f32 p<4>; .reg .f32 q<4>; .reg .b32 v<7>; mov.u32 lane, %laneid; shr.u32 group, lane, 2;",
    ]
    for i in range(8):
        lines.append(f"setp.eq.u32 upper, group, {i}; selp.b32 one{i}, 0x3f800000, 0, upper;")
    for index, name in enumerate(names):
        into = ", ".join(f"{name}{i}" for i in range(4))
        lines += [f"mov.f32 {name}{i}, 0f00000000;" for i in range(4)]
        for j in range(4):
            first = inputs // 2 + 16 * index + 4 * j
            factors = ", ".join(f"${first + i}" for i in range(4))
            lines.append(
                "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                f"{{{into}}}, {{{factors}}}, {{one{2 * j}, one{2 * j + 1}}}, {{{into}}};"
            )
    values, count = [f"{name}{i}" for name in names for i in (0, 2, 1, 3)], 0
    for distance in (16, 8, 4) if len(names) > 1 else (8, 4):
        half = len(values) // 2
        lines.append(f"and.b32 bit, lane, {distance}; setp.ne.b32 upper, bit, 0;")
        merged = []
        for low, high in zip(values[:half], values[half:]):
            lines.append(f"selp.b32 sent, {low}, {high}, upper; selp.b32 kept, {high}, {low}, upper;")
            lines.append(f"shfl.sync.bfly.b32 got, sent, {distance}, 0x1f, 0xffffffff;")
            lines.append(f"add.f32 v{count}, kept, got;")
            merged.append(f"v{count}")
            count += 1
        values = merged
    lines += [f"mul.f32 $0, {values[0]}, 0f{struct.pack('>f', 1 + 0.7213 * 2**-11).hex()};"]
    lines += [f"mov.b32 ${i}, 0;" for i in range(1, inputs // 2)]
    return "{ " + "\n".join(lines) + " }"


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
    *,
    narrow: bool = False,
) -> Plan:
    """The layout for (batch, length, width) with `states` a channel; `chunk` forces how time is cut.

    `narrow` says that the inputs have 16 bits; then a channel may be shared by two lanes.
    """
    padded = max(4, triton.next_power_of_2(states))
    channels = LANES if padded <= 16 else LANES * 16 // padded
    processors = _processors(device)
    if FORCE_CHANNELS:
        channels = FORCE_CHANNELS
    elif narrow and padded == 16 and batch * triton.cdiv(width, LANES) < SPLIT_BELOW * processors:
        channels = 16
    if chunk == 0:
        warps = batch * triton.cdiv(width, channels)
        chunks = 1 if warps >= CHUNK_BELOW * processors else triton.cdiv(WARPS_PER_PROCESSOR * processors, warps)
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


@torch.library.custom_op(
    "mamba_tui::selective_scan",
    mutates_args=(),
    schema=f"({INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _operator(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    inputs = [_rows(tensor) for tensor in (x, dt, B, C, z)]
    layout = plan(*x.shape, A.shape[1], x.device, chunk, narrow=x.element_size() == 2)
    y, borders, last, sums = _forward(layout, inputs, _rates(A), D, dt_bias, _state(h0), _flags(reset), keep)
    nothing = last.new_empty(0)
    return (
        y,
        last,
        (nothing if borders is None else borders).view(torch.int32),
        (nothing.clone() if sums is None else sums).view(torch.int32),
    )


@_operator.register_fake
def _(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any,
    chunk: int, keep: bool,
) -> Any:  # fmt: skip
    batch, length, width = x.shape
    states = A.shape[1]
    layout = plan(batch, length, width, states, x.device, chunk, narrow=x.element_size() == 2)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    blocks = -(-length // BLOCK)
    return (
        new(batch, length, width, dtype=x.dtype),
        new(batch, states, width, dtype=torch.float32),
        new(*((batch, blocks, states, width) if keep else (0,)), dtype=torch.int32),
        new(*((batch, layout.chunks, width) if layout.chunks > 1 else (0,)), dtype=torch.int32),
    )


@torch.library.custom_op(
    "mamba_tui::selective_scan_backward",
    mutates_args=(),
    schema=f"({INPUTS}, Tensor borders, Tensor sums, Tensor grad_y, Tensor? grad_last, bool wants_first)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_operator(
    x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, h0: Any, reset: Any, chunk: int,
    borders: Any, sums: Any, grad_y: Any, grad_last: Any, wants_first: bool,
) -> Any:  # fmt: skip
    inputs = [_rows(tensor) for tensor in (x, dt, B, C, z)]
    layout = plan(*x.shape, A.shape[1], x.device, chunk, narrow=x.element_size() == 2)
    states, padded = A.shape[1], layout.states
    grad_x, grad_dt, grad_z, grad_A, grad_BC, grad_D, grad_bias, grad_first = _backward(
        layout, inputs, _rates(A), D, dt_bias, _flags(reset), borders.view(torch.float32),
        _found(sums.view(torch.float32)), grad_y.contiguous(),
        None if grad_last is None else grad_last.contiguous(), wants_first,
    )  # fmt: skip
    both = _in_order(grad_BC.sum(1), layout, x)
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


@_backward_operator.register_fake
def _(
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


_operator.register_autograd(_gradients, setup_context=_keep)


def _exchange(layout: Plan, x: Tensor) -> str:
    """How dB and dC are summed over channels."""
    if layout.interpreted or layout.states > 16:
        return ""
    if layout.states == 16 and x.element_size() == 2:
        return "tensor cores" if layout.channels == LANES else "pairs"
    return "lanes" if layout.channels == LANES else ""


def _in_order(sums: Tensor, layout: Plan, x: Tensor) -> Tensor:
    """Sums (..., 2N) of dB and dC, put in the order of states where the exchange left another."""
    if _exchange(layout, x) != "pairs":
        return sums
    return sums.unflatten(-1, (2, 2, 2, 2, 2)).permute(0, 1, 5, 6, 3, 4, 2).flatten(2)


def _strides(*tensors: Tensor | None) -> list[int]:
    """Strides over batch and time of each, zeros for a missing one."""
    return [
        stride for tensor in tensors for stride in (tensor.stride()[:2] if tensor is not None else (0, 0))
    ]


def _most_registers(layout: Plan) -> dict[str, int]:
    most = BACKWARD_REGISTERS.get(layout.channels)
    return {} if most is None or layout.interpreted else {"maxnreg": most}


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
) -> tuple[Any, ...]:
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
    exchange, assembly = _exchange(layout, x), ""
    if exchange == "lanes":
        assembly = exchange_assembly(layout.states)
    elif exchange:
        assembly = tensor_core_assembly(layout.channels)
    kernels.backward_kernel[grid](
        x, dt, rates, B, C, D, z, bias, flags, borders, grad_y, entries, *grads,
        length, width, layout.chunk, states, *_strides(x, dt, z, B, C), 0,
        N=layout.states, CHANNELS=layout.channels, BLOCK=BLOCK, HALF=HALF,
        EXCHANGE=exchange, ASSEMBLY=assembly,
        CONSTRAINTS=exchange_constraints(layout.states * layout.channels // LANES) if exchange else "",
        HAS_ENTRY=entries is not None, HAS_RESET=flags is not None, HAS_BIAS=bias is not None,
        HAS_D=D is not None, HAS_Z=z is not None, WANTS_FIRST=wants_first, num_warps=1,
        **_most_registers(layout), **masks,
    )  # fmt: skip
    return grads
