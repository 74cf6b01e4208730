"""One forward pass over a text, storing everything that the layers read and wrote.

The model computes it itself: hooks on its own modules store what passes through, so nothing here can differ
from what the model does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.model import GPT, Block
from core.ops.positions import Positions


@dataclass
class LayerTrace:
    """What one layer read and wrote; (T, C) each, C the width of the layer.

    Attributes:
        block: the layer.
        before: the stream that comes in.
        mixer_input: what the mixer reads, after its norm.
        mixed: what the mixer adds to the stream.
        mlp_input: what the feed-forward layer reads, after its norm.
        mlp_output: what the feed-forward layer adds to the stream, (T, next C).
        after: the stream that goes out, (T, next C).
    """

    block: Block
    before: Tensor
    mixer_input: Tensor
    mixed: Tensor
    mlp_input: Tensor
    mlp_output: Tensor
    after: Tensor

    @property
    def middle(self) -> Tensor:
        """The stream between mixer and feed-forward layer, (T, C), as `GPT.encode_layer` returns it."""
        return self.before + self.mixed


@dataclass
class Trace:
    """A text and the layers' data on it.

    Attributes:
        tokens: (T,) int64.
        doc_start: where documents start, (T,) bool; the first token always counts as one.
        positions: of the tokens, as attention uses them.
        layers: one entry per layer.
        features: the head's inputs, (T, n_embd[0]).
    """

    model: GPT
    tokens: Tensor
    doc_start: Tensor
    positions: Positions
    layers: list[LayerTrace] = field(default_factory=list)
    features: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def document(self) -> Tensor:
        """The number of each token's document, (T,) int64, counted from 1."""
        return self.doc_start.cumsum(0)


@torch.no_grad()
def trace(model: GPT, tokens: Tensor, doc_start: Tensor | None = None) -> Trace:
    """Read tokens (T,) from an empty state; `doc_start` (T,) bool marks where documents start.

    The model must be in evaluation mode: with dropout every pass would be different.
    """
    if model.training:
        raise ValueError("the model is in training mode; call eval() first")
    starts = torch.zeros_like(tokens, dtype=torch.bool) if doc_start is None else doc_start.clone()
    starts[0] = True
    kept: list[dict[str, Any]] = []
    with ExitStack() as hooks:
        for module in model.blocks:
            assert isinstance(module, Block)
            kept.append({})
            _listen(hooks, module, kept[-1])
        features, _ = model.features(tokens[None], None, starts[None])
    whole = Trace(model, tokens, starts, kept[0].pop("positions"), features=features[0])
    for seen in kept:
        seen.pop("positions", None)
        whole.layers.append(LayerTrace(**seen))
    return whole


def _listen(hooks: ExitStack, block: Block, seen: dict[str, Any]) -> None:
    """Store what passes through a layer's parts."""

    def on_block(_: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        seen.update(block=block, before=inputs[0][0], positions=inputs[2], after=outputs[0][0])

    def on_mixer(_: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        seen.update(mixer_input=inputs[0][0], mixed=outputs[0][0])

    def on_mlp(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.update(mlp_input=inputs[0][0], mlp_output=output[0])

    parts: tuple[tuple[nn.Module, Callable[..., None]], ...] = (
        (block, on_block),
        (block.mixer, on_mixer),
        (block.mlp, on_mlp),
    )
    for module, hook in parts:
        hooks.callback(module.register_forward_hook(hook).remove)
