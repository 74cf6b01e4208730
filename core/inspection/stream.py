"""What layers do to the stream: how much they add, which units never fire, how many directions are used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.inspection.trace import LayerTrace


@dataclass(frozen=True)
class Contribution:
    """How much a layer adds, each as the norm of the addition over the norm of what it is added to, (T,).

    Attributes:
        mixer: the mixer's part, relative to the incoming stream.
        mlp: the feed-forward layer's part, relative to the stream it is added to, already resized.
        layer: both parts, relative to the incoming stream, resized if widths change.
    """

    mixer: Tensor
    mlp: Tensor
    layer: Tensor


def _ratio(added: Tensor, stream: Tensor) -> Tensor:
    """The ratio of norms (T,) of two (T, C); a stream of zeros counts as the smallest positive number."""
    smallest = torch.finfo(stream.dtype).tiny
    return torch.linalg.vector_norm(added, dim=1) / torch.linalg.vector_norm(stream, dim=1).clamp(
        min=smallest
    )


@torch.no_grad()
def contribution(one: LayerTrace) -> Contribution:
    """How much a layer adds to the stream at each token."""
    skip = one.block.skip
    passed = skip(one.before)
    return Contribution(
        _ratio(one.mixed, one.before),
        _ratio(one.mlp_output, skip(one.middle)),
        _ratio(one.after - passed, passed),
    )


@torch.no_grad()
def active_share(one: LayerTrace) -> Tensor:
    """The share of the text's tokens at which each feed-forward unit fires, (units,); 0 for a dead one."""
    return (one.mlp_input @ one.block.mlp.up.weight.t() > 0).double().mean(0)


@torch.no_grad()
def singular_values(stream: Tensor) -> Tensor:
    """The singular values (min(T, C),) of a stream (T, C) about its mean over the text, largest first."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return torch.linalg.svdvals(wide - wide.mean(0))


def effective_rank(values: Tensor) -> float:
    """How many directions the singular values (n,) use: exp of the entropy of their shares.

    Roy and Vetterli, 2007.
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def directions_for(values: Tensor, share: float) -> int:
    """How many of the largest singular values (n,) carry this share of the variance."""
    variance = values.double().square().cumsum(0)
    if not len(values) or not variance[-1] > 0:
        return 0
    return int((variance < share * variance[-1]).sum()) + 1
