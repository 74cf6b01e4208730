"""bf16 working weights: copies of a model's matrices for a step whose products are in 16 bits.

Autocast converts each weight on its way into a product, and each gradient on its way out: two small kernels
per matrix and step. Here the copies are parameters themselves. They are all updated at once after the fp32
master weights are, and after a backward pass all their gradients are added to the master weights' at once.
The numbers are the same, because autocast also computes a weight's gradient in bf16 before it converts it to
fp32.

The embedding stays in fp32, because its gradient is summed there. So does the head; its product reads a
working weight that is updated along with the others (`linear_cross_entropy`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from core.model import GPT


class WorkingWeights:
    """A twin of a model that shares all parameters except the matrices, of which it has copies.

    Attributes:
        model: the twin. `gather` adds its gradients to the model's own parameters.
        copies: the working weight of each matrix, by the matrix's `id`; the head's has no gradient.
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
        # deepcopy takes these parameters as they are instead of copying them.
        known: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
        known |= matrices
        self.model: GPT = copy.deepcopy(model, known)
        head = model.head.weight.detach()
        self.model.head_working_weight = head_working_weight = head.to(dtype)
        self.copies: dict[int, Tensor] = matrices | {id(model.head.weight): head_working_weight}
        self._renewed = [*self._working, head_working_weight], [*self._master, head]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the model's current weights."""
        torch._foreach_copy_(*self._renewed)

    def forget(self) -> None:
        """Clear the gradients before the next backward pass."""
        for weight in self._working:
            weight.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Add the twin's gradients to the model's; a parameter without a gradient receives one."""
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
        # Adding tensors of two types at once would launch a kernel per matrix.
        if not self._scratch:
            self._scratch = [torch.empty_like(gradient) for gradient in self._gradients]
        torch._foreach_copy_(self._scratch, arrived)
        torch._foreach_add_(present, self._scratch)
