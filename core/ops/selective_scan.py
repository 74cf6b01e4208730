"""The selective scan of Mamba (S6, arXiv 2312.00752), with state in, state out, and document resets.

The plain torch path here is the CPU path and the reference. It never holds the states (B, L, N, D) of the
whole
sequence: time is cut into short chunks, the state before each chunk (its border) is kept, and the backward
recomputes the states inside a chunk from its border. Inside, everything is time-major with channels
innermost, (time, B, N, D), so that one step is one contiguous fused multiply-add.
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

# Steps per chunk: few enough that its (chunk, B, N, D) buffers fit in the cache if possible, many enough that
# the borders, one state per chunk, take little memory.
CHUNK_ELEMENTS = 1 << 20
MIN_CHUNK, MAX_CHUNK = 8, 16
LOG2_E = 1 / math.log(2)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the selective state space model over time.

    delta = softplus(dt + dt_bias); h_t = (0 if reset_t else exp(delta_t A)) h_{t-1} + delta_t B_t x_t;
    y_t = C_t h_t + D x_t, times silu(z_t) if z is given.

    Args:
        x: input, (B, L, D).
        dt: raw step sizes before bias and softplus, (B, L, D).
        A: negative decay rates, (D, N).
        B: input weights, (B, L, N).
        C: output weights, (B, L, N).
        D: direct path, (D,).
        z: gate, (B, L, D).
        dt_bias: added to dt, (D,).
        h0: state before the first step, (B, D, N); zeros if None.
        reset: (B, L), true where the state is forgotten before the step.

    Returns:
        y (B, L, D) in x's dtype and the last state (B, D, N), float32 (float64 if x is).
    """
    if takes_triton(x, "selective_scan"):
        from core.ops.triton.selective_scan.operator import selective_scan_triton

        return selective_scan_triton(x, dt, A, B, C, D, z=z, dt_bias=dt_bias, h0=h0, reset=reset)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if h0 is None:
        h0 = torch.zeros(x.shape[0], *A.shape, dtype=wide, device=x.device)
    if x.shape[1] == 1 and not torch.is_grad_enabled():
        return _one_step(x, dt, A, B, C, D, z, dt_bias, h0.to(wide), reset)
    y, last = _SelectiveScan.apply(x, dt, A, B, C, D, z, dt_bias, h0.to(wide), reset)
    return y, last


def _one_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """L = 1 without gradients, as in decoding, in as few calls as possible. Shapes as in `selective_scan`."""
    wide = h0.dtype
    delta = dt[:, 0].to(wide)
    delta = F.softplus(delta if dt_bias is None else delta + dt_bias)
    step = x[:, 0].to(wide)
    decay = torch.exp2(delta.unsqueeze(2) * (A.to(wide) * LOG2_E))
    if reset is not None:
        decay = decay * (~reset).to(wide).unsqueeze(2)
    h = torch.addcmul((delta * step).unsqueeze(2) * B.to(wide), decay, h0)
    y = torch.bmm(h, C.to(wide).transpose(1, 2)).squeeze(2)
    if D is not None:
        y = torch.addcmul(y, step, D.to(wide))
    if z is not None:
        y = y * F.silu(z[:, 0].to(wide))
    return y.to(x.dtype).unsqueeze(1), h


