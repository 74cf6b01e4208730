"""An attention layer as one operation against the layer made of single operations, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.ops.kernels import DEVICE
from tests.ops.reference_ops import relative_errors

from core.config.schema import build  # isort: skip
from core.model import AttentionState, MultiHeadAttention  # isort: skip
from core.ops.triton.attention_mixer import _operator  # isort: skip
from core.ops.window_attention import Places  # isort: skip


def make_layer(width, heads, window, position):
    shape = {"n_layer": 1, "n_embd": width, "n_head": heads, "block_size": window, "position": position}
    return MultiHeadAttention(build(shape | {"attention_type": "standard"}).model, 0).to(DEVICE)


def run(layer, mix, qkv, cache, places, kind):
    """Output, keys and values, and the projection's gradient."""
    qkv = qkv.to(kind, copy=True).requires_grad_()
    state = None if cache is None else AttentionState(*(part.to(kind) for part in cache))
    mixed, keys, values = getattr(copy.deepcopy(layer).to(kind), mix)(qkv, state, places)
    weights = torch.randn(mixed.shape, generator=torch.Generator(DEVICE).manual_seed(5), device=DEVICE)
    (mixed * weights).sum().backward()
    return {"mixed": mixed, "keys": keys, "values": values, "grad": qkv.grad}


# (lanes, length, width, heads, window)
@pytest.mark.parametrize(
    "shape", [(2, 16, 32, 2, 16), (1, 70, 24, 3, 9), (2, 1, 16, 4, 5), (1, 5, 40, 1, 80)]
)
@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("remembers", [True, False])
def test_outputs_cache_and_gradient(shape, position, remembers):
    torch.manual_seed(0)
    lanes, length, width, heads, window = shape
    layer = make_layer(width, heads, window, position)
    qkv = torch.randn(lanes, length, 3 * width, device=DEVICE)
    cache, before = None, None
    if remembers:
        cache = torch.randn(2, lanes, heads, window - 1, width // heads, device=DEVICE)
        before = torch.arange(lanes, device=DEVICE) * 3 + 2
    reset = torch.rand(lanes, length, device=DEVICE) < 0.1
    places = Places(torch.zeros(lanes, length, device=DEVICE), before, reset, window)
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter rounds no bfloat16
    qkv = qkv.to(kind)
    cache = cache if cache is None else cache.to(kind)
    wanted = run(layer, "_mix", qkv, cache, places, torch.float64)
    found = run(layer, "_mix_on_cuda", qkv, cache, places, kind)
    errors = relative_errors(found, wanted)
    assert max(errors.values()) < (1e-2 if DEVICE == "cuda" else 2e-3), errors


def test_operator_keeps_torch_compiles_rules():
    layer = make_layer(16, 2, 8, "rope")
    places = Places(torch.zeros(1, 8, device=DEVICE), None, None, 8)
    qkv = torch.randn(1, 8, 48, device=DEVICE, dtype=torch.float16, requires_grad=True)
    cache = torch.randn(2, 1, 2, 7, 8, device=DEVICE, dtype=torch.float16)
    arguments = (qkv, *cache, *places.rotations(qkv, 4), places.reach, layer.heads, 8)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, arguments, test_utils=checks)


def test_the_cache_takes_no_gradient():
    layer = make_layer(16, 2, 8, "rope")
    places = Places(torch.zeros(1, 8, device=DEVICE), None, None, 8)
    qkv = torch.randn(1, 8, 48, device=DEVICE, dtype=torch.float16, requires_grad=True)
    mixed, keys, values = layer._mix_on_cuda(qkv, None, places)
    assert mixed.requires_grad
    assert not keys.requires_grad
    assert not values.requires_grad
