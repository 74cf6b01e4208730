"""Output head and cross-entropy on CUDA: same function as `core.ops.linear_cross_entropy`.

    for each chunk of rows of x:
        logits = x W^T                                        (rows, V), cuBLAS
        loss_kernel, one program per row, in place:
            norm = log(sum(exp(logits)))
            loss += (norm - logit of the target) / count      count: rows that are not ignored
            logits <- (exp(logits - norm) - 1 at the target) / count
        grad_x = logits W;  grad_W += logits^T x              cuBLAS, the sum in float32

Products run on the tensor cores in the product type, and so are the logits stored: at most `CHUNK_BYTES` of
them exist, once. The kernel reads a row once and holds it in registers; a row that is too long is read twice.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.dispatch import product_type
from core.ops.operators import define, hidden

CHUNK_BYTES = 1 << 31
"""Bytes of logits that exist at a time."""
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
HOLDS = ((1, 4096), (4, 16384), (8, 32768), (16, 106496), (32, 131072))
"""How many warps hold a row of up to how many bytes; longer rows are read twice. Fewer warps wait less for
each other. With 16, two programs fit in a processor's registers, so one computes while the other reads."""
REGISTERS = 64
"""Registers per thread, so that several programs of many warps fit; the compiler would use more."""


class Settings(NamedTuple):
    """How a program of the loss kernel walks through its row."""

    piece: int
    """Logits per piece."""
    warps: int
    held: int
    """Pieces that stay in registers after they are read."""


def _settings(columns: int, element_size: int) -> Settings:
    for warps, most in HOLDS:
        if columns * element_size <= most:
            # 16 bytes per thread; 8 if registers are scarce, because the running maximum takes as many.
            piece = 32 * warps * (4 if warps == 16 or element_size == 4 else 8)
            return Settings(piece, warps, triton.cdiv(columns, piece))
    return Settings(4096, 32, 0)


