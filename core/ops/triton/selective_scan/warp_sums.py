"""PTX that sums many values over the lanes of a warp at once, for dB and dC of the selective scan.

Each lane has two tiles of registers. Summing every register over all lanes separately would take five
exchanges per register. Here every exchange halves the list of values, and each lane ends with one total.
"""

from __future__ import annotations

import struct


def exchange_assembly(states: int) -> str:
    """PTX that sums 2 x `states` values over the 32 lanes of a warp, each lane ending with one total.

    In every exchange a lane sends the half of its list that it won't keep. Lane l ends with the total of
    index l * 2 * states // 32; it is the first output, and the others are zero.
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
    """Constraints for an exchange of two tiles with this many registers each."""
    return ",".join(["=&r"] * registers + ["r"] * (2 * registers))


def tensor_core_assembly() -> str:
    """PTX that does what `exchange_assembly(16)` does, in another order and mostly on the tensor cores.

    A product with a matrix of ones sums registers over four lanes, four registers at a time. The tensor
    cores read 10 bits of fraction and drop the rest; the last line corrects for the average loss. Lane l
    ends with the total of index 16 (l / 16) + 4 (l mod 4) + 2 (l / 8 mod 2) + l / 4 mod 2.
    """
    lines = [
        ".reg .b32 lane, group, bit, sent, kept, got; .reg .pred upper; .reg .b32 one<8>;",
        ".reg .f32 p<4>; .reg .f32 q<4>; .reg .b32 v<7>; mov.u32 lane, %laneid; shr.u32 group, lane, 2;",
    ]
    for i in range(8):
        lines.append(f"setp.eq.u32 upper, group, {i}; selp.b32 one{i}, 0x3f800000, 0, upper;")
    for name, first in (("p", 16), ("q", 32)):
        into = ", ".join(f"{name}{i}" for i in range(4))
        lines += [f"mov.f32 {name}{i}, 0f00000000;" for i in range(4)]
        for j in range(4):
            factors = ", ".join(f"${first + 4 * j + i}" for i in range(4))
            lines.append(
                "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                f"{{{into}}}, {{{factors}}}, {{one{2 * j}, one{2 * j + 1}}}, {{{into}}};"
            )
    values, count = [f"{name}{i}" for name in "pq" for i in (0, 2, 1, 3)], 0
    for distance in (16, 8, 4):
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
    lines += [f"mov.b32 ${i}, 0;" for i in range(1, 16)]
    return "{ " + "\n".join(lines) + " }"
