"""The scan of Mamba-2 (structured state space duality, arXiv 2405.21060).

With one decay per head, instead of one per channel and state, a chunk of time is three small matrix products:
from its inputs to its outputs, from the state that enters to its outputs, and from its inputs to the state.
Only the states at the borders between chunks are sequential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops.dispatch import takes_triton

CHUNK = 32
MOST = 64
"""A step's contribution is scaled by at most 2^64; a larger factor would overflow."""


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
    """Run the state space model with one scalar decay per head.

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
    if length > 1 and takes_triton(x, "ssd_scan"):
        from core.ops.triton.ssd_scan import ssd_scan_triton

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
    if missing := -length % chunk:  # steps of size zero leave the state unchanged
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
        delta, B, C = (F.pad(part, (0, 0, 0, missing)) for part in (delta, B, C))
        reset = None if reset is None else F.pad(reset, (0, missing))
    document = None if reset is None else reset.unflatten(1, (-1, chunk)).cumsum(2).flatten(1)
    # Autocast would compute some products in 16 bits and give the backward two types.
    with torch.autocast(x.device.type, enabled=False):
        y, state = _ChunkedScan.apply(x, delta, B, C, A, D, state, document, chunk)
    return (y[:, :length] if missing else y), state


class _ChunkedScan(torch.autograd.Function):
    """`scan_chunks` for x (B, L, H, P), delta (B, L, H), B and C (B, L, N).

    The backward is written by hand because it can stay in the working precision where the forward's running
    sums need more, and because little of it touches all of x.
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
        inputs = by_head(x.flatten(2), x.shape[2], chunk).contiguous()
        steps = delta.transpose(1, 2).contiguous().unflatten(2, (-1, chunk))
        sides = torch.stack((B, C), 2).unflatten(1, (-1, chunk))
        y, state, kept = scan_chunks(inputs, steps, sides, A, D, state, document)
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return by_time(y).contiguous(), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        inputs = kept[0]
        heads, chunk = inputs.shape[1], inputs.shape[3]
        grad_y, grad_state = gradients
        if grad_y is None:
            grad_out = torch.zeros_like(inputs)
        else:
            grad_out = by_head(grad_y.flatten(2), heads, chunk).contiguous()
        grad_x, grad_steps, grad_B, grad_C, *others = scan_chunks_backward(kept, grad_out, grad_state)
        grad_B, grad_C = grad_B.flatten(1, 2), grad_C.flatten(1, 2)
        return by_time(grad_x), by_time(grad_steps), grad_B, grad_C, *others, None, None