@triton.jit
def _columns(start, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Columns of a piece, one row of them per thread."""
    return start + tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _read(slots, start, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """The piece that begins at column `start`; `slots` point at the first piece."""
    if WHOLE:
        return tl.load(slots + start)
    column = _columns(start, slots.shape[0], slots.shape[1])
    return tl.load(slots + start, mask=column < COLUMNS, other=0.0)


@triton.jit
def _hide(piece, start, VOCABULARY: tl.constexpr, WHOLE: tl.constexpr):
    """A piece with -inf in columns that only pad the vocabulary."""
    if WHOLE:
        return piece
    return tl.where(_columns(start, piece.shape[0], piece.shape[1]) < VOCABULARY, piece, float("-inf"))


@triton.jit
def _higher(a, b, ASSEMBLY: tl.constexpr):
    if ASSEMBLY == "":
        return tl.maximum(a, b)
    return tl.inline_asm_elementwise(ASSEMBLY, "=r,r,r", [a, b], dtype=a.dtype, is_pure=True, pack=2)


@triton.jit
def _widen(piece, ASSEMBLY: tl.constexpr):
    if ASSEMBLY == "":
        return piece.to(tl.float32)
    return tl.inline_asm_elementwise(ASSEMBLY, "=r,=r,r", [piece], dtype=tl.float32, is_pure=False, pack=2)


@triton.jit
def _put(slots, start, piece, norm, share, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """Write the probabilities of a piece, times `share`."""
    grad = (tl.exp2(piece * LOG2_E - norm) * share).to(slots.dtype.element_ty)
    if WHOLE:
        tl.store(slots + start, grad)
    else:
        column = _columns(start, slots.shape[0], slots.shape[1])
        tl.store(slots + start, grad, mask=column < COLUMNS)


@triton.jit
def loss_kernel(
    logits, targets, losses, count, ignore_index,
    VOCABULARY: tl.constexpr, COLUMNS: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr,
    HELD: tl.constexpr, ASSEMBLY: tl.constexpr, WANTS_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Each row's share of the mean loss; the row's logits become the gradient of that share.

    Sizes are compile-time constants, so that only the last pieces need masks.
    """
    HIGHER: tl.constexpr = ASSEMBLY[0]
    WIDEN: tl.constexpr = ASSEMBLY[1]
    WIDEN_AGAIN: tl.constexpr = ASSEMBLY[2]
    WIDTH: tl.constexpr = PIECE // ROWS
    REST: tl.constexpr = HELD * PIECE
    LOOPS: tl.constexpr = REST < COLUMNS
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * COLUMNS
    slots = line + _columns(0, ROWS, WIDTH)
    target = tl.load(targets + row)
    held = ()
    for i in tl.static_range(HELD):
        one = _read(slots, i * PIECE, COLUMNS, (i + 1) * PIECE <= COLUMNS)
        held += (one,)  # type: ignore[assignment]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    if HELD:
        shown = ()
        for i in tl.static_range(HELD):
            one = _hide(held[i], i * PIECE, VOCABULARY, (i + 1) * PIECE <= VOCABULARY)
            shown += (one,)  # type: ignore[assignment]
        tops = shown[0]  # type: ignore[misc]
        for i in tl.static_range(1, HELD):
            tops = _higher(tops, shown[i], HIGHER)
        top = tl.max(tops.to(tl.float32), 1)
    top *= LOG2_E
    total = tl.zeros((ROWS,), tl.float32)
    if LOOPS:
        for start in range(REST, VOCABULARY, PIECE):
            piece = _read(slots, start, COLUMNS, False).to(tl.float32)
            piece = _hide(piece, start, VOCABULARY, False) * LOG2_E
            higher = tl.maximum(top, tl.max(piece, 1))
            # A thread that has seen only padding has no maximum yet, and -inf - -inf would be NaN.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base) + tl.sum(tl.exp2(piece - base[:, None]), 1)
            top = higher
    highest = tl.max(top, 0)
    # The target's logit is read here, so that waiting for `target` doesn't delay reading the row, but before
    # the barriers of the sum below: after them, another warp may have overwritten it with its gradient.
    kept = target != ignore_index
    target_column = tl.where(kept, target, 0)
    chosen = tl.load(line + target_column).to(tl.float32)
    if LOOPS:
        total *= tl.exp2(top - highest)
    for i in tl.static_range(HELD):
        total += tl.sum(tl.exp2(_widen(shown[i], WIDEN) * LOG2_E - highest), 1)
    norm = highest + tl.log2(tl.sum(total, 0))
    share = tl.where(kept, 1.0 / tl.maximum(tl.load(count).to(tl.float32), 1.0), 0.0)
    tl.store(losses + row, tl.where(kept, (norm * LN_2 - chosen) * share, 0.0))
    if WANTS_GRADIENT:
        for i in tl.static_range(HELD):
            piece = _widen(shown[i], WIDEN_AGAIN)
            _put(slots, i * PIECE, piece, norm, share, COLUMNS, (i + 1) * PIECE <= COLUMNS)
        if LOOPS:
            for start in range(REST, COLUMNS, PIECE):
                piece = _read(slots, start, COLUMNS, False).to(tl.float32)
                _put(slots, start, _hide(piece, start, VOCABULARY, False), norm, share, COLUMNS, False)
        # The target's gradient is written last, which saves comparing every column with the target.
        tl.debug_barrier()
        grad = (tl.exp2(chosen * LOG2_E - norm) - 1.0) * share
        tl.store(line + target_column, grad.to(logits.dtype.element_ty), mask=kept)


def linear_cross_entropy_triton(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    working_weight: Tensor | None = None,
) -> Tensor:
    """`core.ops.linear_cross_entropy.linear_cross_entropy` on the GPU, in autocast's type if it is on."""
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    dtype = product_type(x)
    working_weight = working_weight if working_weight is not None and working_weight.dtype == dtype else None
    loss: Tensor = _operator(x.to(dtype), weight, working_weight, targets, ignore_index, vocab_size, wanted)[
        0
    ]
    return loss


# The forward computes the gradients and returns them as integers, which have no gradients themselves.
def _run_linear_cross_entropy(x, weight, working_weight, targets, ignore_index, vocab_size, wants_gradient):
    head = weight.to(x.dtype) if working_weight is None else working_weight
    count = (targets != ignore_index).sum()
    losses = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    rows = max(1, CHUNK_BYTES // (weight.shape[0] * x.element_size()))
    grad_x = torch.empty(x.shape if wants_gradient else (0, 2), dtype=x.dtype, device=x.device)
    grad_weight: Tensor | None = None
    piece, warps, held = _settings(weight.shape[0], x.element_size())
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        logits = x[part] @ head.t()
        loss_kernel[(logits.shape[0],)](
            logits, targets[part], losses[part], count, ignore_index, VOCABULARY=vocab_size,
            COLUMNS=logits.shape[1], PIECE=piece, ROWS=32 * warps, HELD=held, ASSEMBLY=_assembly(x.dtype),
            WANTS_GRADIENT=wants_gradient, num_warps=warps, maxnreg=REGISTERS if warps >= 8 else None,
        )  # fmt: skip
        if wants_gradient:
            torch.mm(logits, head, out=grad_x[part])
            share = _wide_product(logits.t(), x[part])
            grad_weight = share if grad_weight is None else grad_weight.add_(share)
    if grad_weight is None:
        grad_weight = losses.new_empty(0)
    return losses.sum(), hidden(grad_x), hidden(grad_weight)


def _assembly(dtype: torch.dtype) -> tuple[str, str, str]:
    """PTX for two 16-bit numbers at once: their maximum, and two different ways of converting to float32.

    If both conversions were the same, the compiler would keep the first one's results, which take twice the
    registers, instead of converting again. Triton's interpreter runs no PTX.
    """
    if dtype == torch.float32 or not isinstance(loss_kernel, triton.JITFunction):
        return "", "", ""
    if dtype == torch.bfloat16:
        return (
            "max.bf16x2 $0, $1, $2;",
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "prmt.b32 $0, $2, 0, 0x1044; prmt.b32 $1, $2, 0, 0x3244;",
        )
    return (
        "max.f16x2 $0, $1, $2;",
        "{ .reg .b16 a, b; mov.b32 {a, b}, $2; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b; }",
        "{ .reg .b16 a, b; .reg .b32 turned; prmt.b32 turned, $2, 0, 0x1032; "
        "mov.b32 {b, a}, turned; cvt.f32.f16 $0, a; cvt.f32.f16 $1, b; }",
    )


def _fake_linear_cross_entropy(x, weight, working_weight, targets, ignore_index, vocab_size, wants_gradient):
    return (
        x.new_empty((), dtype=torch.float32),
        hidden(x.new_empty(x.shape if wants_gradient else (0, 2))),
        x.new_empty(weight.shape if wants_gradient else (0,), dtype=torch.int32),
    )


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.types = inputs[0].dtype, inputs[1].dtype
    ctx.save_for_backward(*output[1:])


def _gradients(ctx, grad_loss, *_):
    grad_x, grad_weight = ctx.saved_tensors
    x_type, weight_type = ctx.types
    grad_x = (grad_x.view(x_type) * grad_loss).to(x_type)
    grad_weight = (grad_weight.view(torch.float32) * grad_loss).to(weight_type)
    return grad_x, grad_weight, None, None, None, None, None


_operator = define(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor? working_weight, Tensor targets, int ignore_index, int vocab_size,"
    " bool wants_gradient)"
    " -> (Tensor, Tensor, Tensor)",
    _run_linear_cross_entropy,
    _fake_linear_cross_entropy,
    keep=_keep,
    gradients=_gradients,
)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 from 16-bit factors."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return (a @ b).float()
    return torch.mm(a, b, out_dtype=torch.float32)
