"""Obvious float64 step-by-step references of the operations, and random inputs for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_loop(x, dt, A, B, C, D=None, *, z=None, dt_bias=None, h0=None, reset=None):
    """One step after the other, in the inputs' precision; differentiable."""
    h = x.new_zeros(x.shape[0], *A.shape) if h0 is None else h0
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        if reset is not None:
            decay = torch.where(reset[:, t, None, None], 0.0, decay)
        h = decay * h + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y = (h * C[:, t, None, :]).sum(2)
        if D is not None:
            y = y + D * x[:, t]
        out.append(y if z is None else y * F.silu(z[:, t]))
    return torch.stack(out, 1), h


def scan_inputs(
    generator: torch.Generator,
    batch: int,
    length: int,
    width: int,
    states: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    options: frozenset[str] = frozenset(("D", "z", "dt_bias", "h0", "reset")),
    dt_scale: float = 2.0,
) -> dict[str, Tensor]:
    """Random arguments of `selective_scan`; x, dt and z are rounded to `dtype`."""

    def normal(*shape: int, like: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(like)

    inputs = {
        "x": normal(batch, length, width, like=dtype),
        "dt": (normal(batch, length, width) * dt_scale - 2).to(dtype),
        "A": -torch.exp(normal(width, states)),
        "B": normal(batch, length, states, like=dtype),
        "C": normal(batch, length, states, like=dtype),
        "D": normal(width),
        "z": normal(batch, length, width, like=dtype),
        "dt_bias": normal(width),
        "h0": normal(batch, width, states),
        "reset": torch.rand(batch, length, generator=generator, device=device) < 0.1,
    }
    return {
        name: value for name, value in inputs.items() if name in options or name in ("x", "dt", "A", "B", "C")
    }


def run_with_gradients(function, inputs: dict[str, Tensor], seed: int, **options) -> dict[str, Tensor]:
    """Outputs and the gradients of a random weighting of them, by name."""
    leaves = {
        name: value.detach().clone().requires_grad_(value.is_floating_point())
        for name, value in inputs.items()
    }
    outputs = function(**leaves, **options)
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (out.double() * torch.randn(out.shape, generator=generator).to(out.device, torch.float64)).sum()
        for out in outputs
    )
    total.backward()
    found = {f"out{i}": out.detach() for i, out in enumerate(outputs)}
    return found | {f"grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.is_floating_point()}


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs in float64 (masks stay masks)."""
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def relative_errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Norm of each difference over the norm of the reference; infinite if a number isn't finite."""
    errors = {}
    for name, reference in wanted.items():
        scale = reference.double().norm().clamp(min=1e-12)
        error = ((found[name].double() - reference.double()).norm() / scale).item()
        errors[name] = error if error == error else float("inf")
    return errors


def conv_loop(x, weight, bias=None, *, conv_state=None, reset=None):
    """Every output separately, from the inputs since the last reset; differentiable."""
    batch, length, _ = x.shape
    past = weight.shape[1] - 1
    padded = torch.cat((x.new_zeros(batch, past, x.shape[2]) if conv_state is None else conv_state, x), 1)
    flags = torch.zeros(batch, length + past, dtype=torch.bool) if reset is None else F.pad(reset, (past, 0))
    out, new_conv_state = [], []
    for t in range(past, past + length + 1):
        alive = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        total = 0 if bias is None else bias
        kept = []
        for distance in range(past + 1):
            if distance:
                alive = (
                    alive & ~flags[:, t - distance + 1 : t - distance + 2].to(x.device)
                    if (t - distance + 1 < flags.shape[1])
                    else alive
                )
            if t < past + length:
                total = total + torch.where(alive, padded[:, t - distance] * weight[:, past - distance], 0.0)
            elif distance:
                kept.append(torch.where(alive, padded[:, t - distance], 0.0))
        if t < past + length:
            out.append(F.silu(total))
        else:
            new_conv_state = kept[::-1]
    return torch.stack(out, 1), torch.stack(new_conv_state, 1)


def conv_inputs(
    generator: torch.Generator,
    batch: int,
    length: int,
    width: int,
    taps: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    options: frozenset[str] = frozenset(("bias", "conv_state", "reset")),
) -> dict[str, Tensor]:
    """Random arguments of `causal_conv`."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    inputs = {
        "x": normal(batch, length, width).to(dtype),
        "weight": normal(width, taps),
        "bias": normal(width),
        "conv_state": normal(batch, taps - 1, width).to(dtype),
        "reset": torch.rand(batch, length, generator=generator, device=device) < 0.2,
    }
    return {name: value for name, value in inputs.items() if name in options or name in ("x", "weight")}
