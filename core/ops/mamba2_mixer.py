"""A Mamba-2 layer (arXiv 2405.21060): everything between its norm and the residual stream.

x -> in_proj --+-- gate -----------------------------------+
               +-- inputs, B, C -> causal convolution --+  |
               +-- dt ----------------------------------+  |
                                                        |  |
                                       state space scan <- |
                                                |          |
                                                x <--------+ (silu) -> norm -> out_proj -> y
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from core.ops.causal_conv import causal_conv
from core.ops.dispatch import ALIGNED
from core.ops.mamba2_mixer_cpu import mamba2_mixer_cpu, takes_mamba2_mixer_cpu
from core.ops.rms_norm import rms_norm
from core.ops.ssd_scan import ssd_scan


def mamba2_mixer(
    x: Tensor,
    in_proj: Tensor,
    conv: tuple[Tensor, Tensor],
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    norm: Tensor,
    out_proj: Tensor,
    *,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    reset: Tensor | None,
    eps: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Projection, convolution, scan, gate, norm, projection.

    Args:
        x: (B, L, C).
        in_proj: to the gate, the inputs of the convolution (inputs, B, C) and dt, (D + (D + 2N) + H, C).
        conv: the convolution's weight (D + 2N, K) and bias (D + 2N,).
        A, D, dt_bias: of the scan, (H,) each.
        norm: the norm's weight, (D,).
        out_proj: (C, D).
        conv_state: the K - 1 inputs of the convolution before these, (B, K - 1, D + 2N); zeros if None.
        ssm_state: the scan's state before these inputs, (B, H, P, N) with D = H P; zeros if None.
        reset: (B, L) bool, where a document starts.
        eps: added to the mean square of the norm.
        dropout: fraction of the norm's output that is set to zero.

    Returns:
        y (B, L, C), and the new conv_state and ssm_state in the types of the given ones.
    """
    if dropout == 0 and takes_mamba2_mixer_cpu(x, conv_state, reset):
        assert conv_state is not None
        assert ssm_state is not None
        return mamba2_mixer_cpu(
            x, in_proj, conv, A, D, dt_bias, norm, out_proj, conv_state, ssm_state, eps
        )  # fmt: skip
    inner, heads = norm.shape[0], D.shape[0]
    gate, mixed, dt = _project(x, in_proj, [inner, conv[0].shape[0], heads])
    mixed, new_conv_state = causal_conv(mixed, *conv, conv_state=conv_state, reset=reset)
    states = (mixed.shape[2] - inner) // 2
    inputs, B, C = mixed.split((inner, states, states), 2)
    y, ssm_state = ssd_scan(
        inputs.unflatten(2, (heads, -1)), dt, A, B, C, D, dt_bias=dt_bias, h0=ssm_state, reset=reset
    )
    y = F.linear(F.dropout(rms_norm(y.flatten(2) * F.silu(gate), norm, eps), dropout), out_proj)
    return y, new_conv_state if conv_state is None else new_conv_state.to(conv_state.dtype), ssm_state


def _project(x: Tensor, weight: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """x weight^T, (B, L, sum(sizes)), split into three parts of these sizes."""
    missing = -weight.shape[0] % ALIGNED
    if not (missing and x.is_cuda):
        gate, mixed, dt = F.linear(x, weight).split(sizes, 2)
        return gate, mixed, dt
    # The tensor cores are fast only if rows begin at multiples of 16 bytes.
    projected = F.linear(x, F.pad(weight, (0, 0, 0, missing)))
    gate, mixed, dt, _ = projected.split([*sizes, missing], 2)
    return gate, mixed, dt
