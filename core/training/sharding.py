"""Which rank owns which parameter if the optimizer's state is divided among ranks (ZeRO-1, arXiv 1910.02054).

Every rank has all weights and all gradients, but keeps the averages of its own parameters only, and updates
only those. Then each rank sends its new weights to the others. An owner's parameters are next to each other
in memory, so that this takes one transfer per rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.training.ranks import Ranks

ALIGNED = 64
"""Parameters begin at multiples of this many elements, because kernels read 16 bytes at a time."""


class Shards:
    """The owner of each parameter, and one tensor that holds all parameters of an owner."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Moves the parameters, so anything that remembers their addresses must be created afterwards."""
        self._ranks = ranks
        self._owners: dict[str, int] = {}
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        loads = [0] * ranks.size
        for name, weight in sorted(named.items(), key=lambda item: -item[1].numel()):
            owner = loads.index(min(loads))
            self._owners[name] = owner
            loads[owner] += -(-weight.numel() // ALIGNED) * ALIGNED
        like = next(iter(named.values()))
        self._flat = [torch.zeros(load, device=like.device, dtype=like.dtype) for load in loads]
        ends = [0] * ranks.size
        for name, weight in named.items():
            owner = self._owners[name]
            place = self._flat[owner][ends[owner] : ends[owner] + weight.numel()].view(weight.shape)
            place.copy_(weight.detach())
            weight.data = place
            ends[owner] += -(-weight.numel() // ALIGNED) * ALIGNED

    def owned(self, group: dict[str, Any]) -> dict[str, Any]:
        """A parameter group without the parameters of other ranks."""
        mine = [self._owners[name] == self._ranks.rank for name in group["names"]]
        kept = {key: [item for item, own in zip(group[key], mine) if own] for key in ("names", "params")}
        return {**group, **kept}

    @torch.no_grad()
    def exchange(self) -> None:
        """Send every owner's weights to every rank."""
        for owner, flat in enumerate(self._flat):
            if len(flat):
                self._ranks.broadcast(flat, owner)

    @torch.no_grad()
    def gathered(self, own: dict[str, Any], parameters: dict[str, nn.Parameter]) -> dict[str, Any]:
        """The optimizer's state by parameter, in the order of `parameters`; complete on rank 0 only.

        State that other ranks own is moved to host memory, so that no device has to hold all of it.
        """
        whole: dict[str, Any] = {}
        step = next(iter(own.values()))["step"]
        for name, weight in parameters.items():
            owner = self._owners[name]
            entry: dict[str, Tensor] = {"step": step}
            for key in ("average", "square"):
                tensor = own[name][key] if name in own else torch.empty_like(weight)
                if owner != 0:
                    self._ranks.broadcast(tensor, owner)
                    if self._ranks.first:
                        tensor = tensor.cpu()
                entry[key] = tensor
            if self._ranks.first or name in own:
                whole[name] = entry
        return whole
