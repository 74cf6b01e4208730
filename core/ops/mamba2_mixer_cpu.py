"""`mamba2_mixer` as one autograd function with a hand-written backward, for training on CPU.

It consists of the parts of `causal_conv`, `ssd_scan` and `rms_norm`, and two projections. As one function
they need no copies between them: each writes its results and gradients where the next one reads them. At the
sizes that people train on a CPU, torch's work between operations takes as long as the operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.ops import ssd_scan
from core.ops.causal_conv import convolve, convolve_backward
from core.ops.rms_norm import norm_rate
from core.ops.ssd_scan import by_head, scan_chunks, scan_chunks_backward

silu_into = torch.ops.aten.silu.out
silu_backward_into = torch.ops.aten.silu_backward.grad_input


def takes_mamba2_mixer_cpu(x: Tensor, conv_state: Tensor | None, reset: Tensor | None) -> bool:
    """Whether `mamba2_mixer_cpu` can take x (B, L, C).

    It trains on CPU, in whole chunks of time, without resets, in one type, without conv_state's gradient.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False  # the compiler has its own way
    if conv_state is None or reset is not None:
        return False
    if torch.is_autocast_enabled("cpu") or x.dtype != conv_state.dtype or conv_state.requires_grad:
        return False
    length = x.shape[1]
    return length > conv_state.shape[1] and length % min(ssd_scan.CHUNK, length) == 0 and x.itemsize >= 4


def mamba2_mixer_cpu(
    x: Tensor,
    in_proj: Tensor,
    conv: tuple[Tensor, Tensor],
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    out_proj: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_mixer` where `takes_mamba2_mixer_cpu` allows it."""
    chunk = min(ssd_scan.CHUNK, x.shape[1])
    y, conv_state, ssm_state = _Mamba2Mixer.apply(
        x, in_proj, *conv, A, D, dt_bias, norm, out_proj, conv_state, ssm_state, chunk, eps
    )
    return y, conv_state, ssm_state


class _Mamba2Mixer(torch.autograd.Function):
    """Arguments and results as in `mamba2_mixer_cpu`; the scan's shapes are those of `scan_chunks`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        in_weight: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        A: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        norm_weight: Tensor,
        out_weight: Tensor,
        conv_state: Tensor,
        ssm_state: Tensor,
        chunk: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, size, states = ssm_state.shape
        inner = heads * size
        projected = x @ in_weight.t()
        gate, mixed, dt = projected.split((inner, conv_weight.shape[0], heads), 2)
        padded = torch.cat((conv_state, mixed), 1)
        before = convolve(padded, conv_weight, conv_bias)
        raw = (dt + dt_bias).transpose(1, 2).contiguous()
        steps = F.softplus(raw).unflatten(2, (-1, chunk))
        sides = F.silu(before[..., inner:]).view(batch, -1, chunk, 2, states)
        inputs = steps.new_empty(*steps.shape, size)
        silu_into(by_head(before[..., :inner], heads, chunk), out=inputs)
        y, last, kept = scan_chunks(inputs, steps, sides, A, D, ssm_state, None)

        opened = F.silu(gate)
        normed = torch.empty_like(opened)
        torch.mul(by_head(opened, heads, chunk), y, out=by_head(normed, heads, chunk))
        rate = norm_rate(normed, eps)
        normed *= rate
        # The norm's weight multiplies the projection's, which is smaller than the tensor that is projected.
        weight = out_weight * norm_weight
        ctx.save_for_backward(
            x,
            in_weight,
            conv_weight,
            norm_weight,
            out_weight,
            weight,
            projected,
            padded,
            before,
            raw,
            y,
            opened,
            normed,
            rate,
            *kept,
        )
        ctx.set_materialize_grads(False)
        return normed @ weight.t(), padded[:, -conv_state.shape[1] :].clone(), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, in_weight, conv_weight, norm_weight, out_weight, weight, *saved = ctx.saved_tensors
        projected, padded, before, raw, y, opened, normed, rate, *kept = saved
        inputs, steps = kept[:2]
        heads, inner = steps.shape[1], normed.shape[2]
        grad_y, grad_conv_state, grad_last = gradients
        if grad_y is None:
            grad_y = torch.zeros_like(x)
        grad_projected = torch.empty_like(projected)
        grad_gate, grad_mixed, grad_dt = grad_projected.split((inner, conv_weight.shape[0], heads), 2)

        rows = grad_y.flatten(0, 1)
        grad_weight = rows.t() @ normed.flatten(0, 1)
        grad_out_weight, grad_norm_weight = grad_weight * norm_weight, (grad_weight * out_weight).sum(0)
        grad_scanned = torch.empty_like(inputs)
        _gated_norm_backward(
            grad_y @ weight, normed, rate, opened, y, projected[..., :inner], grad_scanned, grad_gate
        )
        grad_inputs, grad_steps, grad_B, grad_C, grad_A, grad_D, grad_ssm_state = scan_chunks_backward(
            kept, grad_scanned, grad_last
        )
        grad_raw = grad_steps.flatten(2).mul_(torch.sigmoid(raw))
        grad_dt.copy_(grad_raw.transpose(1, 2))

        grad_before = _activation_backward(grad_inputs, torch.cat((grad_B, grad_C), 3), before)
        grad_conv_weight, grad_conv_bias = convolve_backward(grad_before, padded, conv_weight, grad_mixed)
        if grad_conv_state is not None:
            grad_mixed[:, -grad_conv_state.shape[1] :] += grad_conv_state

        rows = grad_projected.flatten(0, 1)
        return (
            grad_projected @ in_weight,
            rows.t() @ x.flatten(0, 1),
            grad_conv_weight,
            grad_conv_bias,
            grad_A,
            grad_D,
            grad_raw.sum((0, 2)),
            grad_norm_weight,
            grad_out_weight,
            None,
            grad_ssm_state,
            None,
            None,
        )


def _gated_norm_backward(
    grad_normed: Tensor,
    normed: Tensor,
    rate: Tensor,
    opened: Tensor,
    y: Tensor,
    gate: Tensor,
    grad_y: Tensor,
    grad_gate: Tensor,
) -> None:
    """Write the gradients of y (B, H, K, Q, P) and gate (B, L, D), given that of the norm of y silu(gate).

    `opened` is silu(gate), `rate` the norm's factor.
    """
    heads, chunk = y.shape[1], y.shape[3]
    grad = grad_normed * normed
    along = grad.sum(2, keepdim=True)
    torch.addcmul(grad_normed, normed, along, value=-1 / normed.shape[2], out=grad).mul_(rate)
    grad_by_head = by_head(grad, heads, chunk)
    torch.mul(grad_by_head, by_head(opened, heads, chunk), out=grad_y)
    grad_by_head *= y
    silu_backward_into(grad, gate, grad_input=grad_gate)


def _activation_backward(grad_inputs: Tensor, grad_sides: Tensor, before: Tensor) -> Tensor:
    """The gradient of `before` (B, L, D + 2N), given the gradients of its SiLU.

    Those are `grad_inputs` (B, H, K, Q, P), and `grad_sides` (B, K, Q, 2N) of B and C.
    """
    _, heads, _, chunk, size = grad_inputs.shape
    inner = heads * size
    grad = torch.empty_like(before)
    silu_backward_into(
        grad_inputs,
        by_head(before[..., :inner], heads, chunk),
        grad_input=by_head(grad[..., :inner], heads, chunk),
    )
    silu_backward_into(grad_sides.flatten(1, 2), before[..., inner:], grad_input=grad[..., inner:])
    return grad