def _time_major(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, ...) to a contiguous (L, B, ...)."""
    return tensor.transpose(0, 1).to(dtype).contiguous()


class _Chunks:
    """The scan's inputs in time-major order, and the states of one chunk at a time."""

    def __init__(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, reset: Tensor | None) -> None:
        """`delta` holds the step sizes after softplus, (L, B, D); the others are as in `selective_scan`."""
        wide = delta.dtype
        self.delta = delta
        self.x = _time_major(x, wide)
        self.input = self.delta * self.x
        self.A = A.to(wide).t().contiguous()
        self.A_binary = self.A * LOG2_E
        self.B = _time_major(B, wide)
        self.keep = None if reset is None else (~reset).t().to(wide)[:, :, None, None]
        length, batch, width = self.x.shape
        state = batch * width * A.shape[1]
        self.size = min(length, max(MIN_CHUNK, min(MAX_CHUNK, CHUNK_ELEMENTS // max(state, 1))))
        shape = (self.size, batch, A.shape[1], width)
        self.decay_buffer = self.x.new_empty(shape)
        self.state_buffer = self.x.new_empty(shape)
        self.starts = range(0, length, self.size)

    def rows(self, start: int) -> slice:
        """The rows (time and batch) of the chunk at `start`."""
        batch = self.x.shape[1]
        return slice(start * batch, (start + self.size) * batch)

    def states(self, start: int, border: Tensor) -> tuple[Tensor, Tensor]:
        """Decays and states, both (time, B, N, D), of the chunk at `start`, from the state `border`.

        Both are views of buffers that the next call overwrites.
        """
        part = slice(start, start + self.size)
        delta = self.delta[part].unsqueeze(2)
        # Powers of 2, because on CPU torch's exp is three times slower than its exp2.
        decay = torch.mul(delta, self.A_binary, out=self.decay_buffer[: len(delta)]).exp2_()
        if self.keep is not None:
            decay *= self.keep[part]
        states = torch.mul(
            self.input[part].unsqueeze(2), self.B[part].unsqueeze(3), out=self.state_buffer[: len(delta)]
        )
        _recur(states.unbind(), decay.unbind(), border)
        return decay, states


def _rows(tensor: Tensor) -> Tensor:
    """(L, B, X) as (L B, 1, X)."""
    return tensor.view(-1, 1, tensor.shape[2])


def _recur(steps: Sequence[Tensor], factors: Sequence[Tensor], before: Tensor) -> None:
    """Add to each step its factor times the previous step, in place; `before` precedes the first."""
    for step, factor in zip(steps, factors, strict=True):
        before = step.addcmul_(factor, before)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        h0: Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        raw = _time_major(dt, h0.dtype)
        raw = raw if dt_bias is None else raw + dt_bias
        delta = F.softplus(raw)
        chunks = _Chunks(x, delta, A, B, reset)
        weights = _rows(_time_major(C, h0.dtype))
        y = torch.empty_like(chunks.x)
        outputs = _rows(y)
        borders = h0.new_empty(len(chunks.starts), *h0.transpose(1, 2).shape)
        border = h0.transpose(1, 2)
        for i, start in enumerate(chunks.starts):
            borders[i] = border
            _, states = chunks.states(start, borders[i])
            rows = chunks.rows(start)
            torch.bmm(weights[rows], states.flatten(0, 1), out=outputs[rows])
            border = states[-1]
        last = border.transpose(1, 2).contiguous()
        if D is not None:
            y.addcmul_(chunks.x, D.to(y.dtype))
        y = y.transpose(0, 1)
        out = y if z is None else y * F.silu(z.to(y.dtype))
        ctx.save_for_backward(x, raw, delta, A, B, C, D, z, reset, borders, None if z is None else y)
        ctx.dtypes = dt.dtype, None if dt_bias is None else dt_bias.dtype
        return out.to(x.dtype).contiguous(), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_out, grad_last = gradients
        x, raw, delta, A, B, C, D, z, reset, borders, y = ctx.saved_tensors
        dt_dtype, bias_dtype = ctx.dtypes
        chunks = _Chunks(x, delta, A, B, reset)
        wide = chunks.x.dtype
        grad_z = None
        if z is not None:
            gate = z.to(wide)
            sigmoid = torch.sigmoid(gate)
            silu = gate * sigmoid
            grad_z = (grad_out * y * (sigmoid + silu * (1 - sigmoid))).to(z.dtype)
            grad_out = grad_out * silu
        grad_y = _time_major(grad_out, wide)
        weights = _time_major(C, wide)
        grads = _scan_backward(chunks, weights, grad_y, grad_last.transpose(1, 2), borders)
        grad_input, grad_delta, grad_A, grad_B, grad_C, grad_h0 = grads

        grad_x = grad_input * chunks.delta
        grad_D = None
        if D is not None:
            grad_x.addcmul_(grad_y, D.to(wide))
            grad_D = (grad_y * chunks.x).sum((0, 1)).to(D.dtype)
        grad_delta.addcmul_(grad_input, chunks.x)
        grad_raw = grad_delta.mul_(torch.sigmoid(raw))
        return (
            grad_x.transpose(0, 1).to(x.dtype),
            grad_raw.transpose(0, 1).to(dt_dtype),
            grad_A.t().to(A.dtype),
            grad_B.transpose(0, 1).to(B.dtype),
            grad_C.transpose(0, 1).to(C.dtype),
            grad_D,
            grad_z,
            None if bias_dtype is None else grad_raw.sum((0, 1)).to(bias_dtype),
            grad_h0.transpose(1, 2),
            None,
        )


def _scan_backward(
    chunks: _Chunks, C: Tensor, grad_y: Tensor, grad_last: Tensor, borders: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input = delta x, delta (through the decay only), A, B, C, h0; time-major.

    The gradient of a state, g_t = C_t dy_t + decay_{t+1} g_{t+1}, is a scan backwards in time.
    """
    grad_input, grad_delta = torch.empty_like(grad_y), torch.empty_like(grad_y)
    grad_B, grad_C = torch.empty_like(chunks.B), torch.empty_like(C)
    sides = [_rows(tensor) for tensor in (grad_y, chunks.input, chunks.B)]
    grad_input_rows, grad_B_rows, grad_C_rows = (_rows(tensor) for tensor in (grad_input, grad_B, grad_C))
    by_decay = torch.zeros_like(chunks.state_buffer)
    buffer = torch.empty_like(chunks.state_buffer)
    carried = grad_last
    for i in reversed(range(len(chunks.starts))):
        start = chunks.starts[i]
        part, rows = slice(start, start + chunks.size), chunks.rows(start)
        y_rows, input_rows, B_rows = (side[rows] for side in sides)
        decay, states = chunks.states(start, borders[i])
        # row times transposed matrix: as matrix times column, the same product is ten times slower on CPU
        torch.bmm(y_rows, states.flatten(0, 1).transpose(1, 2), out=grad_C_rows[rows])
        grad = torch.mul(grad_y[part].unsqueeze(2), C[part].unsqueeze(3), out=buffer[: len(states)])
        grad[-1].add_(carried)
        later, *earlier = grad.unbind()[::-1]
        _recur(earlier, decay.unbind()[:0:-1], later)
        flat = grad.flatten(0, 1)
        torch.bmm(B_rows, flat, out=grad_input_rows[rows])
        torch.bmm(input_rows, flat.transpose(1, 2), out=grad_B_rows[rows])
        # From here `grad` becomes the gradient of the exponent delta A: g_t decay_t h_{t-1}.
        grad *= decay
        carried = grad[0].clone()
        grad[1:].mul_(states[:-1])
        grad[0].mul_(borders[i])
        by_decay[: len(grad)].addcmul_(grad, chunks.delta[part].unsqueeze(2))
        torch.sum(grad.mul_(chunks.A), 2, out=grad_delta[part])
    return grad_input, grad_delta, by_decay.sum((0, 1)), grad_B, grad_C, carried
