"""A small input for each Triton operation, and the comparison of its results and gradients with float64.

Sizes are odd, so that tiles are cut, and documents begin inside. To add an operation, add a case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.ops.attention_mixer import attention_mixer
from core.ops.causal_conv import causal_conv
from core.ops.feed_forward import feed_forward
from core.ops.linear_cross_entropy import linear_cross_entropy
from core.ops.mamba_mixer import mamba_mixer
from core.ops.positions import Positions
from core.ops.selective_scan import selective_scan
from core.ops.ssd_scan import ssd_scan
from core.ops.window_attention import window_attention

Case = Callable[[torch.device], None]
"""Compares an operation on a device with float64. Raises WrongResultError if it is wrong."""

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
MOST_APART = {FLOAT32: 0.01, BFLOAT16: 0.05}
"""Relative distance from the results in float64. Products of float32 may have 10 bits (TF32)."""
B, T = 2, 37


class WrongResultError(Exception):
    """An operation's result is too far from its plain path's; the message says which."""


class _Inputs:
    """Random numbers that are the same on every device."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def decay(self, *shape: int) -> Tensor:
        """Negative rates."""
        return -self.normal(*shape).exp()

    def reset(self) -> Tensor:
        """Where documents begin, (B, T) bool."""
        return torch.rand((B, T), generator=self._generator) < 0.1


