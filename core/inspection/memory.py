"""What Mamba layers remember: how fast they forget, which tokens affect which, and how large states are.

Both kinds of Mamba are one recurrence. A group g is a channel in Mamba (S6) and a head in Mamba-2; it reads P
inputs per token (1 in Mamba) into N states each, which decay at its rates (N of them in Mamba, 1 in Mamba-2):

    h_t = exp(delta_t rate) h_{t-1} + delta_t x_t B_t,   y_t = C_t h_t + D x_t,   h is emptied at doc_start

(arXiv 2312.00752 and 2405.21060). Without D, y_t is a sum over the tokens s before it of x_s times

    M[t, s] = sum_n C_t[n] B_s[n] exp(rate[n] (delta_{s+1} + ... + delta_t)) delta_s,

the effective attention of a group (arXiv 2403.01590).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.inspection.trace import Trace
from core.model import NORM_EPSILON, Mamba2Block, MambaBlock, decay_rates
from core.ops.causal_conv import causal_conv
from core.ops.rms_norm import rms_norm

ELEMENTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Recurrence:
    """A Mamba layer's recurrence on a text, in float32 at least; G groups as above.

    Attributes:
        x: inputs, (T, G, P).
        delta: step sizes, (T, G).
        rates: negative, (G, N) in Mamba, (G, 1) in Mamba-2.
        B: input weights, (T, N).
        C: output weights, (T, N).
        document: the number of each token's document, (T,).
    """

    x: Tensor
    delta: Tensor
    rates: Tensor
    B: Tensor
    C: Tensor
    document: Tensor

    @property
    def groups(self) -> int:
        """Channels or heads."""
        return self.delta.shape[1]


@torch.no_grad()
def recurrence(seen: Trace, layer: int) -> Recurrence:
    """The recurrence of a Mamba or Mamba-2 layer on the text."""
    one = seen.layers[layer]
    mixer, reset = one.block.mixer, seen.doc_start[None]
    normed = one.mixer_input[None]
    if isinstance(mixer, MambaBlock):
        inputs = mixer.in_proj(normed).chunk(2, 2)[0]
        x, _ = causal_conv(inputs, mixer.conv_weight, mixer.conv_bias, reset=reset)
        parts = F.linear(x, mixer.x_proj.weight).split(mixer.split, 2)
        norms = (mixer.dt_norm, mixer.B_norm, mixer.C_norm)
        dt, B, C = (rms_norm(part, norm.weight, NORM_EPSILON) for part, norm in zip(parts, norms))
        raw, rates, x = F.linear(dt, mixer.dt_proj.weight), decay_rates(mixer.A_log), x.unsqueeze(3)
    else:
        assert isinstance(mixer, Mamba2Block)
        convolved = mixer.inner + 2 * mixer.states
        _, mixed, raw = mixer.in_proj(normed).split((mixer.inner, convolved, mixer.heads), 2)
        mixed, _ = causal_conv(mixed, mixer.conv_weight, mixer.conv_bias, reset=reset)
        x, B, C = mixed.split((mixer.inner, mixer.states, mixer.states), 2)
        rates, x = decay_rates(mixer.A_log).unsqueeze(1), x.unflatten(2, (mixer.heads, -1))
    wide = torch.promote_types(raw.dtype, torch.float32)
    delta = F.softplus(raw.to(wide) + mixer.dt_bias)
    return Recurrence(x[0].to(wide), delta[0], rates.to(wide), B[0].to(wide), C[0].to(wide), seen.document)


def half_lives(memory: Recurrence) -> Tensor:
    """After how many tokens of this text half of a state remains, (G, N) in Mamba, (G, 1) in Mamba-2.

    At the mean step size over the text: ln 2 / (mean delta |rate|).
    """
    return math.log(2) / (memory.delta.mean(0).unsqueeze(1) * -memory.rates)


def half_lives_at(memory: Recurrence, tokens: Tensor) -> Tensor:
    """The same at the mean step size of the tokens numbered `tokens` (n,)."""
    return math.log(2) / (memory.delta[tokens].mean(0).unsqueeze(1) * -memory.rates)


def around(memory: Recurrence, starts: Tensor, offset: int) -> Tensor:
    """The tokens `offset` after each of `starts` (n,), if they are in the same document, (m,)."""
    tokens = starts + offset
    inside = (tokens >= 0) & (tokens < len(memory.document))
    starts, tokens = starts[inside], tokens[inside]
    return tokens[memory.document[tokens] == memory.document[starts]]


def effective_attention(
    memory: Recurrence, groups: Tensor, queries: slice = slice(None), keys: slice = slice(None)
) -> Tensor:
    """M for the groups numbered `groups` (g,), (g, queries, keys): signed, with any row sums."""
    time = torch.arange(len(memory.document), device=memory.delta.device)
    elapsed = memory.delta[:, groups].double().cumsum(0).t()  # differences of long sums need the precision
    spent = elapsed[:, queries, None] - elapsed[:, None, keys]
    visible = (time[queries, None] >= time[keys]) & (memory.document[queries, None] == memory.document[keys])
    spent = spent.masked_fill(~visible, 0.0).to(memory.delta.dtype)
    C, B = memory.C[queries], memory.B[keys]
    if memory.rates.shape[1] == 1:
        total = (C @ B.t()) * torch.exp(memory.rates[groups].unsqueeze(2) * spent)
    else:
        total = torch.zeros_like(spent)
        for n in range(memory.rates.shape[1]):
            decay = torch.exp(memory.rates[groups, n, None, None] * spent)
            total.addcmul_(decay, torch.outer(C[:, n], B[:, n]))
    return (total * memory.delta[keys][:, groups].t().unsqueeze(1)).masked_fill_(~visible, 0.0)


def mean_effective_attention(
    memory: Recurrence, queries: slice = slice(None), keys: slice = slice(None)
) -> Tensor:
    """The mean of |M| over all groups, (queries, keys)."""
    time = torch.arange(len(memory.document), device=memory.delta.device)
    shape = (len(time[queries]), len(time[keys]))
    total = torch.zeros(shape, device=memory.delta.device, dtype=memory.delta.dtype)
    for groups in torch.arange(memory.groups, device=total.device).split(
        max(1, ELEMENTS_AT_ONCE // max(1, shape[0] * shape[1]))
    ):
        total += effective_attention(memory, groups, queries, keys).abs_().sum(0)
    return total / memory.groups


def state_norms(memory: Recurrence) -> Tensor:
    """The norm of the layer's whole state after each token, (T,)."""
    state = torch.zeros_like(memory.x[0]).unsqueeze(2) * memory.B[0]  # (G, P, N)
    decays = torch.exp(memory.delta.unsqueeze(2) * memory.rates)  # (T, G, N or 1)
    inputs = memory.delta.unsqueeze(2) * memory.x
    begins = torch.diff(memory.document, prepend=memory.document.new_zeros(1)) > 0
    norms = []
    for t, begin in enumerate(begins.tolist()):
        entering = inputs[t].unsqueeze(2) * memory.B[t]
        state = entering if begin else torch.addcmul(entering, state, decays[t].unsqueeze(1))
        norms.append(torch.linalg.vector_norm(state))
    return torch.stack(norms)
