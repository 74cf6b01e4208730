"""A whole optimizer update on CUDA in three launches: the gradients' norm, the step's numbers, AdamW.

    gradients --> gradient_squares: a sum per block --> decide: norm, clip, step size, finite?
        |                                                            |
        +---------> adamw: a program per block of a weight <---------+
                      writes average, square, fp32 master weight and bf16 working weight

In torch the same update takes one pass to convert the gradients, two for their norm, one for AdamW and one to
update the working weights, each over hundreds of small tensors, and a dozen kernels for single numbers in
between. Here a table of addresses, one row per parameter, leads to all tensors at once. Gradients are read in
their own type, and working weights are written while the new master weights are in registers.

Nothing is updated if the loss or the norm isn't finite. All sums have a fixed order.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192
"""Elements per program."""
PIECE = 1024
"""Elements that a program holds at a time."""

# Columns of the table: addresses (0 for none), elements, whether the gradient is bfloat16.
WEIGHT, GRADIENT, AVERAGE, SQUARE, WORKING, SIZE, IS_BF16 = (tl.constexpr(column) for column in range(7))
COLUMNS = tl.constexpr(7)
# The numbers that the update reads, in float32.
SCALE, STEP_SIZE, ROOT, RATE, GOOD = (tl.constexpr(index) for index in range(5))
NUMBERS = 5
# Settings, in float64.
BETA1, BETA2, CLIP = (tl.constexpr(index) for index in range(3))


@triton.jit
def _at(entry, column: tl.constexpr, kind: tl.constexpr):
    """The tensor whose address is in a column of the table.

    Tensors of torch begin at multiples of 16 bytes.
    """
    return tl.multiple_of(tl.load(entry + column).to(tl.pointer_type(kind)), 16)


@triton.jit
def _indices(first, PIECE: tl.constexpr):
    """Indices of a piece, four per lane for every type, so that no data moves between lanes."""
    return tl.max_contiguous(first + tl.arange(0, PIECE), 4)


@triton.jit
def _some(pointer, at, size, FULL: tl.constexpr):
    """Elements in float32, zeros from `size` on."""
    if FULL:
        return tl.load(pointer + at).to(tl.float32)
    return tl.load(pointer + at, mask=at < size, other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, at, value, size, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + at, value)
    else:
        tl.store(pointer + at, value, mask=at < size)


@triton.jit
def _gradient(entry, at, size, FULL: tl.constexpr):
    """Elements of the gradient, converted to float32."""
    if tl.load(entry + IS_BF16) != 0:
        value = _some(_at(entry, GRADIENT, tl.bfloat16), at, size, FULL)
    else:
        value = _some(_at(entry, GRADIENT, tl.float32), at, size, FULL)
    return value


@triton.jit
def _sum_of_squares(entry, first, size, FULL: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr):
    total = tl.zeros((PIECE,), tl.float32)
    for start in range(first, tl.minimum(first + BLOCK, size), PIECE):
        at = _indices(tl.multiple_of(start, PIECE), PIECE)
        value = _gradient(entry, at, size, FULL)
        total += value * value
    return tl.sum(total, 0)


@triton.jit
def gradient_squares_kernel(table, blocks, partial, BLOCK: tl.constexpr, PIECE: tl.constexpr):
    """The sum of squares of one block of one gradient."""
    program = tl.program_id(0)
    entry = table + tl.load(blocks + 2 * program) * COLUMNS
    first = tl.multiple_of(tl.load(blocks + 2 * program + 1), BLOCK)
    size = tl.load(entry + SIZE)
    # Without a mask a lane reads and writes 16 bytes at a time.
    if first + BLOCK <= size:
        total = _sum_of_squares(entry, first, size, True, BLOCK, PIECE)
    else:
        total = _sum_of_squares(entry, first, size, False, BLOCK, PIECE)
    tl.store(partial + program, total)


@triton.jit
def _power(base, exponent):
    """base ** exponent in float64, for an integer exponent below 2 ** 31."""
    power = base * 0.0 + 1.0
    for bit in range(31):
        power = tl.where((exponent >> bit) & 1 == 1, power * base, power)
        base *= base
    return power


@triton.jit(do_not_specialize=["count"])
def decide_kernel(
    partial, settings, loss, rate, slot, steps, numbers, good, ring, count,
    GROUPS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute the norm from the sums of squares, and from it and the step all numbers of the update."""
    column = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), tl.float32)
    for start in range(0, count, WIDE):
        total += tl.load(partial + start + column, mask=start + column < count, other=0.0)
    norm = tl.sqrt(tl.sum(total, 0))
    loss_value = tl.load(loss)
    into = ring + tl.load(slot) * 2
    tl.store(into, loss_value)
    tl.store(into + 1, norm)
    # A comparison with NaN is false.
    finite = (tl.abs(loss_value) < float("inf")) & (tl.abs(norm) < float("inf"))
    tl.store(good, finite.to(tl.uint8))
    clip = tl.load(settings + CLIP).to(tl.float32)
    scale = tl.where(clip > 0, tl.minimum(clip / (norm + 1e-6), 1.0), 1.0)
    step = tl.load(steps[0]) + 1.0
    for group in tl.static_range(GROUPS):
        tl.store(steps[group], tl.where(finite, step, step - 1.0))
    taken = step.to(tl.int32)
    learning_rate = tl.load(rate)
    first = 1.0 - _power(tl.load(settings + BETA1), taken)
    second = 1.0 - _power(tl.load(settings + BETA2), taken)
    tl.store(numbers + SCALE, scale)
    tl.store(numbers + STEP_SIZE, (learning_rate / first).to(tl.float32))
    tl.store(numbers + ROOT, tl.sqrt(second.to(tl.float32)))
    tl.store(numbers + RATE, learning_rate.to(tl.float32))
    tl.store(numbers + GOOD, finite.to(tl.float32))


