"""The scan of Mamba-2 (structured state space duality, arXiv 2405.21060).

With one decay a head instead of one a channel and state, a chunk of time is three small matrix products:
what its inputs give its outputs, what the entering state gives its outputs, and what its inputs leave in
the state. Only the states at chunk borders are sequential.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the state space model with one scalar decay a head.

    delta = softplus(dt + dt_bias); h_t = (0 if reset_t else exp(delta_t A)) h_{t-1} + delta_t x_t B_t^T;
    y_t = h_t C_t + D x_t.

    Args:
        x: input, (B, L, H, P).
        dt: raw step sizes, (B, L, H).
        A: negative decay rates, (H,).
        B: input weights, shared by the heads, (B, L, N).
        C: output weights, (B, L, N).
        D: direct path, (H,).
        dt_bias: added to dt, (H,).
        h0: state before the first step, (B, H, P, N); zeros if None.
        reset: (B, L), true where the state is forgotten before the step.

    Returns:
        y (B, L, H, P) in x's dtype and the last state (B, H, P, N), float32 (float64 if x is).
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, heads, size = x.shape
    if h0 is None:
        h0 = torch.zeros(batch, heads, size, B.shape[2], dtype=wide, device=x.device)
    inputs, B, C, state = x.to(wide), B.to(wide), C.to(wide), h0.to(wide)
    delta = F.softplus(dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias)
    if length == 1:
        y, state = _one_step(inputs, delta, A.to(wide), B, C, state, reset)
        y = y if D is None else torch.addcmul(y, inputs, D.to(wide).unsqueeze(1))
    else:
        direct = None if D is None else D.to(wide).unsqueeze(1)
        y, state = _chunked(inputs, delta, A.to(wide), B, C, direct, state, reset)
    return y.to(x.dtype), state


def _one_step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """L = 1, as in decoding. Shapes as in `ssd_scan`, delta (B, 1, H)."""
    decay = torch.exp2(delta * (A / math.log(2)))
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(2), 0)
    scaled = x[:, 0] * delta[:, 0].unsqueeze(2)
    state = state * decay[:, 0, :, None, None] + scaled.unsqueeze(3) * B[:, :, None]
    return (state @ C.unsqueeze(3)).squeeze(3).unsqueeze(1), state


def _chunked(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The scan over K chunks of Q steps. Shapes as in `ssd_scan`, D (H, 1)."""
    length = x.shape[1]
    chunk = min(CHUNK, length)
    missing = -length % chunk
    count = (length + missing) // chunk
    if missing:  # steps of size zero: they leave the state as it is
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
        delta, B, C = (F.pad(part, (0, 0, 0, missing)) for part in (delta, B, C))
        reset = None if reset is None else F.pad(reset, (0, missing))
    parts = [part.unflatten(1, (count, chunk)) for part in (x, delta, B, C)]  # (B, K, Q, ...)
    document = None if reset is None else reset.unflatten(1, (count, chunk)).cumsum(2)
    # Autocast would halve some of the products and leave the backward with two kinds of numbers.
    with torch.autocast(x.device.type, enabled=False):
        y, state = _ChunkedScan.apply(*parts, A, D, state, document)
    return y.flatten(1, 2)[:, :length], state


