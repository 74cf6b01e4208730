"""Output head and cross-entropy on CUDA: same function as `core.ops.linear_cross_entropy`.

Products run in the narrow type on the tensor cores. One kernel turns a chunk's logits into their gradient in
place, reading each row twice, the second time from the cache; the row's loss falls out on the way. So logits
exist once, in the narrow type, for at most `CHUNK_BYTES`; the gradient of the head is added up in float32.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define

CHUNK_BYTES = 1 << 30
"""Logits held at a time."""
PIECE, WARPS = 4096, 32
"""Logits of a row that a program reads at a time; large programs are few, and their rows fit the cache."""


@triton.jit
def loss_kernel(
    logits, targets, losses, rows, count, vocab_size, row_stride, ignore_index,
    PIECE: tl.constexpr, WANTS_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Each row's share of the mean loss; its logits become the gradient of that share."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    kept = target != ignore_index
    share = tl.where(kept, 1.0 / tl.maximum(tl.load(count).to(tl.float32), 1.0), 0.0)
    line = logits + row * row_stride
    # Before the sums, whose barriers all warps pass: later, a warp ahead may have put the gradient here.
    chosen = tl.load(line + tl.where(kept, target, 0)).to(tl.float32)
    column = tl.arange(0, PIECE)
    top = tl.full((PIECE,), float("-inf"), tl.float32)
    total = tl.zeros((PIECE,), tl.float32)
    for start in range(0, vocab_size, PIECE):
        inside = start + column < vocab_size
        piece = tl.load(line + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        piece *= 1.4426950408889634
        higher = tl.maximum(top, piece)
        # A slot that has only seen padding has no top yet; -inf - -inf would be no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.exp2(piece - base)
        top = higher
    highest = tl.max(top, 0)
    norm = highest + tl.log2(tl.sum(total * tl.exp2(top - highest), 0))
    loss = (norm * 0.6931471805599453 - chosen) * share
    tl.store(losses + row, tl.where(kept, loss, 0.0))
    if WANTS_GRADIENT:
        for start in range(0, row_stride, PIECE):
            here = start + column
            piece = tl.load(line + here, mask=here < vocab_size, other=float("-inf")).to(tl.float32)
            probability = tl.exp2(piece * 1.4426950408889634 - norm)
            grad = tl.where(here == target, probability - 1.0, probability) * share
            tl.store(line + here, grad.to(logits.dtype.element_ty), mask=here < row_stride)


def linear_cross_entropy_triton(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab_size: int | None = None,
) -> Tensor:
    """`core.ops.linear_cross_entropy.linear_cross_entropy` on the GPU, in autocast's type where it is on."""
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    narrow = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    loss: Tensor = _operator(x.to(narrow), weight, targets, ignore_index, vocab_size, wanted)[0]
    return loss


# The gradients are found on the way forward and returned as integers, which have no gradient themselves.
def _run_linear_cross_entropy(x, weight, targets, ignore_index, vocab_size, wants_gradient):
    head = weight.to(x.dtype)
    count = (targets != ignore_index).sum()
    losses = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    rows = max(1, CHUNK_BYTES // (weight.shape[0] * x.element_size()))
    grad_x = torch.empty(x.shape if wants_gradient else (0, 2), dtype=x.dtype, device=x.device)
    grad_weight: Tensor | None = None
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        logits = x[part] @ head.t()
        loss_kernel[(logits.shape[0],)](
            logits, targets[part], losses[part], logits.shape[0], count, vocab_size, logits.shape[1],
            ignore_index, PIECE=PIECE, WANTS_GRADIENT=wants_gradient, num_warps=WARPS,
        )  # fmt: skip
        if wants_gradient:
            torch.mm(logits, head, out=grad_x[part])
            share = _wide_product(logits.t(), x[part])
            grad_weight = share if grad_weight is None else grad_weight.add_(share)
    if grad_weight is None:
        grad_weight = losses.new_empty(0)
    return losses.sum(), grad_x.view(_integers(grad_x)), grad_weight.view(torch.int32)


def _integers(tensor: Tensor) -> torch.dtype:
    """The integer type of the same size."""
    return torch.int16 if tensor.element_size() == 2 else torch.int32


def _fake_linear_cross_entropy(x, weight, targets, ignore_index, vocab_size, wants_gradient):
    return (
        x.new_empty((), dtype=torch.float32),
        x.new_empty(x.shape if wants_gradient else (0, 2), dtype=_integers(x)),
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
    return grad_x, grad_weight, None, None, None, None


_operator = define(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor targets, int ignore_index, int vocab_size, bool wants_gradient)"
    " -> (Tensor, Tensor, Tensor)",
    _run_linear_cross_entropy,
    _fake_linear_cross_entropy,
    keep=_keep,
    gradients=_gradients,
)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 from narrow factors."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return (a @ b).float()
    return torch.mm(a, b, out_dtype=torch.float32)
