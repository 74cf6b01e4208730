"""Attention's kernels compared with the plain path in float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda
from tests.ops.reference_ops import relative_errors

from core.ops.triton import window_attention as module  # isort: skip
from core.ops.triton.conditional_copy import conditional_copy  # isort: skip
from core.ops.positions import ROPE_BASE, Positions  # isort: skip
from core.ops.triton.rotary import _rotations, rotations  # isort: skip
from core.ops.window_attention import window_attention  # isort: skip


TOLERANCE = 3e-3 if DEVICE == "cuda" else 1e-6
"""Of float32, which the tensor cores read with 10 bits of fraction."""


def compare(batch, heads, length, past, width, window, dtype=torch.float32, seed=0, cached=0, documents=0.05):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, length, heads, width, generator=generator).to(dtype).transpose(1, 2)
    k, v = (torch.randn(batch, heads, past + length, width, generator=generator).to(dtype) for _ in "kv")
    grad = torch.randn(batch, heads, length, width, generator=generator)
    before = torch.randint(0, past + 1, (batch,), generator=generator) if past else None
    starts = torch.rand(batch, length, generator=generator) < documents
    positions = Positions(torch.zeros(batch, length, dtype=torch.int64), before, starts, window)

    def on_device(q, k, v):
        return module.window_attention_triton(
            q, k, v, positions.visible_length.to(DEVICE), window, cache_learns=cached == 0
        )

    found = []
    for function, kind, device in (
        (lambda q, k, v: window_attention(q, k, v, positions), torch.float64, "cpu"),
        (on_device, dtype, DEVICE),
    ):
        leaves = [item.to(device, kind).clone().requires_grad_() for item in (q, k, v)]
        out = function(*leaves)
        out.backward(grad.to(device, out.dtype))
        parts = [out.detach(), leaves[0].grad, *(leaf.grad[:, :, cached:] for leaf in leaves[1:])]
        found.append({str(i): part.cpu() for i, part in enumerate(parts)})
    return max(relative_errors(found[1], found[0]).values())


@pytest.mark.parametrize(
    "shape",
    [
        (2, 2, 20, 15, 8, 16),
        (1, 2, 70, 63, 24, 64),
        (1, 1, 1, 15, 16, 16),
        (1, 1, 100, 31, 16, 32),
        (1, 1, 20, 15, 72, 16),
        (1, 1, 150, 31, 16, 32),
    ],
)
def test_outputs_and_gradients(shape):
    assert compare(*shape) < TOLERANCE


@pytest.mark.parametrize("documents", [0, 0.01])
@pytest.mark.parametrize("length", [128, 192, 200])
def test_blocks_that_all_see_and_blocks_that_none_sees(length, documents):
    assert compare(1, 1, length, 318, 16, 319, documents=documents, cached=318) < TOLERANCE


def test_more_blocks_of_queries_than_are_counted_at_a_time(monkeypatch):
    blocks = module.Blocks(16, 128, 1, 4)
    monkeypatch.setattr(module, "_backward_blocks", lambda width, length: (blocks, blocks))
    assert compare(1, 1, 560, 0, 16, 560, documents=0) < TOLERANCE


def test_gradient_of_the_newest_keys_alone():
    assert compare(1, 2, 20, 15, 8, 16, cached=15) < TOLERANCE


def test_a_text_without_past():
    assert compare(2, 1, 90, 0, 16, 90) < TOLERANCE


def test_rotations_are_those_of_the_plain_path():
    positions = Positions(torch.zeros(2, 9, dtype=torch.int64), torch.tensor([0, 10**6]), None, 16)
    cos, sin = rotations(positions.position.to(DEVICE), 4, ROPE_BASE)
    x = torch.randn(2, 9, 3, 8)
    first, second = x.to(DEVICE).chunk(2, 3)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), 3)
    torch.testing.assert_close(turned.cpu(), positions.rotate(x))


@pytest.mark.parametrize("half", [1, 4, 12, 32, 1100])
def test_rotations_are_right_to_the_last_digit(half):
    random = torch.Generator().manual_seed(half)
    position = torch.randint(0, 2**20, (3, 30), generator=random)
    position[0] = torch.arange(30)
    position[1] = torch.arange(2**20 - 29, 2**20 + 1)
    position[2, :2] = torch.tensor([2**31, 2**24 + 1])
    cos, sin = rotations(position.to(DEVICE).t().contiguous().t(), half, ROPE_BASE)
    assert cos.shape == sin.shape == (3, 30, 1, half)
    rates = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = position[:, :, None, None] * rates
    near = position[:, :, None, None] <= 2**20
    for found, wanted in ((cos.cpu(), angles.cos()), (sin.cpu(), angles.sin())):
        assert found.dtype == torch.float32
        errors = (found.double() - wanted).abs()
        assert torch.where(near, errors, 0).max() < 1.2e-7
        assert errors.max() < 1e-5


def test_rotations_operator_keeps_torch_compiles_rules():
    position = torch.randint(0, 99, (2, 9), device=DEVICE)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_rotations, (position, 4, ROPE_BASE), test_utils=checks)


def test_operators_keep_torch_compiles_rules():
    q = torch.randn(1, 5, 2, 8, device=DEVICE).transpose(1, 2).requires_grad_()
    k, v = (torch.randn(1, 2, 9, 8, device=DEVICE, requires_grad=True) for _ in "kv")
    visible_length = torch.randint(0, 5, (1, 5), device=DEVICE)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(module._operator, (q, k, v, visible_length, 5, True), test_utils=checks)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize(
    "layout", ["newest slots", "ssm_state", "ssm_state of Mamba-2", "numbers", "bf16 to float32"]
)
def test_conditional_copy_copies_only_where_it_may(good, layout):
    new, old = {
        "newest slots": lambda: (torch.randn(2, 3, 9, 4)[:, :, 4:], torch.randn(2, 3, 5, 4)),
        "ssm_state": lambda: tuple(torch.randn(2, 4, 3).transpose(1, 2) for _ in range(2)),
        "ssm_state of Mamba-2": lambda: tuple(torch.randn(2, 2, 4, 3).mT for _ in range(2)),
        "numbers": lambda: (torch.arange(7), torch.zeros(7, dtype=torch.int64)),
        "bf16 to float32": lambda: (torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8)),
    }[layout]()
    target = old.to(DEVICE)
    conditional_copy(new.to(DEVICE), target, torch.tensor(good, device=DEVICE))
    assert torch.equal(target.cpu(), new.to(old.dtype) if good else old)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(
    "shape",
    [(4, 8, 128, 127, 32, 128), (2, 4, 300, 127, 24, 128), (1, 2, 70, 0, 64, 128), (2, 2, 512, 511, 64, 512)],
)
@pytest.mark.parametrize("documents", [0, 0.02])
def test_bfloat16_on_the_gpu(shape, documents):
    assert compare(*shape, dtype=torch.bfloat16, documents=documents) < 1e-2
