"""Which earlier tokens the heads of an attention layer attend to."""

from __future__ import annotations

import torch
from torch import Tensor

from core.inspection.trace import Trace
from core.model import MultiHeadAttention


@torch.no_grad()
def attention_map(seen: Trace, layer: int) -> Tensor:
    """The attention of every head, (H, T, T): row t has the weights of token t over the text, with sum 1.

    Later tokens, other documents, and tokens outside the window have weight 0.
    """
    one = seen.layers[layer]
    mixer = one.block.mixer
    assert isinstance(mixer, MultiHeadAttention)
    queries, keys, _ = mixer.qkv(one.mixer_input)[None].unflatten(2, (3 * mixer.heads, -1)).chunk(3, 2)
    if mixer.rope:
        queries, keys = seen.positions.rotate(torch.cat((queries, keys), 2)).chunk(2, 2)
    wide = torch.promote_types(queries.dtype, torch.float32)
    queries, keys = (part[0].transpose(0, 1).to(wide) for part in (queries, keys))  # (H, T, E)
    scores = queries @ keys.mT * queries.shape[2] ** -0.5
    time = torch.arange(len(seen.tokens), device=scores.device)
    distance = time[:, None] - time
    hidden = (distance < 0) | (distance > seen.positions.visible_length[0, :, None])
    return scores.masked_fill_(hidden, -torch.inf).softmax(2)


def entropy(weights: Tensor) -> Tensor:
    """The entropy in nats of each row of weights (..., T, T) that sum to 1, (..., T).

    Zero: attends to one token; ln n: attends to n tokens equally.
    """
    return -torch.special.xlogy(weights, weights).sum(-1)


def mean_distance(weights: Tensor) -> Tensor:
    """How many tokens back each row of weights (..., T, T) with sum 1 attends on average, (..., T)."""
    time = torch.arange(weights.shape[-1], device=weights.device, dtype=weights.dtype)
    return time - weights @ time