def compare(
    operation: Callable[..., Any],
    activations: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Call operation(**activations, **parameters) with activations in `dtype`, and everything in float64.

    It returns one or more tensors, which are compared together with the gradients of all inputs.
    """
    rounded = {name: value.to(dtype).float() for name, value in activations.items()}
    outcomes = []
    for exact in (False, True):
        leaves = {
            name: value.to(device, torch.float64 if exact else dtype).requires_grad_()
            for name, value in rounded.items()
        } | {
            name: value.to(device, torch.float64 if exact else FLOAT32).requires_grad_()
            for name, value in parameters.items()
        }
        results = operation(**leaves)
        outputs = dict(enumerate((results,) if isinstance(results, Tensor) else results, 1))
        random = _Inputs()
        weighted = [
            (output.double() * random.normal(*output.shape).to(device)).sum() for output in outputs.values()
        ]
        total = torch.stack(weighted).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        outcomes.append(
            {f"result {number}": output for number, output in outputs.items()}
            | {f"the gradient of {name}": gradient for name, gradient in zip(leaves, gradients)}
        )
    for name, fast in outcomes[0].items():
        agree(name, fast, outcomes[1][name], MOST_APART[dtype])


@torch.no_grad()
def agree(name: str, fast: Tensor, plain: Tensor, most: float) -> None:
    """Raise WrongResultError unless two results are within `most`, relative to the second."""
    plain = plain.double()
    apart = ((fast.double() - plain).norm() / plain.norm().clamp(min=1e-30)).item()
    if not apart <= most:  # NaN included
        raise WrongResultError(f"{name} differs by {apart:.1%}")


def _causal_conv(device: torch.device) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        random = _Inputs()
        reset = random.reset().to(device)
        compare(
            lambda reset=reset, **tensors: causal_conv(**tensors, reset=reset),
            {"x": random.normal(B, T, 40), "conv_state": random.normal(B, 3, 40)},
            {"weight": random.normal(40, 4), "bias": random.normal(40)},
            device,
            dtype,
        )


def _selective_scan(device: torch.device) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        random = _Inputs()
        reset = random.reset().to(device)
        compare(
            lambda reset=reset, **tensors: selective_scan(**tensors, reset=reset),
            {
                "x": random.normal(B, T, 40),
                "dt": random.normal(B, T, 40) - 1,
                "B": random.normal(B, T, 16),
                "C": random.normal(B, T, 16),
                "z": random.normal(B, T, 40),
            },
            {
                "A": random.decay(40, 16),
                "D": random.normal(40),
                "dt_bias": random.normal(40),
                "h0": random.normal(B, 40, 16),
            },
            device,
            dtype,
        )


def _mamba_mixer(device: torch.device) -> None:
    def mix(x: Tensor, x_proj: Tensor, dt_proj: Tensor, **tensors: Tensor) -> Any:
        return mamba_mixer(
            x, (tensors["weight"], tensors["bias"]), x_proj, (tensors["dt"], tensors["B"], tensors["C"]),
            dt_proj, tensors["A"], tensors["D"], tensors["dt_bias"], conv_state=tensors["conv_state"],
            ssm_state=tensors["ssm_state"], reset=reset, eps=1e-6,
        )  # fmt: skip

    for dtype in (FLOAT32, BFLOAT16):
        random = _Inputs()
        reset = random.reset().to(device)
        compare(
            mix,
            {
                "x": random.normal(B, T, 80),
                "x_proj": random.normal(4 + 2 * 16, 40) / 6,
                "dt_proj": random.normal(40, 4) / 2,
            },
            {
                "weight": random.normal(40, 4) / 2,
                "bias": random.normal(40),
                "dt": random.normal(4),
                "B": random.normal(16),
                "C": random.normal(16),
                "A": random.decay(40, 16),
                "D": random.normal(40),
                "dt_bias": random.normal(40) - 1,
                "conv_state": random.normal(B, 3, 40),
                "ssm_state": random.normal(B, 40, 16),
            },
            device,
            dtype,
        )


def _ssd_scan(device: torch.device) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        random = _Inputs()
        reset = random.reset().to(device)
        compare(
            lambda reset=reset, **tensors: ssd_scan(**tensors, reset=reset),
            {
                "x": random.normal(B, T, 2, 32),
                "dt": random.normal(B, T, 2) - 1,
                "B": random.normal(B, T, 16),
                "C": random.normal(B, T, 16),
            },
            {
                "A": random.decay(2),
                "D": random.normal(2),
                "dt_bias": random.normal(2),
                "h0": random.normal(B, 2, 32, 16),
            },
            device,
            dtype,
        )


def _positions(device: torch.device, reset: Tensor) -> Positions:
    """Positions of a chunk of documents that have begun before, for a window of 16."""
    tokens = torch.zeros(B, T, dtype=torch.int64, device=device)
    return Positions(tokens, torch.tensor([3, 100_000], device=device), reset.to(device), 16)


def _rotary(device: torch.device) -> None:
    positions, exact = (_positions(device, _Inputs().reset()) for _ in range(2))
    fast = positions.rotations(torch.zeros(1, device=device), 12)
    plain = exact.rotations(torch.zeros(1, device=device, dtype=torch.float64), 12)
    for name, one, other in zip(("the cosine", "the sine"), fast, plain):
        agree(name, one, other, 1e-4)


def _window_attention(device: torch.device) -> None:
    random = _Inputs()
    reset = random.reset()
    compare(
        lambda q, k, v: window_attention(q, k, v, _positions(device, reset)),
        {name: random.normal(B, 2, T + (name != "q") * 15, 24) for name in ("q", "k", "v")},
        {},
        device,
        BFLOAT16,
    )


def _attention_mixer(device: torch.device) -> None:
    random = _Inputs()
    reset, cache = random.reset(), random.normal(2, B, 2, 15, 24).bfloat16().to(device)

    def mix(qkv: Tensor) -> Any:
        keys, values = cache.to(qkv.dtype)
        mixed, keys, values = attention_mixer(qkv, (keys, values), _positions(device, reset), 2, rotary=True)
        return mixed, keys.detach(), values.detach()  # no gradient comes back from the next chunk

    compare(mix, {"qkv": random.normal(B, T, 3 * 48)}, {}, device, BFLOAT16)


def _feed_forward(device: torch.device) -> None:
    random = _Inputs()
    activations = {
        "x": random.normal(B, T, 40),
        "up": random.normal(160, 40) / 6,
        "down": random.normal(24, 160) / 12,
    }
    compare(feed_forward, activations, {}, device, BFLOAT16)


def _linear_cross_entropy(device: torch.device) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        random = _Inputs()
        targets = torch.arange(B * T, device=device) * 7 % 300
        targets[5] = -100
        compare(
            lambda x, weight, targets=targets: linear_cross_entropy(x, weight, targets, vocab_size=300),
            {"x": random.normal(B * T, 40)},
            {"weight": random.normal(304, 40)},
            device,
            dtype,
        )


def _adamw(device: torch.device) -> None:
    from core.ops.triton.adamw import FusedUpdate

    random, clip, rate = _Inputs(), 1.0, 0.1
    weights = [random.normal(3000), random.normal(7, 5)]
    given = [random.normal(3000), random.normal(7, 5)]
    groups: list[dict[str, Any]] = [
        {
            "params": [weight.to(device, copy=True)],
            "averages": [torch.zeros_like(weight, device=device)],
            "squares": [torch.zeros_like(weight, device=device)],
            "step": torch.zeros((), device=device),
            "weight_decay": decay,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
        }
        for weight, decay in zip(weights, (0.1, 0.0))
    ]
    update = FusedUpdate(groups, clip)
    ring, slot = torch.zeros(1, 2, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    number = torch.tensor(rate, dtype=torch.float64, device=device)
    for _ in range(2):
        update.step([grad.to(device) for grad in given], torch.ones((), device=device), number, slot, ring)
    norm = torch.cat([grad.double().flatten() for grad in given]).norm()
    agree("the norm", ring[0, 1].cpu(), norm, 1e-3)
    for weight, grad, group in zip(weights, given, groups):
        wanted, average, square = weight.double(), 0.0 * grad.double(), 0.0 * grad.double()
        scaled = grad.double() * (clip / norm)
        for step in (1, 2):
            average, square = 0.9 * average + 0.1 * scaled, 0.95 * square + 0.05 * scaled**2
            wanted = wanted * (1 - rate * group["weight_decay"])
            root = (square / (1 - 0.95**step)).sqrt()
            wanted = wanted - rate * average / (1 - 0.9**step) / (root + 1e-8)
        agree("a weight", group["params"][0].cpu() - weight, wanted - weight, 1e-3)


def _conditional_copy(device: torch.device) -> None:
    from core.ops.triton.conditional_copy import conditional_copy

    random = _Inputs()
    new = [random.normal(2, 3, 9, 4).to(device)[:, :, 4:], random.normal(5000).to(device)]
    for good in (False, True):
        old = [random.normal(2, 3, 5, 4).to(device), random.normal(5000).to(device)]
        before = [tensor.clone() for tensor in old]
        conditional_copy(new, old, torch.tensor(good, device=device))
        for copied, wanted in zip(old, new if good else before):
            agree("a copy", copied, wanted, 0.0)


CASES: dict[str, Case] = {
    "causal_conv": _causal_conv,
    "selective_scan": _selective_scan,
    "mamba_mixer": _mamba_mixer,
    "ssd_scan": _ssd_scan,
    "rotary": _rotary,
    "window_attention": _window_attention,
    "attention_mixer": _attention_mixer,
    "feed_forward": _feed_forward,
    "linear_cross_entropy": _linear_cross_entropy,
    "adamw": _adamw,
    "conditional_copy": _conditional_copy,
}
"""By the names that `takes_triton` uses."""

OF_EVERY_MODEL = ("feed_forward", "linear_cross_entropy", "adamw", "conditional_copy")
OF_A_MIXER = {
    "standard": ("rotary", "window_attention", "attention_mixer"),
    "mamba": ("mamba_mixer",),
    "mamba2": ("causal_conv", "ssd_scan"),
}


def cases_for(mixers: Iterable[str]) -> dict[str, Case]:
    """The cases for a model with these kinds of layers; compiling the others would take a minute."""
    names = [*OF_EVERY_MODEL, *(name for mixer in sorted(set(mixers)) for name in OF_A_MIXER[mixer])]
    return {name: CASES[name] for name in names}
