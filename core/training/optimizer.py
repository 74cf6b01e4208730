"""How parameters are updated: which of them decay, and AdamW for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.config.schema import TrainingConfig
from core.training.ranks import ALONE, Ranks
from core.training.sharding import Shards

EPSILON = 1e-8

# These parameters of Mamba determine how fast a channel forgets; decay would pull them toward an arbitrary
# rate.
WITHOUT_DECAY = ("A_log", "D", "dt_bias")
# The same goes for filters of a few taps and the projection to step sizes.
SMALL_MATRICES = ("conv_weight", "dt_proj.weight")


def decays(name: str, parameter: nn.Parameter, embeddings: set[int]) -> bool:
    """Whether weight decay applies: to matrices, but not to embeddings (nor to a head tied to one)."""
    plain_name = name.rpartition(".")[2]
    return parameter.ndim >= 2 and plain_name not in WITHOUT_DECAY and id(parameter) not in embeddings


def parameter_groups(model: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """The parameters in two groups, with and without decay, by name and in the model's order."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    spared = () if training.decay_small_matrices else SMALL_MATRICES
    matrices = [
        name
        for name, parameter in named.items()
        if decays(name, parameter, embeddings) and not name.endswith(spared)
    ]
    others = [name for name in named if name not in set(matrices)]
    return [
        {"names": names, "params": [named[name] for name in names], "weight_decay": decay}
        for names, decay in ((matrices, training.weight_decay), (others, 0.0))
    ]


class AdamW:
    """AdamW (arXiv 1711.05101) as one fused kernel per group, with torch.optim's interface.

    Computes what `torch.optim.AdamW(fused=True)` does, bit for bit (tested). It isn't that class because
    using it imports torch._dynamo, which would double the time to the first step.

    If `found_inf`, a float tensor on the parameters' device, is 1, nothing changes: a step can be skipped
    without the host knowing. `grad_scale`, also on the device, divides the gradients. A group's `lr` may be a
    float or a tensor. With `shards`, a rank updates only the parameters that it owns: `param_groups` has
    those, `others` the rest, which `exchange` brings up to date.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        shards: Shards | None = None,
    ) -> None:
        self._shards = shards
        self._names: list[str] = [name for group in groups for name in group["names"]]
        self._parameters: list[nn.Parameter] = [weight for group in groups for weight in group["params"]]
        self.others: list[nn.Parameter] = []
        if shards is not None:
            groups = [shards.owned(group) for group in groups]
            owned = {id(weight) for group in groups for weight in group["params"]}
            self.others = [weight for weight in self._parameters if id(weight) not in owned]
        self.param_groups = [
            {"lr": lr, "betas": betas, "eps": EPSILON, **group} for group in groups if group["params"]
        ]
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        for group in self.param_groups:
            parameters: list[nn.Parameter] = group["params"]
            group["step"] = torch.zeros((), device=parameters[0].device)
            group["averages"] = [torch.zeros_like(parameter) for parameter in parameters]
            group["squares"] = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, unless `found_inf` is 1."""
        for group in self.param_groups:
            rows = [
                (parameter, parameter.grad, average, square)
                for parameter, average, square in zip(group["params"], group["averages"], group["squares"])
                if parameter.grad is not None
            ]
            if not rows:
                continue
            parameters, gradients, averages, squares = (list(column) for column in zip(*rows))
            beta1, beta2 = group["betas"]
            group["step"] += 1
            torch._fused_adamw_(
                parameters,
                gradients,
                averages,
                squares,
                [],
                [group["step"]] * len(parameters),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                group["step"] -= self.found_inf

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; if `set_to_none` is False, fill them with zeros and keep their memory."""
        for parameter in self._parameters:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @property
    def sharded(self) -> bool:
        """Whether other ranks own some of the parameters."""
        return self._shards is not None

    def exchange(self) -> None:
        """Bring the parameters that other ranks own up to date."""
        if self._shards is not None:
            self._shards.exchange()

    def state_dict(self) -> dict[str, Any]:
        """Steps and averages by parameter name. They share memory with the optimizer.

        If ranks share the optimizer, every rank must call this, and only rank 0 receives all of it.
        """
        own = {
            name: {"step": group["step"], "average": average, "square": square}
            for group in self.param_groups
            for name, average, square in zip(group["names"], group["averages"], group["squares"])
        }
        if self._shards is None:
            return own
        return self._shards.gathered(own, dict(zip(self._names, self._parameters)))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`. Raises KeyError if a parameter is missing."""
        for group in self.param_groups:
            for name, average, square in zip(group["names"], group["averages"], group["squares"]):
                average.copy_(state[name]["average"])
                square.copy_(state[name]["square"])
                group["step"].copy_(state[name]["step"])


def make_optimizer(model: nn.Module, training: TrainingConfig, ranks: Ranks = ALONE) -> AdamW:
    """AdamW for a model's parameters with the settings of a configuration.

    The averages of a large model are divided among the ranks, which moves its parameters in memory.
    """
    betas = (training.beta1, training.beta2)
    large = ranks.shards(sum(parameter.numel() for parameter in model.parameters()))
    shards = Shards(model, ranks) if large else None
    return AdamW(parameter_groups(model, training), training.learning_rate, betas, shards)
