"""Output head and loss of a model that also learns from a teacher's predictions, over chunks of rows.

    loss = (1 - share) * cross-entropy(text) + share * KL(teacher || model)

Where the text names one next token, a teacher says how likely every token is, which a text read several times
teaches a model no other way (Hinton et al., arXiv 1503.02531; with a teacher of the same size, Furlanello et
al., arXiv 1805.04770). As in `core/ops/linear_cross_entropy.py` only one chunk of rows has logits at a
time, and their gradient is formed while they are there:

    d loss / d logits = softmax(logits) - (1 - share) * onehot(text) - share * softmax(teacher's logits)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import product_type
from core.ops.linear_cross_entropy import product_head, scaled_gradients, targets_and_shares, wide_type

CHUNK_ELEMENTS = 1 << 25


class Lesson(NamedTuple):
    """A teacher's predictions: the logits are features (B, T, C) times the transposed head (V, C)."""

    features: Tensor
    head: Tensor
    share: float
    """The share of the loss that comes from the teacher, 0 to 1."""


def distillation_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    lesson: Lesson,
    *,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    working_weight: Tensor | None = None,
) -> Tensor:
    """The mean loss above; arguments as in `linear_cross_entropy`, and a lesson about the same rows.

    Returns:
        scalar float32 (float64 if x is), in nats; 0 if every row is ignored.
    """
    dtype = product_type(x) if x.is_cuda else x.dtype
    x = x.to(dtype)
    safe, shares = targets_and_shares(targets, ignore_index, wide_type(x))
    head = product_head(weight, working_weight, dtype)
    teacher = lesson.features.flatten(0, -2).to(dtype), lesson.head.to(dtype)
    size = weight.shape[0] if vocab_size is None else vocab_size
    loss: Tensor = _DistillationLoss.apply(x, weight, head, safe, shares, teacher, lesson.share, size)
    return loss


class _DistillationLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        head: Tensor,
        targets: Tensor,
        shares: Tensor,
        teacher: tuple[Tensor, Tensor],
        of_teacher: float,
        vocab_size: int,
    ) -> Tensor:
        wide = shares.dtype
        features, teacher_head = teacher
        loss = torch.zeros((), dtype=wide, device=x.device)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            target, share = targets[part].unsqueeze(1), shares[part].unsqueeze(1)
            own = _log_probabilities(x[part], head, vocab_size, wide)
            taught = _log_probabilities(features[part], teacher_head, vocab_size, wide)
            wanted = taught.exp()
            # 0 * log(0) is 0: tokens that the teacher gives no probability don't count.
            apart = torch.where(wanted > 0, wanted * (taught - own), 0).sum(1, keepdim=True)
            loss += ((of_teacher * apart - (1 - of_teacher) * own.gather(1, target)) * share).sum()
            gradient = own.exp_().sub_(wanted, alpha=of_teacher)
            gradient.scatter_add_(1, target, torch.full_like(share, of_teacher - 1))
            grad_logits = gradient.to(x.dtype)
            grad_x[part] = (grad_logits @ head) * share
            grad_weight += grad_logits.t() @ (x[part] * share).to(x.dtype)
        ctx.save_for_backward(grad_x, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad_loss), None, None, None, None, None, None


def _log_probabilities(x: Tensor, head: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Logits (M, V), with -inf in the vocabulary's padding."""
    logits = (x @ head.t()).to(dtype)
    logits[:, vocab_size:] = -torch.inf
    return torch.log_softmax(logits, 1)
