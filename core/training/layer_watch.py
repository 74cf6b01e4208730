"""How each layer learns, at every evaluation: its gradients, its updates and the size of its stream.

Steps themselves aren't touched, whether compiled, captured in a CUDA graph or not: the gradient comes from a
separate plain pass over a little training text, always the same, and the update from the weights before and
after the step. Only rank 0 does this, and nothing here communicates with other ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from core.config.schema import RunConfig
from core.data.loader import EvaluationLoader
from core.model import GPT
from core.runs import EventWriter
from core.runs.events import LayersEvent
from core.training.arithmetic import autocast
from core.training.build import Parts
from core.training.evaluation import untouched_randomness

ROWS = 4
"""Rows of `block_size` tokens that are read for the gradient: a fraction of a step's work."""


class LayerWatch:
    """Measures a model's layers at the steps that are evaluated."""

    def __init__(self, parts: Parts, config: RunConfig, writer: EventWriter) -> None:
        self._parts, self._config, self._writer = parts, config, writer
        self._before: list[Tensor] = []
        self._updated = 0

    def before_step(self, step: int, last_step: int) -> None:
        """Store the layers' weights, if the next step will be evaluated."""
        self._before = []
        due = step % self._config.training.eval_interval == 0 or step >= last_step
        if not (due and self._parts.ranks.first):
            return
        try:
            self._before = [weight.detach().clone() for layer in self._weights() for weight in layer]
        except torch.OutOfMemoryError:
            return
        self._updated = step

    @torch.no_grad()
    def report(self, step: int) -> None:
        """Record the layers after a step; nothing if there isn't enough memory for it."""
        if not self._parts.ranks.first:
            return
        before, self._before = self._before, []
        try:
            update = self._update_ratios(before) if self._updated == step else []
            del before
            gradient, activation = self._gradients_and_activations()
        except torch.OutOfMemoryError:
            return
        self._writer.write(
            LayersEvent(step=step, gradient_norm=gradient, update_ratio=update, activation=activation)
        )

    def _weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer; those that the optimizer updates, in fp32."""
        return [list(block.parameters()) for block in self._parts.model.blocks]

    def _update_ratios(self, before: Sequence[Tensor]) -> list[float]:
        """The norm of a step's change to each layer's weights, relative to their norm before it."""
        if not before:
            return []
        ratios, start = [], 0
        for layer in self._weights():
            old = list(before[start : start + len(layer)])
            start += len(layer)
            added = torch._foreach_sub([weight.detach() for weight in layer], old)
            ratios.append(_norm(added) / _norm(old))
        return _numbers(ratios)

    def _gradients_and_activations(self) -> tuple[list[float], list[float]]:
        """The norm of each layer's gradient, and the root mean square of the stream after it."""
        parts = self._parts
        model: GPT = parts.model
        rows = min(ROWS, self._config.training.batch_size)
        loader = EvaluationLoader(
            parts.corpus.train, parts.tokenizer.eot, rows, self._config.model.block_size, 1
        )
        x, y, doc_start = (torch.from_numpy(item).to(parts.device) for item in next(iter(loader)))
        sizes: dict[int, Tensor] = {}
        layers = [[weight for weight in layer if weight.requires_grad] for layer in self._weights()]
        was_training = model.training
        model.eval()  # without dropout, so that only the weights make a difference
        try:
            with ExitStack() as stack:
                for number, block in enumerate(model.blocks):
                    stack.callback(block.register_forward_hook(_keeper(sizes, number)).remove)
                stack.enter_context(untouched_randomness(parts.device))
                stack.enter_context(torch.enable_grad())
                with autocast(self._config, parts.device):
                    loss = model(x, None, doc_start, y).loss
                # Not backward(): the gradients of the weights belong to the training step.
                gradients = iter(torch.autograd.grad(loss, [weight for layer in layers for weight in layer]))
        finally:
            model.train(was_training)
        norms = [_norm([next(gradients) for _ in layer]) for layer in layers]
        return _numbers(norms), _numbers([sizes[number] for number in range(len(layers))])


def _keeper(sizes: dict[int, Tensor], number: int) -> Any:
    """A hook that stores the root mean square of a layer's output."""

    def keep(module: nn.Module, inputs: object, outputs: tuple[Tensor, Any]) -> None:
        stream = outputs[0].detach().float()
        sizes[number] = stream.square().mean().sqrt()

    return keep


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).float())


def _numbers(values: Sequence[Tensor]) -> list[float]:
    """Their values, fetched from the device at once."""
    return [float(value) for value in torch.stack(list(values)).float().cpu()]
