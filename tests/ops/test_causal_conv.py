"""The causal convolution compared with its definition, tap by tap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops.causal_conv import causal_conv


def definition(x, weight, bias, conv_state, reset):
    """(B, L, D) by looking, for every step, at each earlier input that no reset hides."""
    batch, length, _ = x.shape
    taps = weight.shape[1]
    seen = torch.cat((conv_state, x), 1)
    rows = []
    for b in range(batch):
        for t in range(length + 1):  # the step after the end shows what the new conv_state may hold
            total = bias.clone()
            for distance in range(taps):
                if distance and reset[b, max(0, t - distance + 1) : t + 1].any():
                    break
                if t < length:
                    total = total + weight[:, taps - 1 - distance] * seen[b, taps - 1 + t - distance]
            if t < length:
                rows.append(F.silu(total))
    conv_states = torch.zeros_like(conv_state)
    for b in range(batch):
        for distance in range(1, taps):
            if not reset[b, max(0, length - distance + 1) :].any():
                conv_states[b, taps - 1 - distance] = seen[b, taps - 1 + length - distance]
    return torch.stack(rows).unflatten(0, (batch, length)), conv_states


@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 9),
    taps=st.integers(2, 5),
    resets=st.sampled_from((0.0, 0.2, 1.0)),
)
@settings(max_examples=60, deadline=None)
def test_equals_its_definition_with_gradients(seed, length, taps, resets):
    torch.manual_seed(seed)
    shapes = ((2, length, 3), (3, taps), (3,), (2, taps - 1, 3))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, weight, bias, conv_state = inputs
    reset = torch.rand(2, length) < resets
    given_reset = reset if resets else None
    results = []
    for y, new_conv_state in (
        causal_conv(x, weight, bias, conv_state=conv_state, reset=given_reset),
        definition(x, weight, bias, conv_state, reset),
    ):
        total = (y * torch.arange(y.numel()).view_as(y)).sum() + (new_conv_state**2).sum()
        results.append([y, new_conv_state, *torch.autograd.grad(total, inputs)])
    for ours, true in zip(*results):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-10)


def test_without_state_and_bias_starts_from_zeros():
    x, weight = torch.randn(2, 5, 3), torch.randn(3, 4)
    padded = F.pad(x.transpose(1, 2), (3, 0))
    expected = F.silu(F.conv1d(padded, weight.unsqueeze(1), groups=3)).transpose(1, 2)
    y, conv_state = causal_conv(x, weight)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(conv_state, x[:, -3:])


def test_cut_equals_whole():
    x, weight, bias = torch.randn(2, 11, 3), torch.randn(3, 4), torch.randn(3)
    reset = torch.zeros(2, 11, dtype=torch.bool)
    reset[0, 5] = reset[1, 6] = True
    whole, conv_state = causal_conv(x, weight, bias, reset=reset)
    first, between = causal_conv(x[:, :6], weight, bias, reset=reset[:, :6])
    second, end = causal_conv(x[:, 6:], weight, bias, conv_state=between, reset=reset[:, 6:])
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, conv_state)
    assert not between[0, :2].any()
