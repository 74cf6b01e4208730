"""The scan of Mamba-2 (structured state space duality, arXiv 2405.21060).

With one decay a head instead of one a channel and state, a chunk of time is three small matrix products:
what its inputs give its outputs, what the entering state gives its outputs, and what its inputs leave in
the state. Only the states at chunk borders are sequential.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    else:
        y, state = _chunked(inputs, delta, A.to(wide), B, C, state, reset)
    if D is not None:
        y = y + inputs * D.to(wide).unsqueeze(1)
    return y.to(x.dtype), state


def _one_step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """L = 1, as in decoding. Shapes as in `ssd_scan`, delta (B, 1, H)."""
    decay = torch.exp(delta * A)
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(2), 0)
    scaled = x[:, 0] * delta[:, 0].unsqueeze(2)
    state = state * decay[:, 0, :, None, None] + scaled.unsqueeze(3) * B[:, :, None]
    return (state @ C.unsqueeze(3)).squeeze(3).unsqueeze(1), state


def _chunked(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan without the direct path. Shapes as in `ssd_scan`; K chunks of Q steps inside."""
    length = x.shape[1]
    chunk = min(CHUNK, length)
    missing = -length % chunk
    count = (length + missing) // chunk
    if missing:  # steps of size zero: they leave the state as it is
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
        delta, B, C = (F.pad(part, (0, 0, 0, missing)) for part in (delta, B, C))
        reset = None if reset is None else F.pad(reset, (0, missing))
    scaled = (x * delta.unsqueeze(3)).unflatten(1, (count, chunk)).transpose(2, 3)  # (B, K, H, Q, P)
    B, C = B.unflatten(1, (count, chunk)), C.unflatten(1, (count, chunk))  # (B, K, Q, N)
    within, entering, leaving, through = _decays(delta, A, reset, count, chunk)

    scores = (C @ B.transpose(2, 3)).unsqueeze(2) * within  # (B, K, H, Q, Q)
    y = scores @ scaled
    added = (scaled * leaving.unsqueeze(4)).transpose(3, 4) @ B.unsqueeze(2)  # (B, K, H, P, N)
    borders = []
    for k in range(count):
        borders.append(state)
        state = torch.addcmul(added[:, k], through[:, k, :, None, None], state)
    carried = C.unsqueeze(2) @ torch.stack(borders, 1).transpose(3, 4)  # (B, K, H, Q, P)
    y = torch.addcmul(y, carried, entering.unsqueeze(4))
    return y.transpose(2, 3).flatten(1, 2)[:, :length], state


def _decays(
    delta: Tensor, A: Tensor, reset: Tensor | None, count: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left of a step's input at a later step of its chunk, and across its borders.

    Returns within (B, K, H, Q, Q) from column to row, entering (B, K, H, Q) from the state before the
    chunk to each step, leaving (B, K, H, Q) from each step to the chunk's end, through (B, K, H).

    A difference of two running sums loses the digits that the sums do not share, so they are float64
    where the device has it.
    """
    precise = torch.float32 if delta.device.type == "mps" else torch.float64
    logs = (delta.to(precise) * A.to(precise)).unflatten(1, (count, chunk)).transpose(2, 3)
    total = logs.cumsum(3)  # (B, K, H, Q)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=delta.device).tril()
    visible, from_start, to_end = causal, None, None
    if reset is not None:
        part = reset.unflatten(1, (count, chunk)).cumsum(2).unsqueeze(2)  # (B, K, 1, Q): document in chunk
        visible = causal & (part.unsqueeze(4) == part.unsqueeze(3))
        from_start, to_end = part == 0, part == part[..., -1:]
    wide = delta.dtype
    distance = (total.unsqueeze(4) - total.unsqueeze(3)).to(wide)
    within = distance.masked_fill(~visible, -torch.inf).exp()
    entering = total.to(wide)
    leaving = (total[..., -1:] - total).to(wide)
    if from_start is not None and to_end is not None:
        entering = entering.masked_fill(~from_start, -torch.inf)
        leaving = leaving.masked_fill(~to_end, -torch.inf)
    entering = entering.exp()
    return within, entering, leaving.exp(), entering[..., -1]
