"""bf16 working weights: copies of a model's matrices for a step that multiplies in 16 bits.

Autocast casts each weight on its way into a product and each gradient on its way out: two small kernels
for every matrix and step. Here the copies are parameters themselves. After an update of the fp32 master
weights they are renewed in one go, and after a backward pass their gradients are added to the master
weights' in one go. The numbers are the same, because autocast also forms a weight's gradient in bf16
before it casts it to fp32.

The embedding stays in fp32, because its gradient is summed there; so does the head, whose product takes a
working weight that is renewed likewise (`linear_cross_entropy`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.model import GPT


class WorkingWeights:
    """A twin of a model that shares all of its parameters but the matrices, of which it has copies.

    Attributes:
        model: the twin. Its gradients arrive in the model's own parameters with `gather`.
        copies: the working weight of each matrix, by the matrix's `id`; the head's takes no gradient.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self._master: list[Tensor] = [
            module.weight
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not model.head and module.weight.requires_grad
        ]
        self._working: list[Tensor] = [nn.Parameter(weight.detach().to(dtype)) for weight in self._master]
        matrices = {id(master): working for master, working in zip(self._master, self._working)}
        self._gradients: list[Tensor] = []
        self._scratch: list[Tensor] = []
        # A parameter that the copy meets is taken from here instead of being copied.
        known: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
        known |= matrices
        self.model: GPT = copy.deepcopy(model, known)
        head = model.head.weight.detach()
        self.model.head_working_weight = head_working_weight = head.to(dtype)
        self.copies: dict[int, Tensor] = matrices | {id(model.head.weight): head_working_weight}
        self._renewed = [*self._working, head_working_weight], [*self._master, head]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        torch._foreach_copy_(*self._renewed)

    def forget(self) -> None:
        """Let the next backward pass start from nothing."""
        for weight in self._working:
            weight.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the twin's gradients to the model's; a parameter without a gradient gets one."""
        arrived = [weight.grad for weight in self._working if weight.grad is not None]
        if len(arrived) != len(self._working):
            raise RuntimeError("a matrix took no part in the backward pass")
        present = [weight.grad for weight in self._master if weight.grad is not None]
        if not present:
            if not self._gradients:
                self._gradients = [torch.zeros_like(weight) for weight in self._master]
            torch._foreach_copy_(self._gradients, arrived)
            for weight, gradient in zip(self._master, self._gradients):
                weight.grad = gradient
            return
        # Sums of two types would be a kernel a matrix.
        if not self._scratch:
            self._scratch = [torch.empty_like(gradient) for gradient in self._gradients]
        torch._foreach_copy_(self._scratch, arrived)
        torch._foreach_add_(present, self._scratch)
