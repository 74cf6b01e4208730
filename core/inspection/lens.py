"""What each layer would predict: the stream after it, sent directly to the head.

That is the logit lens (nostalgebraist, 2020). The stream after a layer passes through the resizes of later
layers, which is all that remains of them if mixer and feed-forward layer add nothing, then the last norm and
the head. The last layer's answer is the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.inspection.trace import Trace

LOGITS_AT_ONCE = 1 << 24


def stream_after(seen: Trace, layer: int) -> Tensor:
    """The stream after a layer in the width of the head, (T, n_embd[0]); layer -1 is the embedding."""
    x = seen.layers[0].before if layer < 0 else seen.layers[layer].after
    for one in seen.layers[layer + 1 :]:
        x = one.block.skip(x)
    return x


@torch.no_grad()
def lens_logits(seen: Trace, layer: int, positions: Tensor | slice = slice(None)) -> Tensor:
    """Logits (n, V) from the stream after a layer, at some positions; layer -1 is the embedding."""
    return seen.model.logits(seen.model.norm(stream_after(seen, layer)[positions]))


@dataclass(frozen=True)
class LayerAnswer:
    """What one layer would predict at one token.

    Attributes:
        layer: its number; -1 is the embedding, before any layer.
        tokens: the most probable next tokens, best first.
        probabilities: theirs.
        rank: of the token that follows in the text, 0 for the most probable; None at the text's end.
        probability: of the token that follows; None at the text's end.
    """

    layer: int
    tokens: list[int]
    probabilities: list[float]
    rank: int | None
    probability: float | None


@dataclass(frozen=True)
class Answers:
    """What all layers would predict at one token.

    Attributes:
        layers: the embedding, then each layer.
        following: the token that follows in the text; None at its end.
        answer_from: the first layer that would predict the following token; None if no layer would.
        decided_from: the first layer from which on all layers predict what the model predicts.
    """

    layers: list[LayerAnswer]
    following: int | None
    answer_from: int | None
    decided_from: int


def answers_at(seen: Trace, token: int, count: int = 5) -> Answers:
    """What each layer would predict after token number `token` of the text: the `count` likeliest tokens."""
    following = int(seen.tokens[token + 1]) if token + 1 < len(seen.tokens) else None
    layers = []
    for layer in range(-1, len(seen.layers)):
        logits = lens_logits(seen, layer, slice(token, token + 1))[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shares = logits.softmax(0)
        best = shares.topk(min(count, len(shares)))
        rank = probability = None
        if following is not None:
            rank = int((logits > logits[following]).sum())
            probability = float(shares[following])
        layers.append(LayerAnswer(layer, best.indices.tolist(), best.values.tolist(), rank, probability))
    said = [answer.tokens[0] for answer in layers]
    different = [answer.layer for answer, token in zip(layers, said) if token != said[-1]]
    return Answers(
        layers,
        following,
        next((answer.layer for answer in layers if answer.rank == 0), None),
        max(different, default=-2) + 1,
    )


@torch.no_grad()
def lens_losses(seen: Trace) -> list[float]:
    """The mean loss over the text in nats per token of each layer's predictions, the embedding's first.

    The last is the model's own. nan for a text of one token.
    """
    targets = seen.tokens[1:]
    rows = max(1, LOGITS_AT_ONCE // seen.model.vocab_size)
    losses = []
    for layer in range(-1, len(seen.layers)):
        total = 0.0
        for start in range(0, len(targets), rows):
            part = slice(start, min(start + rows, len(targets)))
            logits = lens_logits(seen, layer, part)
            wide = torch.promote_types(logits.dtype, torch.float32)
            total += float(F.cross_entropy(logits.to(wide), targets[part], reduction="sum"))
        losses.append(total / len(targets) if len(targets) else float("nan"))
    return losses
