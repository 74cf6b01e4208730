"""An attention layer as one operation compared with the layer of single operations, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE
from tests.ops.reference_ops import relative_errors

from core.ops import attention_mixer  # isort: skip
from core.ops.positions import Positions  # isort: skip
from core.ops.triton.attention_mixer import _operator, attention_mixer_triton  # isort: skip


def fused(qkv, cache, positions, heads, rotary):
    rotations = positions.rotations(qkv, qkv.shape[2] // (6 * heads)) if rotary else None
    return attention_mixer_triton(qkv, cache, rotations, positions.visible_length, heads, positions.window)


def run(mix, qkv, cache, positions, heads, rotary, kind):
    """Output, keys and values, and the projection's gradient."""
    qkv = qkv.to(kind, copy=True).requires_grad_()
    cache = None if cache is None else tuple(part.to(kind) for part in cache)
    mixed, keys, values = mix(qkv, cache, positions, heads, rotary)
    weights = torch.randn(mixed.shape, generator=torch.Generator(DEVICE).manual_seed(5), device=DEVICE)
    (mixed * weights).sum().backward()
    return {"mixed": mixed, "keys": keys, "values": values, "grad": qkv.grad}


# (batch, length, width, heads, window)
@pytest.mark.parametrize(
    "shape", [(2, 16, 32, 2, 16), (1, 70, 24, 3, 9), (2, 1, 16, 4, 5), (1, 5, 40, 1, 80)]
)
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("remembers", [True, False])
def test_outputs_cache_and_gradient(shape, rotary, remembers):
    torch.manual_seed(0)
    batch, length, width, heads, window = shape
    qkv = torch.randn(batch, length, 3 * width, device=DEVICE)
    cache, before = None, None
    if remembers:
        cache = torch.randn(2, batch, heads, window - 1, width // heads, device=DEVICE)
        before = torch.arange(batch, device=DEVICE) * 3 + 2
    reset = torch.rand(batch, length, device=DEVICE) < 0.1
    positions = Positions(torch.zeros(batch, length, device=DEVICE), before, reset, window)
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter rounds no bfloat16
    qkv = qkv.to(kind)
    cache = cache if cache is None else cache.to(kind)
    wanted = run(attention_mixer._plain, qkv, cache, positions, heads, rotary, torch.float64)
    found = run(fused, qkv, cache, positions, heads, rotary, kind)
    errors = relative_errors(found, wanted)
    assert max(errors.values()) < (1e-2 if DEVICE == "cuda" else 2e-3), errors


def test_operator_keeps_torch_compiles_rules():
    positions = Positions(torch.zeros(1, 8, device=DEVICE), None, None, 8)
    qkv = torch.randn(1, 8, 48, device=DEVICE, dtype=torch.float16, requires_grad=True)
    cache = torch.randn(2, 1, 2, 7, 8, device=DEVICE, dtype=torch.float16)
    arguments = (qkv, *cache, *positions.rotations(qkv, 4), positions.visible_length, 2, 8)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, arguments, test_utils=checks)


def test_the_cache_takes_no_gradient():
    positions = Positions(torch.zeros(1, 8, device=DEVICE), None, None, 8)
    qkv = torch.randn(1, 8, 48, device=DEVICE, dtype=torch.float16, requires_grad=True)
    mixed, keys, values = fused(qkv, None, positions, 2, True)
    assert mixed.requires_grad
    assert not keys.requires_grad
    assert not values.requires_grad
