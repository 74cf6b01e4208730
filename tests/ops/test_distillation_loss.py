"""The loss of a student against its formula, written with whole logits and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.ops import distillation_loss as module
from core.ops.distillation_loss import Lesson, distillation_loss
from core.ops.linear_cross_entropy import linear_cross_entropy


def formula(x, weight, targets, lesson, vocab_size):
    own = F.log_softmax((x @ weight.t())[:, :vocab_size], 1)
    taught = F.log_softmax((lesson.features.flatten(0, -2) @ lesson.head.t())[:, :vocab_size], 1)
    kept = targets != -100
    text = F.nll_loss(own[kept], targets[kept])
    apart = F.kl_div(own[kept], taught[kept], reduction="batchmean", log_target=True)
    return (1 - lesson.share) * text + lesson.share * apart


@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 30),
    vocab_size=st.integers(1, 20),
    padding=st.integers(0, 5),
    share=st.floats(0, 1),
    ignored=st.floats(0, 0.9),
    chunk=st.integers(1, 200),
)
@settings(max_examples=60, deadline=None)
def test_equals_its_formula_with_gradients(seed, rows, vocab_size, padding, share, ignored, chunk):
    torch.manual_seed(seed)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocab_size + padding, 6, dtype=torch.float64, requires_grad=True)
    head = torch.randn(vocab_size + padding, 4, dtype=torch.float64)
    lesson = Lesson(torch.randn(1, rows, 4, dtype=torch.float64), head, share)
    targets = torch.randint(vocab_size, (rows,))
    targets[torch.rand(rows) < ignored] = -100
    targets[0] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        ours = distillation_loss(x, weight, targets, lesson, vocab_size=vocab_size)
    true = formula(x, weight, targets, lesson, vocab_size)
    torch.testing.assert_close(ours, true)
    for mine, theirs in zip(
        torch.autograd.grad(ours * 3, (x, weight)), torch.autograd.grad(true * 3, (x, weight))
    ):
        torch.testing.assert_close(mine, theirs)


def test_without_a_share_it_is_the_cross_entropy():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(9, 4), torch.randn(11, 4), torch.randint(11, (9,))
    lesson = Lesson(torch.randn(9, 4), torch.randn(11, 4), 0.0)
    torch.testing.assert_close(
        distillation_loss(x, weight, targets, lesson), linear_cross_entropy(x, weight, targets)
    )


def test_a_teacher_that_is_certain_leaves_the_loss_finite():
    x, weight = torch.randn(2, 3, requires_grad=True), torch.eye(3)
    lesson = Lesson(torch.full((2, 3), 1e4), torch.eye(3) * torch.tensor([1e4, 0, -1e4]), 0.5)
    loss = distillation_loss(x, weight, torch.tensor([0, 1]), lesson)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
