"""The whole report on a text's way through the layers, as plain values for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config.schema import STANDARD
from core.data.corpus.preview import token_texts
from core.data.tokenizer.tokenizer import Tokenizer
from core.inspection.attention import attention_map, entropy, mean_distance
from core.inspection.lens import Answers, answers_at, lens_losses
from core.inspection.memory import Recurrence, around, half_lives, half_lives_at, recurrence, state_norms
from core.inspection.stream import (
    active_share,
    contribution,
    directions_for,
    effective_rank,
    singular_values,
)
from core.inspection.text import InspectedText
from core.inspection.trace import Trace, trace
from core.model import GPT

VARIANCE_SHARE = 0.9
PARAGRAPH_OFFSETS = range(-4, 9)
DOCUMENT_OFFSETS = range(9)
LONGEST_HALF_LIFE = 13
"""Half-lives are counted below 1, from 1 to 2, from 2 to 4 and so on; the last count is from 2^13 on."""


def look_at(model: GPT, text: InspectedText) -> Trace:
    """A model's forward pass over a text, stored."""
    device = model.embedding.weight.device
    return trace(model, torch.from_numpy(text.tokens).to(device), torch.from_numpy(text.starts).to(device))


def about_model(model: GPT) -> dict[str, Any]:
    """The shape of a model: its layers, its waist."""
    config = model.config
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "block_size": config.block_size,
        "waist": model.waist,
        "layers": [
            {"layer": i, "kind": config.attention_type[i], "width": config.n_embd[i], **_groups(model, i)}
            for i in range(config.n_layer)
        ],
    }


def _groups(model: GPT, layer: int) -> dict[str, Any]:
    """The parts of a layer that can be inspected individually."""
    mixer: Any = model.blocks[layer].mixer
    if hasattr(mixer, "x_proj"):
        return {"groups": mixer.D.shape[0], "group": "channel"}
    return {"groups": mixer.heads, "group": "head"}


def layer_figures(seen: Trace, layer: int) -> dict[str, Any]:
    """How much a layer adds, which units are dead, how many directions its stream uses."""
    one = seen.layers[layer]
    adds, fires, values = contribution(one), active_share(one), singular_values(one.middle)
    figures: dict[str, Any] = {
        "layer": layer,
        "kind": seen.model.config.attention_type[layer],
        "width": one.middle.shape[1],
        "contribution": {name: float(getattr(adds, name).mean()) for name in ("mixer", "mlp", "layer")},
        "units": len(fires),
        "dead_units": int((fires == 0).sum()),
        "active_share": float(fires.mean()),
        **_use(values),
    }
    if seen.model.config.attention_type[layer] == STANDARD:
        weights = attention_map(seen, layer)
        figures["entropy"] = entropy(weights).mean(1).tolist()
        figures["distance"] = mean_distance(weights).mean(1).tolist()
    return figures


def _use(values: Tensor) -> dict[str, Any]:
    return {
        "effective_rank": effective_rank(values),
        "directions_90": directions_for(values, VARIANCE_SHARE),
    }


def waist_figures(seen: Trace) -> dict[str, Any]:
    """How the waist is used."""
    layer = seen.model.waist
    values = singular_values(seen.layers[layer].middle)
    width = seen.layers[layer].middle.shape[1]
    return {"layer": layer, "width": width, **_use(values), "singular_values": values.tolist()}


def memory_figures(seen: Trace, text: InspectedText, layer: int) -> dict[str, Any]:
    """How long a Mamba layer remembers: a distribution over all states, and around starts.

    `slowest` is, for each channel or head, the half-life of its slowest state.
    """
    memory = recurrence(seen, layer)
    lives = half_lives(memory)
    low, middle, high = _quantiles(lives.flatten(), 0.1, 0.5, 0.9)
    powers = (lives.flatten().log2().floor() + 1).clamp(0, LONGEST_HALF_LIFE + 1).long()
    counts = torch.bincount(powers.cpu(), minlength=LONGEST_HALF_LIFE + 2)
    device = lives.device
    return {
        "layer": layer,
        "states": lives.numel(),
        "half_life": {"low": low, "median": middle, "high": high},
        "histogram": counts.tolist(),
        "slowest": lives.amax(1).tolist(),
        "paragraphs": _around(memory, torch.from_numpy(text.paragraphs).to(device), PARAGRAPH_OFFSETS),
        "documents": _around(memory, seen.doc_start.nonzero().flatten(), DOCUMENT_OFFSETS),
        "state_norm": state_norms(memory).tolist(),
    }


def _quantiles(values: Tensor, *shares: float) -> list[float]:
    """Interpolated between the two nearest values, like numpy; torch.quantile refuses over 16 million."""
    return [float(value) for value in np.quantile(values.double().cpu().numpy(), shares)]


def _around(memory: Recurrence, starts: Tensor, offsets: range) -> dict[str, Any]:
    """The median half-life at each offset from some starts, and at tokens that aren't near any of them."""
    figures: dict[str, Any] = {"starts": len(starts), "offsets": [], "half_life": [], "elsewhere": None}
    far = torch.ones(len(memory.document), dtype=torch.bool, device=memory.delta.device)
    for offset in offsets:
        tokens = around(memory, starts, offset)
        if len(tokens):
            far[tokens] = False
            figures["offsets"].append(offset)
            figures["half_life"].append(_quantiles(half_lives_at(memory, tokens), 0.5)[0])
    if bool(far.any()):
        figures["elsewhere"] = _quantiles(half_lives_at(memory, far.nonzero().flatten()), 0.5)[0]
    return figures


def answers(seen: Trace, tokenizer: Tokenizer, token: int, count: int) -> dict[str, Any]:
    """What each layer would predict after a token."""
    return {"token": token, **_answers_in_words(answers_at(seen, token, count), seen, tokenizer, token)}


def _answers_in_words(said: Answers, seen: Trace, tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    def word(id: int) -> str:
        return token_texts(tokenizer, [id])[0].text

    following = None if said.following is None else {"id": said.following, "text": word(said.following)}
    return {
        "text": word(int(seen.tokens[token])),
        "following": following,
        "answer_from": said.answer_from,
        "decided_from": said.decided_from,
        "layers": [
            {
                "layer": one.layer,
                "top": [
                    {"id": id, "text": word(id), "probability": probability}
                    for id, probability in zip(one.tokens, one.probabilities)
                ],
                "rank": one.rank,
                "probability": one.probability,
            }
            for one in said.layers
        ],
    }


def about_text(text: InspectedText, tokenizer: Tokenizer) -> dict[str, Any]:
    """The text token by token."""
    return {
        "name": text.name,
        "tokens": [[one.id, one.text, one.opens] for one in token_texts(tokenizer, text.tokens)],
        "documents": int(np.count_nonzero(text.starts)) or 1,
        "paragraphs": text.paragraphs.tolist(),
    }


def whole_report(
    seen: Trace, text: InspectedText, tokenizer: Tokenizer, layers: list[int], token: int, count: int
) -> dict[str, Any]:
    """Everything about some layers and one token of a text."""
    figures = []
    for layer in layers:
        figures.append(layer_figures(seen, layer))
        if seen.model.config.attention_type[layer] != STANDARD:
            figures[-1]["memory"] = memory_figures(seen, text, layer)
    return {
        "model": about_model(seen.model),
        "text": about_text(text, tokenizer),
        "lens_loss": lens_losses(seen),
        "layers": figures,
        "waist": waist_figures(seen),
        "answers": answers(seen, tokenizer, token, count),
    }
