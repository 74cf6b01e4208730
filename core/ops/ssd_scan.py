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

from core.ops.dispatch import takes_triton

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
    batch, length, heads, size = x.shape
    if length > 1 and takes_triton(x):
        from core.ops.ssd_scan_triton import ssd_scan_triton

        return ssd_scan_triton(x, dt, A, B, C, D, dt_bias=dt_bias, h0=h0, reset=reset)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if h0 is None:
        h0 = torch.zeros(batch, heads, size, B.shape[2], dtype=wide, device=x.device)
    inputs, B, C, state = x.to(wide), B.to(wide), C.to(wide), h0.to(wide)
    delta = F.softplus(dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias)
    if length == 1:
        y, state = _one_step(inputs, delta, A.to(wide), B, C, state, reset)
        y = y if D is None else torch.addcmul(y, inputs, D.to(wide).unsqueeze(1))
    else:
        direct = None if D is None else D.to(wide)
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
    """The scan over chunks of time. Shapes as in `ssd_scan`."""
    length = x.shape[1]
    chunk = min(CHUNK, length)
    if missing := -length % chunk:  # steps of size zero: they leave the state as it is
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
        delta, B, C = (F.pad(part, (0, 0, 0, missing)) for part in (delta, B, C))
        reset = None if reset is None else F.pad(reset, (0, missing))
    document = None if reset is None else reset.unflatten(1, (-1, chunk)).cumsum(2).flatten(1)
    # Autocast would halve some of the products and leave the backward with two kinds of numbers.
    with torch.autocast(x.device.type, enabled=False):
        y, state = _ChunkedScan.apply(x, delta, B, C, A, D, state, document, chunk)
    return (y[:, :length] if missing else y), state


