"""The norms and squared ReLU in few passes equal torch's own, including gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.ops.feed_forward import squared_relu
from core.ops.rms_norm import RMSNorm, rms_norm

EPSILON = 1e-6


def theirs(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPSILON)


def draw(scale=1.0):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    x *= scale
    x[0, 0] = 0  # nothing to divide by
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e8])
def test_equals_torch_with_gradients(scale):
    inputs = draw(scale)
    grad = torch.randn(3, 5, 8, dtype=torch.float64)
    found, wanted = rms_norm(*inputs, EPSILON), theirs(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad)
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(rms_norm(*inputs, EPSILON), found)


def test_mixed_types_are_left_to_torch():
    x, weight = draw()
    x, weight = x.detach().bfloat16(), weight.detach().float()
    found, wanted = rms_norm(x, weight, EPSILON), theirs(x, weight)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def test_the_module_is_torch_s_in_all_but_speed():
    torch.manual_seed(0)
    ours, theirs = RMSNorm(8, eps=EPSILON), torch.nn.RMSNorm(8, eps=EPSILON)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_squared_relu_with_gradient():
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, 3.0], requires_grad=True)
    (grad,) = torch.autograd.grad(squared_relu(x), x, torch.full((5,), 2.0))
    assert squared_relu(x).tolist() == [0, 0, 0, 0.25, 9]
    assert grad.tolist() == [0, 0, 0, 2, 12]
    with torch.no_grad():
        assert squared_relu(x).tolist() == [0, 0, 0, 0.25, 9]
