"""A feed-forward layer on CUDA as one operation: up, squared ReLU, down.

    forward    x (M, C) -- up^T --> max(., 0)^2 --> squares (M, J) -- down^T --> out (M, C')
                       squares_kernel                              cuBLAS
    backward   grad (M, C') -- down --> times 2 sqrt(squares) --> through (M, J)
                           squares_kernel
               grad_x = through up    grad_up = through^T x    grad_down = grad^T squares      cuBLAS

Squared ReLU is applied to a tile of the product while it is still in registers, and so is its derivative in
the backward, so neither costs a pass over memory. Only the squares are kept: the derivative of x^2 is twice
its root. A program computes one output tile after another, while the tensor copy engine reads ahead the
tiles of the factors.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from core.ops.dispatch import processors_of
from core.ops.operators import define, hidden


class Tiles(NamedTuple):
    """How a product is divided into tiles."""

    rows: int
    columns: int
    stages: int
    """Tiles of both factors that are held in shared memory at once."""
    warps: int
    programs: int
    """Programs per processor."""
    flat: bool
    """Whether a program starts reading its next tile while it finishes one; if not, another program's reads
    overlap."""


DEPTH = 64
"""Depth of a tile of a factor."""
LARGE, LARGE_BACKWARD = Tiles(128, 256, 4, 8, 1, True), Tiles(128, 256, 3, 8, 1, True)
SMALL = Tiles(128, 128, 3, 4, 2, False)
ROUNDS = 4
"""Large tiles are faster if there are at least this many per processor."""


@triton.jit
def _finish(product, squares, row, column, BACKWARD: tl.constexpr):
    """The squares of positive products; backward, the gradient through that."""
    if BACKWARD:
        return product * (2.0 * tl.sqrt(squares.load([row, column]).to(tl.float32)))
    product = tl.maximum(product, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return product * product


@triton.jit
def squares_kernel(
    left, right, squares, out, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BACKWARD: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """out (M, N) = max(left right^T, 0)^2 of left (M, K) and right (N, K).

    Backward, out = left right * 2 sqrt(squares) of left (M, K), right (K, N) and squares (M, N).
    """
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLAT):
        row, column = tile // across * ROWS, tile % across * COLUMNS
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, depth, DEPTH):
            first = left.load([row, k])
            if BACKWARD:
                product = tl.dot(first, right.load([k, column]), product)
            else:
                product = tl.dot(first, right.load([column, k]).T, product)
        # Written in two halves, which need half the shared memory.
        low, high = product.reshape((ROWS, 2, COLUMNS // 2)).permute(0, 2, 1).split()
        low = _finish(low, squares, row, column, BACKWARD)
        out.store([row, column], low.to(out.dtype))
        column += COLUMNS // 2
        high = _finish(high, squares, row, column, BACKWARD)
        out.store([row, column], high.to(out.dtype))


def _tiles(out: Tensor, backward: bool) -> Tiles:
    large = triton.cdiv(out.shape[0], LARGE.rows) * triton.cdiv(out.shape[1], LARGE.columns)
    if large < ROUNDS * processors_of(out.device):
        return SMALL
    return LARGE_BACKWARD if backward else LARGE


def _launch(left: Tensor, right: Tensor, squares: Tensor | None, out: Tensor) -> None:
    backward = squares is not None
    tiles = _tiles(out, backward)
    count = triton.cdiv(out.shape[0], tiles.rows) * triton.cdiv(out.shape[1], tiles.columns)
    half = [tiles.rows, tiles.columns // 2]
    right_tile = [DEPTH, tiles.columns] if backward else [tiles.columns, DEPTH]
    into = TensorDescriptor.from_tensor(out, half)
    squares_kernel[(min(count, tiles.programs * processors_of(out.device)),)](
        TensorDescriptor.from_tensor(left, [tiles.rows, DEPTH]),
        TensorDescriptor.from_tensor(right, right_tile),
        into if squares is None else TensorDescriptor.from_tensor(squares, half),
        into, *out.shape, left.shape[1],
        ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=DEPTH, BACKWARD=backward, FLAT=tiles.flat,
        num_stages=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip


def _squares(x: Tensor, up: Tensor) -> Tensor:
    """max(x up^T, 0)^2: x (M, C), up (J, C) to (M, J)."""
    squares = x.new_empty(x.shape[0], up.shape[0])
    _launch(x, up, None, squares)
    return squares


def _squares_backward(grad: Tensor, down: Tensor, squares: Tensor) -> Tensor:
    """The gradient before the squared ReLU, (M, J), from grad (M, C'), down (C', J) and squares (M, J)."""
    through = torch.empty_like(squares)
    _launch(grad, down, squares, through)
    return through


def _run_feed_forward(x, up, down):
    squares = _squares(x.contiguous(), up.contiguous())
    return squares @ down.t(), hidden(squares)


def _fake_feed_forward(x, up, down):
    rows = x.shape[0]
    return x.new_empty(rows, down.shape[0]), hidden(x.new_empty(rows, up.shape[0]))


def _run_feed_forward_backward(x, up, down, squares, grad):
    squares, grad = squares.view(x.dtype), grad.contiguous()
    through = _squares_backward(grad, down.contiguous(), squares)
    return through @ up, through.t() @ x, grad.t() @ squares


def _fake_feed_forward_backward(x, up, down, squares, grad):
    return x.new_empty(x.shape), up.new_empty(up.shape), down.new_empty(down.shape)


_backward_operator = define(
    "feed_forward_backward",
    "(Tensor x, Tensor up, Tensor down, Tensor squares, Tensor grad) -> (Tensor, Tensor, Tensor)",
    _run_feed_forward_backward,
    _fake_feed_forward_backward,
)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    return tuple(_backward_operator(*ctx.saved_tensors, grad))


_operator = define(
    "feed_forward",
    "(Tensor x, Tensor up, Tensor down) -> (Tensor, Tensor)",
    _run_feed_forward,
    _fake_feed_forward,
    keep=_keep,
    gradients=_gradients,
)


def feed_forward_triton(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """max(x up^T, 0)^2 down^T.

    Args:
        x: (..., C).
        up: (J, C), cast to x's type like `down`.
        down: (C', J).

    Returns:
        (..., C').
    """
    out: Tensor = _operator(x.flatten(0, -2), up.to(x.dtype), down.to(x.dtype))[0]
    return out.unflatten(0, x.shape[:-1])