class _ChunkedScan(torch.autograd.Function):
    """x (B, L, H, P), delta (B, L, H), B and C (B, L, N), A (H,), D (H,), state (B, H, P, N); `document`
    (B, L) is the document's number within its chunk, or None where all is one. L is K chunks of Q steps.

    What an input at step s of a chunk gives to its outputs, and what it leaves in the state at its end, are
    the rows of one matrix, `spread` (B, H, K, Q, Q + N): delta_s (B_s C_t) decay_st, then delta_s B_s times
    what is left at the end; D lies on its diagonal. So one product a head spreads the inputs, and one takes
    the gradients back; little else works on all of x. The backward is written out for that, and because it
    can stay in the working precision where the forward's running sums need more.
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
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        steps = delta.transpose(1, 2).contiguous().unflatten(2, (-1, chunk))  # (B, H, K, Q)
        B, C = (part.unflatten(1, (-1, chunk)).contiguous() for part in (B, C))  # (B, K, Q, N)
        within, entering, leaving = _decays(steps, A, document)
        left = torch.cat((within, leaving.expand(*leaving.shape[:4], B.shape[3])), 4)  # (B, H, K, Q, Q + N)
        ahead = _ahead(B, document)
        pairs = torch.cat(((B @ C.transpose(2, 3)).mul_(ahead), B), 3).unsqueeze(1)  # B_s C_t, then B_s
        spread = left * pairs
        spread *= steps.unsqueeze(4)
        if D is not None:
            spread[..., :chunk].diagonal(dim1=3, dim2=4).add_(D.view(-1, 1, 1))
        inputs = x.transpose(1, 2).contiguous().unflatten(2, (-1, chunk))  # (B, H, K, Q, P)
        given = spread.transpose(3, 4) @ inputs  # (B, H, K, Q + N, P)
        through = entering[:, :, :, -1:]
        border = state.transpose(2, 3)  # (B, H, N, P)
        borders = inputs.new_empty(*given.shape[:3], *border.shape[2:])
        for k in range(inputs.shape[2]):
            borders[:, :, k] = border
            border = torch.addcmul(given[:, :, k, chunk:], through[:, :, k], border)
        entered = C.unsqueeze(1) * entering  # (B, H, K, Q, N)
        by_head = (entered @ borders).add_(given[..., :chunk, :])
        y = by_head.flatten(2, 3).transpose(1, 2).contiguous()
        ctx.save_for_backward(
            steps, B, C, A, D, inputs, borders, left, pairs, spread, entered, entering, ahead
        )
        ctx.set_materialize_grads(False)
        return y, border.transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        steps, B, C, A, D, inputs, borders, left, pairs, spread, entered, entering, ahead = ctx.saved_tensors
        grad_y, grad_state = gradients
        chunk = inputs.shape[3]

        # What came out of `spread`: the outputs' gradients, and those of what was left in the state, which
        # run backwards in time.
        grad_given = inputs.new_empty(*spread.shape[:3], spread.shape[4], inputs.shape[4])
        grad_out, grad_added = grad_given[..., :chunk, :], grad_given[..., chunk:, :]
        if grad_y is None:
            grad_out.zero_()
        else:
            grad_out.copy_(grad_y.transpose(1, 2).unflatten(2, (-1, chunk)))
        grad_borders = entered.transpose(3, 4) @ grad_out  # (B, H, K, N, P)
        through = entering[:, :, :, -1:]
        grad_border = torch.zeros_like(borders[:, :, 0]) if grad_state is None else grad_state.transpose(2, 3)
        for k in reversed(range(inputs.shape[2])):
            grad_added[:, :, k] = grad_border
            grad_border = torch.addcmul(grad_borders[:, :, k], through[:, :, k], grad_border)
        grad_x = spread @ grad_given  # (B, H, K, Q, P)
        grad_spread = inputs @ grad_given.transpose(3, 4)  # (B, H, K, Q, Q + N)
        grad_D = None
        if D is not None:
            grad_D = grad_spread[..., :chunk].diagonal(dim1=3, dim2=4).sum((0, 2, 3))

        # From `spread` to what it was made of.
        grad_entered = grad_out @ borders.transpose(3, 4)  # (B, H, K, Q, N)
        by_entry = (grad_entered * entered).sum(4)  # (B, H, K, Q)
        grad_spread *= left
        grad_pairs = (grad_spread * steps.unsqueeze(4)).sum(1)  # (B, K, Q, Q + N)
        grad_spread *= pairs
        by_source = grad_spread.sum(4)
        by_target = (steps.unsqueeze(3) @ grad_spread).squeeze(3)  # (B, H, K, Q + N)
        grad_scores = grad_pairs[..., :chunk] * ahead
        grad_B = (grad_scores @ C).add_(grad_pairs[..., chunk:])
        grad_C = (grad_scores.transpose(2, 3) @ B).add_(grad_entered.mul_(entering).sum(1))

        # Every decay is an exponential of a difference of running sums; gather what each sum receives.
        grad_total = (by_entry + by_target[..., :chunk]).addcmul_(by_source, steps, value=-1)
        by_border = (grad_added * borders).sum((3, 4)) * through[..., 0, 0]  # (B, H, K)
        grad_total[..., -1] += by_target[..., chunk:].sum(3) + by_border
        grad_logs = grad_total.flip(3).cumsum(3).flip(3)
        grad_delta = torch.addcmul(by_source, grad_logs, A.view(-1, 1, 1))
        grad_A = (grad_logs * steps).sum((0, 2, 3))
        grad_x, grad_delta = (part.flatten(2, 3).transpose(1, 2) for part in (grad_x, grad_delta))
        grad_B, grad_C = grad_B.flatten(1, 2), grad_C.flatten(1, 2)
        return grad_x, grad_delta, grad_B, grad_C, grad_A, grad_D, grad_border.transpose(2, 3), None, None


def _ahead(B: Tensor, document: Tensor | None) -> Tensor:
    """1 where an input (row) reaches an output (column) of its chunk, else 0; (Q, Q) or (B, K, Q, Q)."""
    ahead = torch.ones(B.shape[2], B.shape[2], dtype=B.dtype, device=B.device).triu_()
    if document is None:
        return ahead
    document = document.unflatten(1, (-1, B.shape[2]))
    return ahead * (document.unsqueeze(3) == document.unsqueeze(2))


def _decays(steps: Tensor, A: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of a step's input at a later step of its chunk, and across the chunk's borders.

    `steps` is delta, (B, H, K, Q). Returns within (B, H, K, Q, Q) from row to column (1 where the column
    comes first), entering (B, H, K, Q, 1) from the state before the chunk to each step, leaving
    (B, H, K, Q, 1) from each step to the chunk's end.

    A difference of two running sums loses the digits that the sums do not share, so they are float64
    where the device has it.
    """
    precise = torch.float32 if steps.device.type == "mps" else torch.float64
    # Powers of 2, because torch's exp is many times slower than its exp2 on CPU.
    total = (steps.to(precise) * (A.to(precise) / math.log(2)).view(-1, 1, 1)).cumsum(3)
    entering, leaving = total.to(steps.dtype), (total[..., -1:] - total).to(steps.dtype)
    within = (total.unsqueeze(3) - total.unsqueeze(4)).to(steps.dtype).clamp_(max=0)
    if document is not None:
        document = document.unflatten(1, (-1, steps.shape[3])).unsqueeze(1)  # (B, 1, K, Q)
        entering = entering.masked_fill(document != 0, -torch.inf)
        leaving = leaving.masked_fill(document != document[..., -1:], -torch.inf)
    return within.exp2_(), entering.exp2_().unsqueeze(4), leaving.exp2_().unsqueeze(4)
