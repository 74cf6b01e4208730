"""The feed-forward kernels compared with float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.kernels import DEVICE, needs_cuda

from core.ops.triton import feed_forward as module  # isort: skip
from core.ops.triton.feed_forward import _operator, feed_forward_triton  # isort: skip

KIND = torch.bfloat16 if DEVICE == "cuda" else torch.float32
"""The kernels' own type, and one that the interpreter rounds as it should."""
TOLERANCE = 5e-3 if DEVICE == "cuda" else 1e-6


def draw(seed, rows, width, inner, next_width):
    """x, up, down and the output's gradient."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE).to(KIND)

    return (
        normal(rows, width),
        normal(inner, width) * width**-0.5,
        normal(next_width, inner) * inner**-0.5,
        normal(rows, next_width),
    )


def reference(x, up, down):
    return torch.relu(x @ up.t()).square() @ down.t()


def error(seed, *shape):
    """The largest error of output and gradients, relative to their norms."""
    inputs = draw(seed, *shape)
    results = []
    for run, kind in ((feed_forward_triton, KIND), (reference, torch.float64)):
        *leaves, grad = (tensor.to(kind) for tensor in inputs)
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = run(*leaves)
        out.backward(grad)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return max(((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in zip(*results))


@pytest.fixture(params=["small", "large"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 0 if request.param == "large" else 10**9)


@pytest.mark.parametrize("shape", [(130, 72, 288, 40), (128, 64, 256, 64), (3, 8, 8, 16)])
def test_output_and_gradients(shape, tiles):
    assert error(1, *shape) < TOLERANCE


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 70),
    width=st.integers(1, 5),
    inner=st.integers(1, 9),
    next_width=st.integers(1, 5),
)
@settings(max_examples=7, deadline=None)
def test_random_shapes(seed, rows, width, inner, next_width):
    assert error(seed, rows, 8 * width, 8 * inner, 8 * next_width) < TOLERANCE


def test_more_tiles_than_programs(monkeypatch):
    monkeypatch.setattr(module, "processors_of", lambda device: 1)
    assert error(2, 300, 16, 264, 8) < TOLERANCE


def test_what_is_no_number_is_not_hidden():
    x, up, down, _ = draw(5, 4, 8, 16, 8)
    x[1, 2] = torch.nan
    assert feed_forward_triton(x, up, down).isnan().any(1).tolist() == [False, True, False, False]


def test_other_dimensions_stay():
    x, up, down, _ = draw(3, 12, 16, 64, 8)
    many = feed_forward_triton(x.view(2, 3, 2, 16), up, down)
    assert many.shape == (2, 3, 2, 8)
    assert torch.equal(many.flatten(0, 2), feed_forward_triton(x, up, down))


def test_it_is_a_proper_operator():
    x, up, down, _ = draw(4, 9, 16, 24, 8)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, up, down))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, inputs, test_utils=checks)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("seed", range(6))
def test_many_tiles_on_the_gpu(seed, tiles):
    random = torch.Generator().manual_seed(seed)
    rows, *widths = (int(torch.randint(1, top, (), generator=random)) for top in (3000, 60, 200, 60))
    assert error(seed, rows, *(8 * width for width in widths)) < TOLERANCE


@needs_cuda
@pytest.mark.cuda
def test_a_feed_forward_layer_takes_it_where_it_computes_in_bfloat16():
    from core.model import FeedForward

    layer = FeedForward(64, 72).cuda()
    torch.nn.init.normal_(layer.down.weight, std=0.1)
    x = torch.randn(2, 50, 64, device="cuda")
    plain = layer(x)
    with torch.autocast("cuda", torch.bfloat16):
        fused = layer(x)
    assert fused.dtype == torch.bfloat16
    assert fused.grad_fn is not None
    assert "feed_forward" in fused.grad_fn.next_functions[0][0].name()
    assert ((fused - plain).norm() / plain.norm()).item() < 1e-2