class _ChunkedScan(torch.autograd.Function):
    """x (B, K, Q, H, P), delta (B, K, Q, H), B and C (B, K, Q, N), A (H,), D (H, 1), state (B, H, P, N),
    document (B, K, Q): the document's number within its chunk, or None where all is one.

    The backward is written out because it can stay in the working precision where the forward's running
    sums need more, and because B and C, which heads share, then take part in products over all heads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        A: Tensor,
        D: Tensor | None,
        state: Tensor,
        document: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        within, entering, leaving = _decays(delta, A, document)
        scaled = x * delta.unsqueeze(4)
        weights = (C @ B.transpose(2, 3)).unsqueeze(2) * within  # (B, K, H, Q, Q)
        heads_scaled = scaled.transpose(2, 3).clone(memory_format=torch.contiguous_format)  # (B, K, H, Q, P)
        inside = (weights @ heads_scaled).transpose(2, 3)  # (B, K, Q, H, P)
        added = scaled.mul_(leaving).flatten(3).transpose(2, 3) @ B  # (B, K, H P, N)
        through = entering[:, :, -1].expand(x.shape[:2] + x.shape[3:]).flatten(2)  # (B, K, H P)
        border = state.flatten(1, 2)  # (B, H P, N)
        borders = torch.empty_like(added)
        for k in range(x.shape[1]):
            borders[:, k] = border
            border = torch.addcmul(added[:, k], through[:, k, :, None], border)
        carried = (C @ borders.transpose(2, 3)).view_as(x)
        y = carried.mul_(entering).add_(inside)
        if D is not None:
            y.addcmul_(x, D)
        ctx.save_for_backward(x, delta, B, C, A, D, heads_scaled, borders, within, entering, leaving)
        return y, border.view_as(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_state = gradients
        x, delta, B, C, A, D, heads_scaled, borders, within, entering, leaving = ctx.saved_tensors
        heads_grad = grad_y.transpose(2, 3).contiguous()  # (B, K, H, Q, P)

        # Through the states at the borders, backwards in time.
        entered = grad_y * entering
        flat_entered = entered.flatten(3)  # (B, K, Q, H P)
        grad_borders = flat_entered.transpose(2, 3) @ C  # (B, K, H P, N)
        through = entering[:, :, -1].expand(x.shape[:2] + x.shape[3:]).flatten(2)
        grad_border = grad_state.flatten(1, 2)
        grad_added = torch.empty_like(borders)
        for k in reversed(range(x.shape[1])):
            grad_added[:, k] = grad_border
            grad_border = torch.addcmul(grad_borders[:, k], through[:, k, :, None], grad_border)
        grad_C = flat_entered @ borders
        carried = (C @ borders.transpose(2, 3)).view_as(x)
        by_entry = entered.mul_(carried).sum(4)  # (B, K, Q, H)
        left = (B @ grad_added.transpose(2, 3)).view_as(x).mul_(leaving)
        by_exit = torch.mul(left, heads_scaled.transpose(2, 3), out=entered).sum(4)
        remaining = torch.mul(heads_scaled.transpose(2, 3), leaving, out=entered)
        grad_B = remaining.flatten(3) @ grad_added

        # Inside the chunks, head by head.
        weights = (C @ B.transpose(2, 3)).unsqueeze(2) * within  # (B, K, H, Q, Q)
        by_weight = heads_grad @ heads_scaled.transpose(3, 4)
        grad_scaled = left.add_((weights.transpose(3, 4) @ heads_grad).transpose(2, 3))
        grad_scores = (by_weight * within).sum(2)
        grad_C += grad_scores @ B
        grad_B += grad_scores.transpose(2, 3) @ C

        # Every decay is an exponential of a difference of running sums; gather what each sum receives.
        by_pair = by_weight.mul_(weights)
        grad_total = by_entry - by_exit + (by_pair.sum(4) - by_pair.sum(3)).transpose(2, 3)  # (B, K, Q, H)
        by_border = grad_added.mul_(borders).sum(3).unflatten(2, x.shape[3:]).sum(3)  # (B, K, H)
        grad_total[:, :, -1] += by_exit.sum(2) + by_border * entering[:, :, -1, :, 0]
        grad_logs = grad_total.flip(2).cumsum(2).flip(2)

        grad_delta = torch.mul(grad_scaled, x, out=entered).sum(4).addcmul_(grad_logs, A)
        grad_x, grad_D = grad_scaled.mul_(delta.unsqueeze(4)), None
        if D is not None:
            grad_x.addcmul_(grad_y, D)
            grad_D = torch.mul(grad_y, x, out=entered).sum((0, 1, 2, 4)).unsqueeze(1)
        grad_A = (grad_logs * delta).sum((0, 1, 2))
        return grad_x, grad_delta, grad_B, grad_C, grad_A, grad_D, grad_border.view_as(grad_state), None


def _decays(delta: Tensor, A: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of a step's input at a later step of its chunk, and across the chunk's borders.

    Returns within (B, K, H, Q, Q) from column to row, entering (B, K, Q, H, 1) from the state before the
    chunk to each step, leaving (B, K, Q, H, 1) from each step to the chunk's end.

    A difference of two running sums loses the digits that the sums do not share, so they are float64
    where the device has it.
    """
    precise = torch.float32 if delta.device.type == "mps" else torch.float64
    # Powers of 2, because torch's exp is many times slower than its exp2 on CPU.
    total = (delta.to(precise) * (A.to(precise) / math.log(2))).cumsum(2)  # (B, K, Q, H)
    entering, leaving = total.to(delta.dtype), (total[:, :, -1:] - total).to(delta.dtype)
    by_head = total.transpose(2, 3)  # (B, K, H, Q)
    within = (by_head.unsqueeze(4) - by_head.unsqueeze(3)).to(delta.dtype)
    if document is not None:
        other = document.unsqueeze(3) != document.unsqueeze(2)
        within.masked_fill_(other.unsqueeze(2), -torch.inf)
        entering = entering.masked_fill((document != 0).unsqueeze(3), -torch.inf)
        leaving = leaving.masked_fill((document != document[:, :, -1:]).unsqueeze(3), -torch.inf)
    # Above the diagonal lies the future, where a power may even be infinite.
    return within.exp2_().tril_(), entering.exp2().unsqueeze(4), leaving.exp2().unsqueeze(4)
