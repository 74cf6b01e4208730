"""The selective scan compared with a plain loop in float64, including gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import selective_scan as module
from core.ops.selective_scan import selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0")


def loop(x, dt, A, B, C, D=None, *, z=None, dt_bias=None, h0=None, reset=None):
    """The definition, one step after the other."""
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    h = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype) if h0 is None else h0
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        if reset is not None:
            decay = torch.where(reset[:, t, None, None], 0.0, decay)
        h = decay * h + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        y = (h * C[:, t, None]).sum(2)
        y = y if D is None else y + D * x[:, t]
        outputs.append(y if z is None else y * F.silu(z[:, t]))
    return torch.stack(outputs, 1), h


def draw_inputs(seed, batch, length, width, states, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(batch, length, width),
        "dt": normal(batch, length, width),
        "A": -normal(width, states).exp(),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(width),
        "z": normal(batch, length, width),
        "dt_bias": normal(width),
        "h0": normal(batch, width, states),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}


def results(function, inputs, reset, seed=0):
    """Both outputs and the gradient of a random sum of them for every input."""
    positional = [inputs[name] for name in NAMES[:5]] + [inputs.get("D")]
    y, last = function(*positional, **{k: inputs.get(k) for k in NAMES[6:]}, reset=reset)
    generator = torch.Generator().manual_seed(seed)
    total = (y * torch.randn(y.shape, generator=generator)).sum()
    total = total + (last * torch.randn(last.shape, generator=generator)).sum()
    return [y, last, *torch.autograd.grad(total, list(inputs.values()))]


@given(
    seed=st.integers(0, 1 << 30),
    batch=st.integers(1, 3),
    length=st.integers(1, 20),
    width=st.integers(1, 5),
    states=st.integers(1, 5),
    left_out=st.sets(st.sampled_from(("D", "z", "dt_bias", "h0"))),
    resets=st.one_of(st.none(), st.floats(0, 1)),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop_with_gradients(seed, batch, length, width, states, left_out, resets):
    inputs = draw_inputs(seed, batch, length, width, states)
    inputs = {name: tensor for name, tensor in inputs.items() if name not in left_out}
    reset = None if resets is None else torch.rand(batch, length) < resets
    for ours, true in zip(results(selective_scan, inputs, reset), results(loop, inputs, reset)):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [7, 8, 9, 33])
def test_chunk_borders_do_not_show(length, monkeypatch):
    monkeypatch.setattr(module, "MIN_CHUNK", 4)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    inputs = draw_inputs(5, 2, length, 3, 4)
    reset = torch.zeros(2, length, dtype=torch.bool)
    reset[0, 4] = reset[1, 3] = True
    for ours, true in zip(results(selective_scan, inputs, reset), results(loop, inputs, reset)):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-10)


def test_float32_is_close_to_float64():
    inputs = draw_inputs(1, 4, 64, 16, 16)
    narrow = {name: tensor.detach().float().requires_grad_() for name, tensor in inputs.items()}
    for ours, true in zip(results(selective_scan, narrow, None), results(loop, inputs, None)):
        assert ours.dtype == torch.float32
        assert (ours - true).norm() < 1e-5 * true.norm()


def test_state_is_float32_for_bfloat16_inputs():
    inputs = draw_inputs(2, 2, 12, 4, 4, torch.bfloat16)
    inputs["A"], inputs["h0"] = inputs["A"].float(), inputs["h0"].float()
    true_inputs = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    ours, true = results(selective_scan, leaves, None), results(loop, true_inputs, None)
    assert ours[0].dtype == torch.bfloat16
    assert ours[1].dtype == torch.float32
    for mine, theirs in zip(ours, true):
        assert (mine - theirs).norm() < 2e-2 * theirs.norm()


@pytest.mark.parametrize("size", [-1e30, -200.0, 50.0, 1e4, 1e30])
def test_no_nan_at_extreme_steps(size):
    inputs = draw_inputs(3, 2, 20, 3, 4, torch.float32)
    with torch.no_grad():
        inputs["dt"][:, ::3] = size
        inputs["x"][:, ::3] *= min(1, 1 / abs(size))  # keeps delta x, and so the reference, finite
    reset = torch.rand(2, 20) < 0.1
    true = results(loop, inputs, reset)
    for ours, theirs in zip(results(selective_scan, inputs, reset), true):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        torch.testing.assert_close(ours[theirs.isfinite()], theirs[theirs.isfinite()], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reset", [None, torch.tensor([[True], [False]])])
def test_single_step_without_gradients_equals_the_loop(reset):
    inputs = {name: tensor.detach() for name, tensor in draw_inputs(4, 2, 1, 5, 3).items()}
    arguments = [inputs[name] for name in NAMES[:6]], {name: inputs[name] for name in NAMES[6:]}
    with torch.no_grad():
        ours = selective_scan(*arguments[0], **arguments[1], reset=reset)
    for mine, theirs in zip(ours, loop(*arguments[0], **arguments[1], reset=reset)):
        torch.testing.assert_close(mine, theirs)
