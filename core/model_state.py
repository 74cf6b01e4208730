"""What a model remembers of a text: named tensors whose shapes never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionState(NamedTuple):
    """The KV cache: the last W - 1 keys, already rotated, and values, (B, H, W - 1, E) each."""

    keys: Tensor
    values: Tensor


class MambaState(NamedTuple):
    """The convolution's last inputs and the state space model's state."""

    conv_state: Tensor
    """(B, K - 1, channels)."""
    ssm_state: Tensor
    """(B, D, N), for Mamba-2 (B, H, E, N), in float32 at least."""


LayerState = AttentionState | MambaState


class ModelState(NamedTuple):
    """Everything that a model remembers of a text. Shapes never change, so that a step can be captured."""

    position: Tensor
    """The number of tokens of the current document so far, (B,) int64; attention never sees keys before
    them."""
    layers: tuple[LayerState, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> ModelState:
        """A state with `function` applied to every tensor."""
        layers = tuple(type(layer)(*map(function, layer)) for layer in self.layers)
        return ModelState(function(self.position), layers)

    def detach(self) -> ModelState:
        """The same state, detached from the graph that computed it."""
        return self.map(Tensor.detach)

    def to(self, device: torch.device | str) -> ModelState:
        """The same state on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def batch_rows(self, index: Tensor) -> ModelState:
        """The batch rows with indices `index` (M,) int64, in its order; a row may occur more than once."""
        return self.map(lambda tensor: tensor.index_select(0, index))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, for a checkpoint."""
        named = {"position": self.position}
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{name}": tensor for name, tensor in layer._asdict().items()}
        return named

    @staticmethod
    def from_tensors(named: dict[str, Tensor]) -> ModelState:
        """The state whose `tensors()` these are. Raises KeyError if one is missing."""
        count = len({name.split(".")[1] for name in named if name.startswith("layers.")})
        layers: list[LayerState] = []
        for i in range(count):
            kind = AttentionState if f"layers.{i}.keys" in named else MambaState
            layers.append(kind(*(named[f"layers.{i}.{name}"] for name in kind._fields)))
        return ModelState(named["position"], tuple(layers))


def begin_documents(
    state: ModelState | None, doc_start: Tensor | None
) -> tuple[ModelState | None, Tensor | None]:
    """Save the layers their masks if documents start only at the first token of a chunk or not at all.

    The state of such a batch row is emptied instead, which has the same effect. Only on CPU, where checking
    costs nothing.
    """
    if doc_start is None or doc_start.device.type != "cpu" or torch.compiler.is_compiling():
        return state, doc_start
    if doc_start[:, 1:].any():
        return state, doc_start
    first = doc_start[:, 0]
    if state is None or not first.any():
        return state, None
    return state.map(lambda tensor: tensor.masked_fill(first.view(-1, *[1] * (tensor.ndim - 1)), 0)), None