@triton.jit
def _update(
    entry, first, size, beta1, beta2, scale, step_size, root, shrunk, eps,
    FULL: tl.constexpr, BLOCK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """AdamW (arXiv 1711.05101, algorithm 2) for one block."""
    weight = _at(entry, WEIGHT, tl.float32)
    average = _at(entry, AVERAGE, tl.float32)
    square = _at(entry, SQUARE, tl.float32)
    for start in range(first, tl.minimum(first + BLOCK, size), PIECE):
        at = _indices(tl.multiple_of(start, PIECE), PIECE)
        gradient = _gradient(entry, at, size, FULL) * scale
        m = _some(average, at, size, FULL)
        v = _some(square, at, size, FULL)
        w = _some(weight, at, size, FULL) * shrunk
        m = beta1 * m + (1.0 - beta1) * gradient
        v = beta2 * v + (1.0 - beta2) * gradient * gradient
        w -= step_size * m / (tl.sqrt(v) / root + eps)
        _put(average, at, m, size, FULL)
        _put(square, at, v, size, FULL)
        _put(weight, at, w, size, FULL)
        if tl.load(entry + WORKING) != 0:
            _put(_at(entry, WORKING, tl.bfloat16), at, w.to(tl.bfloat16), size, FULL)


@triton.jit
def adamw_kernel(
    table, blocks, decays, settings, numbers, eps, BLOCK: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    """Update one block of one parameter and its working weight, if the step's numbers are finite."""
    program = tl.program_id(0)
    row = tl.load(blocks + 2 * program)
    entry = table + row * COLUMNS
    first = tl.multiple_of(tl.load(blocks + 2 * program + 1), BLOCK)
    size = tl.load(entry + SIZE)
    beta1 = tl.load(settings + BETA1).to(tl.float32)
    beta2 = tl.load(settings + BETA2).to(tl.float32)
    scale, step_size = tl.load(numbers + SCALE), tl.load(numbers + STEP_SIZE)
    root = tl.load(numbers + ROOT)
    shrunk = 1.0 - tl.load(numbers + RATE) * tl.load(decays + row)
    if tl.load(numbers + GOOD) != 0:
        if first + BLOCK <= size:
            _update(entry, first, size, beta1, beta2, scale, step_size, root, shrunk, eps, True, BLOCK, PIECE)
        else:
            _update(
                entry, first, size, beta1, beta2, scale, step_size, root, shrunk, eps, False, BLOCK, PIECE
            )


class FusedUpdate:
    """AdamW for all parameters at once.

    Attributes:
        good: whether the last update was applied, a bool on the device.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        clip: float,
        working_weight_of: Callable[[Tensor], Tensor | None] = lambda _: None,
        others: Sequence[Tensor] = (),
    ) -> None:
        """Update the `param_groups` of an AdamW optimizer.

        Args:
            groups: each with `params`, their `averages` and `squares`, all float32, `step` (scalar float32
                on the device) and `weight_decay`; `betas` and `eps` are those of the first.
            clip: the largest norm of all gradients; 0 for no limit.
            working_weight_of: returns a parameter's bfloat16 working weight, which is updated too, or None.
            others: parameters that count toward the norm but aren't updated here.
        """
        self._parameters: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self._working_weights = [working_weight_of(weight) for weight in self._parameters]
        self._working_weights += [None] * len(others)
        device = self._parameters[0].device
        self._others = list(others)
        self._fixed = [
            (weight.data_ptr(), average.data_ptr(), square.data_ptr())
            for group in groups
            for weight, average, square in zip(group["params"], group["averages"], group["squares"])
        ]
        self._fixed += [(0, 0, 0)] * len(others)
        self._steps = tuple(group["step"] for group in groups)
        decays = [group["weight_decay"] for group in groups for _ in group["params"]]
        self._decays = torch.tensor(decays, dtype=torch.float32, device=device)
        self._eps: float = groups[0]["eps"]
        settings = [*groups[0]["betas"], max(clip, 0.0)]
        self._settings = torch.tensor(settings, dtype=torch.float64, device=device)
        self._numbers = torch.zeros(NUMBERS, device=device)
        self._table = torch.zeros(len(self._fixed), COLUMNS.value, dtype=torch.int64, device=device)
        blocks = [
            (row, first)
            for row, weight in enumerate(self.parameters)
            for first in range(0, weight.numel(), BLOCK)
        ]
        # Blocks of updated parameters come first.
        self._updated = sum(row < len(self._parameters) for row, _ in blocks)
        self._blocks = torch.tensor(blocks, dtype=torch.int32, device=device)
        self._partial = torch.zeros(len(blocks), device=device)
        self.good = torch.zeros((), dtype=torch.bool, device=device)
        self._gradients: list[Tensor] = []
        self._tabled: list[list[int]] = []

    @torch.no_grad()
    def step(self, gradients: list[Tensor], loss: Tensor, rate: Tensor, slot: Tensor, ring: Tensor) -> None:
        """Clip and update, or change nothing if a number isn't finite. Loss and norm go to `ring`.

        Args:
            gradients: of `parameters`, float32 or bfloat16.
            loss: scalar float32.
            rate: the learning rate, scalar float64.
            slot: the row of the ring, int64.
            ring: (slots, 2), float32.
        """
        # A gradient may be a slice of another tensor, so it may begin at any address.
        self._gradients = [
            tensor if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 else tensor.contiguous().clone()
            for tensor in gradients
        ]
        if not (self._table.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.find_gradients()
        programs = len(self._blocks)
        options = {"BLOCK": BLOCK, "PIECE": PIECE, "num_warps": 4}
        gradient_squares_kernel[(programs,)](self._table, self._blocks, self._partial, **options)
        decide_kernel[(1,)](
            self._partial, self._settings, loss, rate, slot, self._steps, self._numbers,
            self.good.view(torch.uint8), ring, programs, GROUPS=len(self._steps), WIDE=1024, num_warps=8,
        )  # fmt: skip
        adamw_kernel[(self._updated,)](
            self._table, self._blocks, self._decays, self._settings, self._numbers, self._eps, **options
        )

    def find_gradients(self) -> None:
        """Tell the kernels where the latest gradients are.

        While a graph is being recorded, nothing can be sent to the device: call this before its first replay.
        """
        rows = []
        for fixed, gradient, working in zip(self._fixed, self._gradients, self._working_weights):
            weight, average, square = fixed
            into = 0 if working is None else working.data_ptr()
            is_bf16 = int(gradient.dtype == torch.bfloat16)
            rows.append([weight, gradient.data_ptr(), average, square, into, gradient.numel(), is_bf16])
        if rows != self._tabled:
            self._table.copy_(torch.tensor(rows))
            self._tabled = rows

    @property
    def parameters(self) -> list[Tensor]:
        """The groups' parameters, then the others: the order of the gradients that `step` takes."""
        return [*self._parameters, *self._others]
