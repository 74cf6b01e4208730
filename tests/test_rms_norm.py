"""The norms and squared ReLU in few passes equal torch's own, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core.ops.rms_norm import RMSNorm, gated_rms_norm, rms_norm, squared_relu

EPSILON = 1e-6
WORKS = {
    "norm": (rms_norm, lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps), ("x", "weight")),
    "gated": (
        gated_rms_norm,
        lambda x, gate, weight, eps: F.rms_norm(x * F.silu(gate), weight.shape, weight, eps),
        ("x", "gate", "weight"),
    ),
}


def draw(names, scale=1.0, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = {"x": (3, 5, 8), "gate": (3, 5, 8), "weight": (8,)}
    inputs = {name: torch.randn(shapes[name], dtype=dtype) for name in names}
    inputs["x"] *= scale
    inputs["x"][0, 0] = 0  # nothing to divide by
    return [tensor.requires_grad_() for tensor in inputs.values()]


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e8])
def test_equals_torch_with_gradients(name, scale):
    ours, theirs, names = WORKS[name]
    inputs = draw(names, scale)
    grad = torch.randn(3, 5, 8, dtype=torch.float64)
    found, wanted = ours(*inputs, EPSILON), theirs(*inputs, EPSILON)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad)
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(ours(*inputs, EPSILON), found)


@pytest.mark.parametrize("name", WORKS)
def test_mixed_types_are_left_to_torch(name):
    ours, theirs, names = WORKS[name]
    inputs = draw(names, dtype=torch.float32)
    inputs = [tensor.detach().bfloat16() for tensor in inputs[:-1]] + [inputs[-1]]
    found, wanted = ours(*inputs, EPSILON), theirs(*inputs, EPSILON)
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
