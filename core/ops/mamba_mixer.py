"""A Mamba layer (arXiv 2312.00752) between its two outer projections.

projected --+-- inputs -> causal convolution -> x -+-> x_proj -> dt, B, C -> a norm each -> dt_proj(dt)
            |                                      |                                           |
            |                                      +------------> selective scan <-------------+
            |                                                           |
            +-- gate -------------------------------------------------> x ----> y
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from core.ops.causal_conv import causal_conv
from core.ops.dispatch import takes_triton
from core.ops.rms_norm import rms_norm
from core.ops.selective_scan import selective_scan


def mamba_mixer(
    projected: Tensor,
    conv: tuple[Tensor, Tensor],
    x_proj: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    dt_proj: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    *,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    reset: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution, projection to dt, B and C, their norms, scan and gate.

    Args:
        projected: inputs and gates side by side, (B, L, 2D).
        conv: the convolution's weight (D, K) and bias (D,).
        x_proj: to dt, B and C, (R + 2N, D).
        norms: the weights of the norms of dt (R,), B and C (N,).
        dt_proj: (D, R).
        A, D, dt_bias: of the scan, (D, N), (D,) and (D,).
        conv_state: the K - 1 inputs of the convolution before these, (B, K - 1, D); zeros if None.
        ssm_state: the scan's state before these inputs, (B, D, N); zeros if None.
        reset: (B, L) bool, where a document starts.
        eps: added to the mean squares of the norms.

    Returns:
        y (B, L, D), and the new conv_state and ssm_state in the types of the given ones.
    """
    if takes_triton(projected, "mamba_mixer"):
        from core.ops.triton.mamba_mixer import mamba_mixer_triton

        y, new_conv_state, ssm_state = mamba_mixer_triton(
            projected, conv, x_proj, norms, dt_proj, A, D, dt_bias,
            conv_state=conv_state, h0=ssm_state, reset=reset, eps=eps,
        )  # fmt: skip
    else:
        inputs, gate = projected.chunk(2, 2)
        x, new_conv_state = causal_conv(inputs, *conv, conv_state=conv_state, reset=reset)
        parts = F.linear(x, x_proj).split([norm.shape[0] for norm in norms], 2)
        dt, B, C = (rms_norm(part, norm, eps) for part, norm in zip(parts, norms))
        y, ssm_state = selective_scan(
            x, F.linear(dt, dt_proj), A, B, C, D, z=gate, dt_bias=dt_bias, h0=ssm_state, reset=reset
        )
    return y, new_conv_state if conv_state is None else new_conv_state.to(conv_state.dtype), ssm_state
