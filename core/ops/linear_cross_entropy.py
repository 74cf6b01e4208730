"""Output head and cross-entropy in one, over chunks of rows.

The logits, tokens x vocabulary, are by far the largest tensor of a batch. Here logits exist for one chunk of
rows at a time, and their gradient is computed right away, so that nothing of that size is kept for the
backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import takes_triton

CHUNK_ELEMENTS = 1 << 24


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    vocab_size: int | None = None,
    working_weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the logits x weight^T against targets.

    Args:
        x: features, (M, C).
        weight: head, (V, C).
        targets: (M,) int64.
        ignore_index: rows with this target are ignored.
        vocab_size: how many rows of `weight` are tokens; the rest is padding and never predicted.
        working_weight: `weight` in the product's type, if training keeps such a copy.

    Returns:
        scalar float32 (float64 if x is), in nats; 0 if every row is ignored.
    """
    if takes_triton(x, "linear_cross_entropy"):
        from core.ops.triton.linear_cross_entropy import linear_cross_entropy_triton

        return linear_cross_entropy_triton(
            x,
            weight,
            targets,
            ignore_index=ignore_index,
            vocab_size=vocab_size,
            working_weight=working_weight,
        )
    vocab_size = weight.shape[0] if vocab_size is None else vocab_size
    safe, share = targets_and_shares(targets, ignore_index, wide_type(x))
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    head = product_head(weight, working_weight, x.dtype)
    return _LinearCrossEntropy.apply(x, weight, head, safe, share, vocab_size, needs_gradient)


def wide_type(x: Tensor) -> torch.dtype:
    """What losses of features x are added up in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def targets_and_shares(targets: Tensor, ignore_index: int, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets (M,) with 0 for ignored ones, and each row's share (M,) of the mean, 0 for ignored ones."""
    kept = targets != ignore_index
    return torch.where(kept, targets, 0), kept.to(wide) / kept.sum().clamp(min=1)


def product_head(weight: Tensor, working_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The head (V, C) in the product's type: its working weight if that has it."""
    if working_weight is not None and working_weight.dtype == dtype:
        return working_weight
    return weight.detach().to(dtype)


def scaled_gradients(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and the head that the forward has saved, for a gradient of the loss."""
    grad_x, grad_weight = ctx.saved_tensors
    return grad_x * grad_loss.to(grad_x.dtype), grad_weight * grad_loss.to(grad_weight.dtype)


@torch.no_grad()
def token_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, vocab_size: int | None = None
) -> Tensor:
    """Cross-entropy of each row by itself, without gradients; arguments as for `linear_cross_entropy`.

    Returns:
        (M,) float32 (float64 if x is), in nats; 0 for rows that are ignored.
    """
    wide = wide_type(x)
    head = weight[:vocab_size].to(x.dtype).to(wide)
    kept = targets != ignore_index
    safe = torch.where(kept, targets, 0).unsqueeze(1)
    rows = max(1, CHUNK_ELEMENTS // len(head))
    losses = torch.zeros(len(x), dtype=wide, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            logits = x[part].to(wide) @ head.t()
            losses[part] = logits.logsumexp(1) - logits.gather(1, safe[part])[:, 0]
    return torch.where(kept, losses, 0)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        head: Tensor,
        targets: Tensor,
        share: Tensor,
        vocab_size: int,
        needs_gradient: bool,
    ) -> Tensor:
        wide = share.dtype
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        loss = torch.zeros((), dtype=wide, device=x.device)
        if needs_gradient:
            grad_x = torch.empty_like(x)
            grad_weight = torch.zeros_like(weight, dtype=wide)
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            logits = (x[part] @ head.t()).to(wide)
            logits[:, vocab_size:] = -torch.inf
            target = targets[part].unsqueeze(1)
            # One pass for the softmax; its largest entry is 1 / sum(exp(logits - largest logit)).
            below_top = logits.amax(1, keepdim=True) - logits.gather(1, target)
            probabilities = torch.softmax(logits, 1)
            del logits
            weights = share[part].unsqueeze(1)
            loss += ((below_top - probabilities.amax(1, keepdim=True).log()) * weights).sum()
            if needs_gradient:
                # Softmax minus one-hot; each row's share of the mean multiplies the smaller factors.
                probabilities.scatter_add_(1, target, torch.full_like(weights, -1))
                grad_logits = probabilities.to(x.dtype)
                grad_x[part] = (grad_logits @ head) * weights
                weighted = (x[part] * weights).to(x.dtype)
                if x.dtype == wide:
                    grad_weight.addmm_(grad_logits.t(), weighted)
                else:
                    grad_weight += grad_logits.t() @ weighted
        if needs_gradient:
            ctx.save_for_backward(grad_x, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *scaled_gradients(ctx, grad_loss), None, None, None, None, None
