"""A Mamba layer as one operation compared with the layer of single operations, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.ops.kernels import DEVICE
from tests.ops.reference_ops import relative_errors

from core.config.schema import build  # isort: skip
from core.model import MambaBlock, decay_rates  # isort: skip
from core.ops.mamba_mixer import mamba_mixer  # isort: skip
from core.ops.triton import mamba_mixer as module  # isort: skip
from core.ops.triton.mamba_mixer import _operator, mamba_mixer_triton  # isort: skip

# (batch, length, width, states): sizes that fill tiles, and sizes that do not; the last is cut into chunks.
SHAPES = [(2, 16, 32, 16), (1, 19, 24, 5), (3, 1, 16, 8), (1, 130, 16, 4)]


def make_block(width, states):
    config = build({"n_layer": 1, "n_embd": width, "attention_type": "mamba", "d_state": states}).model
    block = MambaBlock(config, 0).to(DEVICE)
    with torch.no_grad():
        for norm in (block.dt_norm, block.B_norm, block.C_norm):
            norm.weight.uniform_(0.5, 1.5)
        block.D.uniform_(-1, 1)
        block.conv_bias.uniform_(-1, 1)
    return block


def make_inputs(batch, length, block):
    inner, taps = block.conv_weight.shape
    return {
        "projected": torch.randn(batch, length, 2 * inner, device=DEVICE),
        "conv_state": torch.randn(batch, taps - 1, inner, device=DEVICE),
        "ssm_state": torch.randn(batch, *block.A_log.shape, device=DEVICE),
        "reset": torch.rand(batch, length, device=DEVICE) < 0.1,
    }


def mix(operation, block, projected, conv_state, ssm_state, reset):
    """`mamba_mixer`, or the Triton operation, with a block's parameters."""
    state = {"ssm_state" if operation is mamba_mixer else "h0": ssm_state}
    return operation(
        projected,
        (block.conv_weight, block.conv_bias),
        block.x_proj.weight,
        (block.dt_norm.weight, block.B_norm.weight, block.C_norm.weight),
        block.dt_proj.weight,
        decay_rates(block.A_log),
        block.D,
        block.dt_bias,
        conv_state=conv_state,
        **state,
        reset=reset,
        eps=1e-6,
    )


def run(block, operation, inputs, wide):
    """Outputs and gradients of everything."""
    kind = torch.float64 if wide else torch.float32
    block = copy.deepcopy(block).to(kind)
    inputs = {
        name: value if value.dtype == torch.bool else value.to(kind).requires_grad_()
        for name, value in inputs.items()
    }
    outputs = mix(operation, block, **inputs)
    found = dict(zip(("y", "conv_state", "ssm_state"), outputs))
    weights = torch.Generator(DEVICE).manual_seed(5)
    sum(
        (value * torch.randn(value.shape, generator=weights, device=DEVICE)).sum() for value in outputs
    ).backward()
    found |= {f"grad {name}": value.grad for name, value in inputs.items() if value.requires_grad}
    parameters = dict(block.named_parameters())
    used = [name for name in parameters if not name.startswith(("in_proj", "out"))]
    return found | {f"grad {name}": parameters[name].grad for name in used}


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_states_and_gradients(shape):
    torch.manual_seed(0)
    batch, length, width, states = shape
    block = make_block(width, states)
    inputs = make_inputs(batch, length, block)
    wanted = run(block, mamba_mixer, inputs, wide=True)
    found = run(block, mamba_mixer_triton, inputs, wide=False)
    assert found.keys() == wanted.keys()
    errors = relative_errors(found, wanted)
    assert max(errors.values()) < 3e-5, errors


def test_programs_of_several_pieces(monkeypatch):
    """Rows of the last program end inside a piece, and whole pieces are empty."""
    torch.manual_seed(0)
    raw, *grads = (torch.randn(100, size, device=DEVICE) for size in (17, 5, 6, 6))
    weights = [torch.rand(size, device=DEVICE) for size in (5, 6, 6)]
    found = []
    for programs, pieces in ((256, 1), (1, 4)):
        monkeypatch.setattr(module, "PROGRAMS", programs)
        assert module._pieces(100) == pieces
        grad_raw, of_weights = module._norms_backward(raw, weights, grads, 1e-6)
        found.append(torch.cat((grad_raw, torch.cat(of_weights)[None])))
    leaves = [item.double().requires_grad_() for item in (raw, *weights)]
    for part, weight, grad in zip(leaves[0].split((5, 6, 6), 1), leaves[1:], grads):
        normed = torch.nn.functional.rms_norm(part, weight.shape, weight, 1e-6)
        normed.backward(grad.double(), inputs=leaves)
    wanted = torch.cat((leaves[0].grad, torch.cat([leaf.grad for leaf in leaves[1:]])[None]))
    for one in found:
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "pieces"), [(1, 1), (4096, 1), (8191, 1), (8192, 2), (12288, 2), (16384, 4), (1 << 20, 256)]
)
def test_pieces_follow_the_rows(rows, pieces):
    assert module._pieces(rows) == pieces


def test_without_a_state_and_without_gradients():
    torch.manual_seed(0)
    block = make_block(16, 4)
    projected = make_inputs(2, 9, block)["projected"]
    with torch.no_grad():
        found = mix(mamba_mixer_triton, block, projected, None, None, None)
        wanted = mix(mamba_mixer, copy.deepcopy(block).double(), projected.double(), None, None, None)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_gradient_of_the_outputs_alone():
    """As in training, where the states are cut off."""
    torch.manual_seed(0)
    block = make_block(16, 4)
    inputs = make_inputs(2, 9, block)
    grads = []
    for operation, kind in ((mamba_mixer_triton, torch.float32), (mamba_mixer, torch.float64)):
        projected = inputs["projected"].to(kind, copy=True).requires_grad_()
        states = inputs["conv_state"].to(kind), inputs["ssm_state"].to(kind)
        of_kind = copy.deepcopy(block).to(kind)
        mix(operation, of_kind, projected, *states, inputs["reset"])[0].square().sum().backward()
        grads.append(projected.grad)
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-4, atol=1e-4)


def test_operator_keeps_torch_compiles_rules():
    torch.manual_seed(0)
    block = make_block(16, 4)
    inputs = make_inputs(1, 9, block)
    tensors = (
        inputs["projected"].requires_grad_(), block.conv_weight, block.conv_bias, block.x_proj.weight,
        block.dt_norm.weight, block.B_norm.weight, block.C_norm.weight, block.dt_proj.weight,
        -block.A_log.detach().exp().requires_grad_(), block.D, block.dt_bias,
        inputs["conv_state"], inputs["ssm_state"], inputs["reset"],
    )  # fmt: skip
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, (*tensors, 1e-6, True), test_utils=checks)


def test_public_function_casts_its_projections():
    torch.manual_seed(0)
    block = make_block(16, 4)
    inputs = make_inputs(1, 8, block)
    projected = inputs["projected"].bfloat16()
    y, conv_state, ssm_state = mix(mamba_mixer_triton, block, projected, None, None, None)
    assert (y.dtype, conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.isfinite(y).all()
