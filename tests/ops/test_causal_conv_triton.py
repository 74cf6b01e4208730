"""The causal convolution's kernels compared with a float64 loop."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda
from tests.ops.reference_ops import conv_inputs, conv_loop, double, relative_errors, run_with_gradients

from core.ops.triton import causal_conv as module  # isort: skip
from core.ops.triton.causal_conv import _operator, causal_conv_triton  # isort: skip


def compare(seed, shape, dtype=torch.float32, options=frozenset(("bias", "conv_state", "reset"))):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    inputs = conv_inputs(generator, *shape, dtype=dtype, device=DEVICE, options=options)
    wanted = run_with_gradients(conv_loop, double(inputs), seed)
    found = run_with_gradients(causal_conv_triton, inputs, seed)
    assert found.keys() == wanted.keys()
    return max(relative_errors(found, wanted).values())


@pytest.mark.parametrize(
    "shape", [(2, 19, 5, 4), (1, 33, 130, 4), (1, 20, 8, 2), (2, 1, 8, 4), (1, 2, 8, 4), (1, 20, 6, 7)]
)
def test_outputs_states_and_gradients(shape):
    assert compare(1, shape) < 1e-6


@pytest.mark.parametrize("options", [frozenset(), frozenset(("conv_state",)), frozenset(("bias", "reset"))])
def test_what_is_left_out(options):
    assert compare(2, (1, 18, 6, 4), options=options) < 1e-6


def test_strips_with_and_without_a_reset():
    inputs = conv_inputs(torch.Generator(DEVICE).manual_seed(5), 2, 70, 6, 4, device=DEVICE)
    inputs["reset"][:] = False
    inputs["reset"][0, 41] = inputs["reset"][1, 69] = True
    wanted = run_with_gradients(conv_loop, double(inputs), 5)
    found = run_with_gradients(causal_conv_triton, inputs, 5)
    assert max(relative_errors(found, wanted).values()) < 1e-6


def test_what_a_reset_hides_may_be_no_number():
    """The conv_state of an unused batch row may contain anything."""
    inputs = conv_inputs(torch.Generator(DEVICE).manual_seed(6), 1, 9, 4, 4, device=DEVICE)
    inputs["reset"][:] = False
    inputs["reset"][0, 0] = True
    inputs["conv_state"][:] = float("nan")
    found = run_with_gradients(causal_conv_triton, inputs, 6)
    assert all(value.isfinite().all() for value in found.values())


def test_more_shares_than_are_read_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "SHARES", 8)
    assert compare(7, (8 + 3, 2, 3, 2)) < 1e-6


def test_operator_keeps_torch_compiles_rules():
    inputs = conv_inputs(torch.Generator(DEVICE).manual_seed(3), 1, 9, 6, 4, device=DEVICE)
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, tuple(inputs.values()), test_utils=checks)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_many_random_shapes_on_the_gpu(dtype, tolerance):
    random = torch.Generator().manual_seed(4)
    for seed in range(60):
        batch, length, width = (int(torch.randint(1, top, (), generator=random)) for top in (4, 70, 300))
        assert compare(seed, (batch, length, width, 2 + seed % 4), dtype) < tolerance
