"""Narrow copies of a model's matrices, for a step that multiplies in 16 bits.

Autocast casts each weight on its way into a product and each gradient on its way out: two small kernels a
matrix, every step. Here the copies are parameters themselves: made anew in one go after an update, their
gradients brought to the wide ones in one go after a backward pass. The numbers are the same, because
autocast, too, forms a weight's gradient in the narrow type before it widens it.

The head and the embedding stay wide, because their gradient is summed in float32; the head's product takes a
copy that is renewed likewise (`linear_cross_entropy`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.model import GPT


class NarrowWeights:
    """A twin of a model that shares all of its parameters but the matrices, of which it has copies.

    Attributes:
        model: the twin. Its gradients arrive in the model's own parameters with `gather`.
        copies: the narrow copy of each matrix, by the matrix's `id`; that of the head takes no gradient.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self._wide: list[Tensor] = [
            module.weight
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not model.head and module.weight.requires_grad
        ]
        self._narrow: list[Tensor] = [nn.Parameter(weight.detach().to(dtype)) for weight in self._wide]
        matrices = {id(wide): narrow for wide, narrow in zip(self._wide, self._narrow)}
        self._gradients: list[Tensor] = []
        self._scratch: list[Tensor] = []
        # A parameter that the copy meets is taken from here instead of being copied.
        known: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
        known |= matrices
        self.model: GPT = copy.deepcopy(model, known)
        head = model.head.weight.detach()
        self.model.head_working_weight = head_working_weight = head.to(dtype)
        self.copies: dict[int, Tensor] = matrices | {id(model.head.weight): head_working_weight}
        self._renewed = [*self._narrow, head_working_weight], [*self._wide, head]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        torch._foreach_copy_(*self._renewed)

    def forget(self) -> None:
        """Let the next backward pass start from nothing."""
        for weight in self._narrow:
            weight.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the twin's gradients to the model's; a parameter without a gradient gets one."""
        arrived = [weight.grad for weight in self._narrow if weight.grad is not None]
        if len(arrived) != len(self._narrow):
            raise RuntimeError("a matrix took no part in the backward pass")
        present = [weight.grad for weight in self._wide if weight.grad is not None]
        if not present:
            if not self._gradients:
                self._gradients = [torch.zeros_like(weight) for weight in self._wide]
            torch._foreach_copy_(self._gradients, arrived)
            for weight, gradient in zip(self._wide, self._gradients):
                weight.grad = gradient
            return
        # Sums of two types would be a kernel a matrix.
        if not self._scratch:
            self._scratch = [torch.empty_like(gradient) for gradient in self._gradients]
        torch._foreach_copy_(self._scratch, arrived)
        torch._foreach_add_(present, self._scratch)
