"""How a selective scan is divided among programs. All numbers were tuned on an H100
(benchmarks/RESULTS.md)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from core.ops.dispatch import processors_of

SPAN = 4
"""Steps from border to border; the backward holds their states in registers."""
BLOCK = 8
"""Steps between two reads of rows in the other passes."""
ROWS_AT = 2
BORDER_AT = 1
"""The steps of a span before which the backward reads the next span's rows and border."""
WEIGHTS_AHEAD, GATED_WEIGHTS_AHEAD = 2, 3
"""How many steps ahead the forward reads rows of B and C, without and with a gate; at most BLOCK."""
LANES = 32
MIN_CHUNK = 64
CHUNK_BELOW, SHORT_CHUNK_BELOW = 5, 3
"""With fewer warps per processor than this, time is cut into chunks; the second number is for short texts."""
FEW_CHUNKS = 2
"""A text is short if cutting makes at most this many chunks."""
WARPS_PER_PROCESSOR = 32
"""The most warps per processor that cutting aims for."""


@functools.cache
def has_tensor_float(device: torch.device) -> bool:
    """Whether the tensor cores take TF32."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Plan(NamedTuple):
    """How a scan is divided among programs."""

    states: int
    """N, padded to a power of two."""
    channels: int
    """Channels per warp."""
    chunk: int
    chunks: int
    interpreted: bool

    def grid(self, batch: int, width: int) -> tuple[int, int, int]:
        """Warps over channels, batch rows and chunks of time."""
        return triton.cdiv(width, self.channels), batch, self.chunks


def plan(
    batch: int,
    length: int,
    width: int,
    states: int,
    device: torch.device,
    chunk: int = 0,
) -> Plan:
    """The layout for (batch, length, width) with `states` per channel; `chunk` overrides how time is cut."""
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


def plan_of(x: Tensor, A: Tensor, chunk: int) -> Plan:
    """The layout for x (B, L, D) and A (D, N); `chunk` overrides how time is cut."""
    batch, length, width = x.shape
    return plan(batch, length, width, A.shape[1], x.device, chunk)


def border_numbers(layout: Plan, batch: int, length: int, width: int) -> int:
    """How many numbers all borders hold together: one tile per warp and span."""
    tiles = batch * triton.cdiv(length, SPAN) * triton.cdiv(width, layout.channels)
    return tiles * layout.states * layout.channels


def between_type(x: Tensor) -> torch.dtype:
    """The type of the large tensors that pass between kernels: borders, and shares of dB and dC."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def exchange_kind(layout: Plan, x: Tensor) -> str:
    """How dB and dC are summed over channels."""
    if layout.interpreted or layout.states > 16:
        return ""
    if layout.states == 16 and x.element_size() == 2 and has_tensor_float(x.device):
        return "tensor cores"
    return "lanes"


class Registers(NamedTuple):
    """How the backward uses its registers, which are scarce."""

    kept: int
    """How many of a span's last steps keep their decays instead of computing them again."""
    ahead: int
    """How many steps ahead rows of B and C are read, at most SPAN. 0: in the step itself."""


def registers(layout: Plan, x: Tensor) -> Registers:
    """How the backward of a scan of x uses its registers."""
    if layout.chunks > 1:
        return Registers(2, 0)
    return Registers(1, 0) if x.element_size() == 2 else Registers(1, 1)
