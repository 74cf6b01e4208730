"""The Mamba-2 scan compared with a plain loop in float64, including gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import ssd_scan as module
from core.ops.ssd_scan import ssd_scan


def loop(x, dt, A, B, C, D=None, *, dt_bias=None, h0=None, reset=None):
    """The definition, one step after the other."""
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    batch, length, heads, size = x.shape
    h = x.new_zeros(batch, heads, size, B.shape[2]) if h0 is None else h0
    outputs = []
    for t in range(length):
        decay = torch.exp(delta[:, t] * A)
        if reset is not None:
            decay = torch.where(reset[:, t, None], 0.0, decay)
        added = (delta[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        h = decay[..., None, None] * h + added
        y = (h * C[:, t, None, None]).sum(3)
        outputs.append(y if D is None else y + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), h


def draw_inputs(seed, batch, length, heads, size, states):
    torch.manual_seed(seed)
    shapes = {
        "x": (batch, length, heads, size),
        "dt": (batch, length, heads),
        "A": (heads,),
        "B": (batch, length, states),
        "C": (batch, length, states),
        "D": (heads,),
        "dt_bias": (heads,),
        "h0": (batch, heads, size, states),
    }
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].exp()
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def results(function, inputs, reset):
    y, last = function(**inputs, reset=reset)
    generator = torch.Generator().manual_seed(0)
    total = (y * torch.randn(y.shape, generator=generator)).sum()
    total = total + (last * torch.randn(last.shape, generator=generator)).sum()
    return [y, last, *torch.autograd.grad(total, list(inputs.values()))]


@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 14),
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    left_out=st.sets(st.sampled_from(("D", "dt_bias", "h0"))),
    resets=st.one_of(st.none(), st.floats(0, 1)),
    chunk=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop_with_gradients(seed, length, heads, size, left_out, resets, chunk):
    inputs = draw_inputs(seed, 2, length, heads, size, 4)
    inputs = {name: tensor for name, tensor in inputs.items() if name not in left_out}
    reset = None if resets is None else torch.rand(2, length) < resets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        ours = results(ssd_scan, inputs, reset)
    for mine, theirs in zip(ours, results(loop, inputs, reset)):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [-200.0, 50.0, 1e4, 1e8])
def test_no_nan_and_no_lost_digits_at_extreme_steps(size):
    inputs = {k: v.detach().float() for k, v in draw_inputs(3, 2, 40, 2, 3, 4).items()}
    inputs["dt"][:, ::7] = size
    inputs["x"][:, ::7] *= min(1, 1 / abs(size))
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    reset = torch.rand(2, 40) < 0.1
    precise = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    for ours, true in zip(results(ssd_scan, inputs, reset)[:2], results(loop, precise, reset)[:2]):
        torch.testing.assert_close(ours.double(), true, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in results(ssd_scan, inputs, reset))


def test_torch_compile_takes_it_as_one_graph():
    torch.manual_seed(0)
    inputs = draw_inputs(0, 2, 40, 2, 3, 4)
    reset = torch.rand(2, 40) < 0.1

    def total(**inputs):
        y, last = ssd_scan(**inputs, reset=reset)
        return y.sin().sum() + last.cos().sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    found, wanted = (
        torch.autograd.grad(function(**inputs), list(inputs.values())) for function in (compiled, total)
    )
    for mine, other in zip(found, wanted):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
