"""The chunked output head and loss compared with logits and cross-entropy in one piece."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import linear_cross_entropy as module
from core.ops.linear_cross_entropy import linear_cross_entropy, token_cross_entropy


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 30),
    vocab_size=st.integers(1, 20),
    padding=st.integers(0, 5),
    ignored=st.floats(0, 0.9),
    chunk=st.integers(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_equals_cross_entropy_with_gradients(seed, rows, vocab_size, padding, ignored, chunk):
    torch.manual_seed(seed)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab_size + padding, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocab_size, (rows,))
    targets[torch.rand(rows) < ignored] = -100
    targets[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        ours = linear_cross_entropy(x, weight, targets, vocab_size=vocab_size)
        without_gradients = linear_cross_entropy(x.detach(), weight.detach(), targets, vocab_size=vocab_size)
        each = token_cross_entropy(x, weight, targets, vocab_size=vocab_size)
    true = F.cross_entropy((x @ weight.t())[:, :vocab_size], targets)
    torch.testing.assert_close(ours, true)
    torch.testing.assert_close(without_gradients, true)
    apart = F.cross_entropy((x @ weight.t())[:, :vocab_size], targets, reduction="none")
    torch.testing.assert_close(each, apart.detach())
    for mine, theirs in zip(
        torch.autograd.grad(ours * 3, (x, weight)), torch.autograd.grad(true * 3, (x, weight))
    ):
        torch.testing.assert_close(mine, theirs)


def test_all_rows_ignored_is_zero_with_zero_gradients():
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_large_logits_stay_finite():
    x, weight = torch.full((2, 3), 1e4, requires_grad=True), torch.eye(3) * 1e4
    loss = linear_cross_entropy(x, weight, torch.tensor([0, 1]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(3.0).log())
    assert x.grad.isfinite().all()


def test_bfloat16_features_give_a_float32_loss():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(50, 32), torch.randn(64, 32) / 6, torch.randint(64, (50,))
    narrow = x.bfloat16().requires_grad_()
    master = weight.clone().requires_grad_()
    loss = linear_cross_entropy(narrow, master, targets)
    loss.backward()
    assert loss.dtype == master.grad.dtype == torch.float32
    reference = weight.clone().requires_grad_()
    F.cross_entropy(narrow.detach().float() @ reference.t(), targets).backward()
    assert (master.grad - reference.grad).norm() < 2e-2 * reference.grad.norm()