def by_head(x: Tensor, heads: int, chunk: int) -> Tensor:
    """A view of (B, L, H P) as (B, H, K, Q, P); L is K chunks of Q steps."""
    return x.view(x.shape[0], -1, chunk, heads, x.shape[2] // heads).permute(0, 3, 1, 2, 4)


def by_time(x: Tensor) -> Tensor:
    """A view of (B, H, K, Q, ...) as (B, L, H, ...), if Q and K are contiguous."""
    return x.flatten(2, 3).transpose(1, 2)


def scan_chunks(
    inputs: Tensor,
    steps: Tensor,
    sides: Tensor,
    A: Tensor,
    D: Tensor | None,
    state: Tensor,
    document: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """The scan in chunks of time, as products of small matrices.

    `spread` (B, H, K, Q, Q) leads from inputs to outputs of the same chunk: delta_s (B_s C_t) decay_st, with
    D added on its diagonal. The two `edges` (B, H, K, Q, 2, N) lead from inputs to the state, delta_s B_s
    decay_s,end, and from the state to outputs, C_t decay_start,t.

    Args:
        inputs: (B, H, K, Q, P), contiguous.
        steps: step sizes delta, (B, H, K, Q).
        sides: B and C, (B, K, Q, 2, N).
        A, D: (H,).
        state: before the first step, (B, H, P, N).
        document: the number of each step's document within its chunk, (B, L); None if there are no resets.

    Returns:
        outputs (B, H, K, Q, P), the last state (B, H, P, N), and what `scan_chunks_backward` needs.
    """
    within, across = _decays(steps, A)
    before, after = (side.flatten(0, 1) for side in sides.unbind(3))
    scores = torch.bmm(before, after.transpose(1, 2)).triu_().view(*sides.shape[:3], -1)
    same = None
    if document is not None:
        document = document.view(sides.shape[:3])
        same = (document.unsqueeze(3) == document.unsqueeze(2)).to(scores.dtype)
        scores *= same
        across *= torch.stack((document == document[..., -1:], document == 0), 3).unsqueeze(1)
    spread = within * scores.unsqueeze(1)
    if D is not None:
        spread.diagonal(dim1=3, dim2=4).add_(D.view(-1, 1, 1))
    edges = across.unsqueeze(5) * sides.unsqueeze(1)
    leaving, entering = edges.flatten(0, 2).unbind(2)

    flat = inputs.flatten(0, 2)
    added = torch.bmm(leaving.transpose(1, 2), flat).view(*inputs.shape[:3], -1, inputs.shape[4])
    through = across[..., -1:, 1:]
    borders, border = _borders(state.transpose(2, 3), added.unbind(2), through.unbind(2))
    entered = torch.stack(borders, 2)  # (B, H, K, N, P)
    y = torch.bmm(spread.flatten(0, 2).transpose(1, 2), flat)
    y.baddbmm_(entering, entered.flatten(0, 2))
    kept = (inputs, steps, sides, A, D, within, across, scores, same, spread, edges, entered)
    return y.view_as(inputs), border.transpose(2, 3), kept


def scan_chunks_backward(
    kept: Sequence[Tensor], grad_out: Tensor, grad_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of inputs (B, H, K, Q, P), steps, B and C (B, K, Q, N), A, D and state.

    `grad_out` (B, H, K, Q, P), contiguous, is the gradient of the outputs, `grad_state` of the last state.
    """
    inputs, steps, sides, A, D, within, across, scores, same, spread, edges, entered = kept
    leaving, entering = edges.flatten(0, 2).unbind(2)
    flat, flat_out = inputs.flatten(0, 2), grad_out.flatten(0, 2)
    through = across[..., -1:, 1:]
    grad_added = torch.bmm(entering.transpose(1, 2), flat_out).view_as(entered)
    border = torch.zeros_like(entered[:, :, 0]) if grad_state is None else grad_state.transpose(2, 3)
    borders, border = _borders(border, grad_added.unbind(2)[::-1], through.unbind(2)[::-1])
    grad_left = torch.stack(borders[::-1], 2)
    flat_left = grad_left.flatten(0, 2)
    grad_inputs = torch.bmm(spread.flatten(0, 2), flat_out)
    grad_inputs.baddbmm_(leaving, flat_left)

    grad_spread = torch.bmm(flat, flat_out.transpose(1, 2)).view_as(spread)
    grad_D = None if D is None else grad_spread.diagonal(dim1=3, dim2=4).sum((0, 2, 3))
    grad_scores = grad_spread.mul_(within).sum(1).triu_()
    if same is not None:
        grad_scores *= same
    grad_spread *= scores.unsqueeze(1)
    grad_edges = torch.stack(
        (
            torch.bmm(flat, flat_left.transpose(1, 2)),
            torch.bmm(flat_out, entered.flatten(0, 2).transpose(1, 2)),
        ),
        2,
    ).view_as(edges)
    grad_sides = grad_edges.mul_(across.unsqueeze(5)).sum(1)
    grad_edges *= sides.unsqueeze(1)
    before, after = (side.flatten(0, 1) for side in sides.unbind(3))
    grad_before, grad_after = (side.flatten(0, 1) for side in grad_sides.unbind(3))
    grad_scores = grad_scores.flatten(0, 1)
    grad_B = torch.baddbmm(grad_before, grad_scores, after).view(*sides.shape[:3], -1)
    grad_C = torch.baddbmm(grad_after, grad_scores.transpose(1, 2), before).view(*sides.shape[:3], -1)

    by_border = (grad_left * entered).sum((3, 4)).mul_(through[..., 0, 0])
    grad_steps, grad_A = _gradients_of_decays(grad_spread, grad_edges, by_border, steps, A)
    grad_inputs = grad_inputs.view_as(inputs)
    return grad_inputs, grad_steps, grad_B, grad_C, grad_A, grad_D, border.transpose(2, 3)


def _borders(
    border: Tensor, added: Sequence[Tensor], through: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The state before each chunk, in the order given, and after the last one."""
    borders = []
    for new, left in zip(added, through):
        borders.append(border)
        border = torch.addcmul(new, left, border)
    return borders, border


def _gradients_of_decays(
    by_pair: Tensor, by_edge: Tensor, by_border: Tensor, steps: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of steps (B, H, K, Q) and A (H,), from the gradients of the logarithms of all decays.

    `by_pair` (B, H, K, Q, Q) belongs to the decays from row to column, `by_edge` (B, H, K, Q, 2, N) to those
    of `edges`, `by_border` (B, H, K) to those from border to border. Each decay is the exponential of a
    difference of two running sums; this adds up the gradients of each sum.
    """
    by_leaving, by_entering = by_edge.sum(5).unbind(4)
    by_source = by_pair.sum(4).add_(by_leaving)
    grad_total = by_pair.sum(3).add_(by_entering).sub_(by_source)
    grad_total[..., -1].add_(by_leaving.sum(3).add_(by_border))
    grad_logs = grad_total.flip(3).cumsum(3).flip(3)
    # Everything a step contributes has its size as a factor; a step of size 0 contributes nothing.
    by_source /= steps.clamp(min=torch.finfo(steps.dtype).tiny)
    return torch.addcmul(by_source, grad_logs, A.view(-1, 1, 1)), (grad_logs * steps).sum((0, 2, 3))


def _decays(steps: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """How much of a step's input remains at later steps of its chunk, and across the chunk's ends.

    `steps` is delta, (B, H, K, Q). Returns within (B, H, K, Q, Q), from row to column, and across
    (B, H, K, Q, 2): from each step to the chunk's end, and from before the chunk to each step. Contributions
    of a step are weighted by its size. If the column comes before the row, `within` is finite but
    meaningless.

    The difference of two running sums loses digits, so the sums are float64 if the device has it.
    """
    precise = torch.float32 if steps.device.type == "mps" else torch.float64
    sizes = steps.to(precise)
    # Powers of 2, because on CPU torch's exp is many times slower than its exp2.
    total = (sizes * (A.to(precise) / math.log(2)).view(-1, 1, 1)).cumsum(3)
    sources = F.pad(total - sizes.log2(), (0, 1))  # the state before the chunk comes last
    logs = (total.unsqueeze(3) - sources.unsqueeze(4)).to(steps.dtype)
    decays = logs.clamp_(max=MOST).exp2_()
    # What reaches the last step is what reaches the chunk's end.
    across = torch.stack((decays[..., :-1, -1], decays[..., -1, :]), 4)
    return decays[..., :-1, :], across
