"""An exponential moving average of a model's weights: a better model than the newest weights at any moment.

At a constant learning rate the average does much of what cooling the rate down would do, at no cost in steps
(arXiv 1803.05407; EMA in Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from core.model import GPT

EVERY = 8
"""Steps from update to update: one pass over all weights, so that the average costs nothing to speak of."""


class AveragedWeights:
    """A copy of a model whose parameters follow the model's.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
    """

    def __init__(self, model: GPT, decay: float) -> None:
        """`decay` is of one step: 0.995 averages over about the last 200 steps."""
        self._decay = decay
        self._source = [parameter.detach() for parameter in model.parameters()]
        self.model: GPT = copy.deepcopy(model).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`, if it is one of those that count."""
        if step % EVERY:
            return
        # Until there are enough steps, the plain mean of the weights so far but the first.
        share = max(1 - self._decay**EVERY, EVERY / step)
        torch._foreach_lerp_(self._average, self._source, share)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name. Shares memory with the average."""
        return dict(self.model.state_dict())
