"""Mamba-2's mixer as one operation compared with its single operations (each tested separately)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import build
from core.model import Mamba2Block, MambaState
from core.ops import mamba2_mixer, ssd_scan
from core.ops.mamba2_mixer_cpu import takes_mamba2_mixer_cpu
from core.ops.positions import Positions


def make_block(width=12, heads=2, states=5, taps=4, dtype=torch.float64):
    config = {
        "n_layer": 1, "n_embd": width, "n_head": heads, "attention_type": "mamba2",
        "d_state": states, "d_conv": taps,
    }  # fmt: skip
    block = Mamba2Block(build(config).model, 0).to(dtype)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def draw(block, batch, length, dtype=torch.float64):
    x = torch.randn(batch, length, block.out.out_features, dtype=dtype, requires_grad=True)
    empty = block.initial_state(batch, torch.device("cpu"), dtype)
    state = MambaState(torch.randn_like(empty.conv_state), torch.randn_like(empty.ssm_state).requires_grad_())
    return x, state


def results(block, x, state, *, with_state):
    """Outputs, new state, and the gradients of everything learnable, also through the state."""
    positions = Positions(torch.zeros(x.shape[:2]), torch.full((x.shape[0],), 9), None, 16)
    y, after = block(x, state, positions)
    generator = torch.Generator().manual_seed(1)
    reached = (y, *after) if with_state else (y,)
    total = sum((part * torch.randn(part.shape, generator=generator).to(part)).sum() for part in reached)
    return [y, *after, *torch.autograd.grad(total, [x, state.ssm_state, *block.parameters()])]


def as_parts(block, x, state, *, with_state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba2_mixer, "takes_mamba2_mixer_cpu", lambda *arguments: False)
        return results(block, x, state, with_state=with_state)


@given(
    seed=st.integers(0, 1 << 30),
    batch=st.integers(1, 3),
    chunk=st.integers(1, 5),
    chunks=st.integers(1, 3),
    heads=st.sampled_from((1, 2, 4)),
    states=st.integers(4, 7),
    taps=st.integers(2, 4),
    with_state=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_its_parts_with_gradients(seed, batch, chunk, chunks, heads, states, taps, with_state):
    torch.manual_seed(seed)
    block = make_block(8, heads, states, taps)
    x, state = draw(block, batch, chunk * chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssd_scan, "CHUNK", chunk)
        assert takes_mamba2_mixer_cpu(x, state.conv_state, None) == (chunk * chunks >= taps)
        ours = results(block, x, state, with_state=with_state)
        theirs = as_parts(block, x, state, with_state=with_state)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e8])
def test_a_norm_of_nothing_and_of_extremes(scale):
    torch.manual_seed(0)
    block = make_block(8, 2, 4)
    torch.nn.init.zeros_(block.conv_bias)
    x, state = draw(block, 2, 8)
    with torch.no_grad():
        x *= scale
        for tensor in (x, *state):
            tensor[0] = 0  # nothing to divide by in this batch row
    ours, theirs = (run(block, x, state, with_state=False) for run in (results, as_parts))
    for mine, other in zip(ours, theirs):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


def test_float32_is_as_near_to_float64_as_its_parts_are():
    torch.manual_seed(0)
    precise = make_block(64, 4, 16)
    block = make_block(64, 4, 16, dtype=torch.float32)
    block.load_state_dict(precise.state_dict())
    x, state = draw(block, 3, 64, torch.float32)
    exact_x = x.detach().double().requires_grad_()
    exact_state = MambaState(state.conv_state.double(), state.ssm_state.detach().double().requires_grad_())
    exact = as_parts(precise, exact_x, exact_state, with_state=True)
    for mine, parts, true in zip(
        results(block, x, state, with_state=True), as_parts(block, x, state, with_state=True), exact
    ):
        scale = true.abs().max()
        assert (mine - true).abs().max() / scale <= 4 * (parts - true).abs().max() / scale + 1e-7


def test_gradients_can_be_asked_for_twice():
    torch.manual_seed(0)
    block = make_block()
    x, state = draw(block, 2, 8)
    positions = Positions(torch.zeros(2, 8), torch.full((2,), 9), None, 16)
    y, _ = block(x, state, positions)
    grad = torch.randn_like(y)
    first = torch.autograd.grad(y, list(block.parameters()), grad, retain_graph=True)
    second = torch.autograd.grad(y, list(block.parameters()), grad)
    assert all(torch.equal(one, two) for one, two in zip(first, second))


def test_leaves_alone_what_it_was_given():
    torch.manual_seed(0)
    block = make_block()
    x, state = draw(block, 2, 8)
    before = [tensor.detach().clone() for tensor in (x, *state)]
    results(block, x, state, with_state=True)
    assert all(torch.equal(now, then) for now, then in zip((x, *state), before))


def test_what_it_does_not_take():
    x, conv_state = torch.randn(2, 64, 8, requires_grad=True), torch.randn(2, 3, 21)
    assert takes_mamba2_mixer_cpu(x, conv_state, None)
    assert not takes_mamba2_mixer_cpu(x, None, None)
    assert not takes_mamba2_mixer_cpu(x, conv_state, torch.zeros(2, 64, dtype=torch.bool))
    assert not takes_mamba2_mixer_cpu(x[:, :33], conv_state, None)  # a chunk and a piece
    assert not takes_mamba2_mixer_cpu(x[:, :3], conv_state, None)  # shorter than the conv_state
    assert not takes_mamba2_mixer_cpu(x, conv_state.requires_grad_(), None)
    conv_state = conv_state.detach()
    assert not takes_mamba2_mixer_cpu(x.bfloat16(), conv_state.bfloat16(), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_mamba2_mixer_cpu(x, conv_state, None)
    with torch.no_grad():
        assert not takes_mamba2_mixer_cpu(x, conv_state, None)
