"""An exponential moving average of a model's weights, better than the latest weights at any moment.

At a constant learning rate the average achieves much of what a cool-down would, without costing any steps
(arXiv 1803.05407; for the EMA, Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from core.model import GPT

EVERY = 8
"""Steps between updates. An update is one pass over all weights, so this makes its cost negligible."""


class AveragedWeights:
    """A copy of a model whose parameters are averages of the model's.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        """`decay` is per step: 0.995 averages over about the last 200 steps."""
        self._decay = decay
        self._source = [parameter.detach() for parameter in model.parameters()]
        self.model: GPT = copy.deepcopy(model).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after `step` to the average, if it is time for an update."""
        if step % EVERY:
            return
        # Until there are enough steps, the plain mean of all weights so far except the first.
        share = max(1 - self._decay**EVERY, EVERY / step)
        torch._foreach_lerp_(self._average, self._source, share)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name. They share memory with the average."""
        return dict(self.model.state_dict())
