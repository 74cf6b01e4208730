"""The loss head on CUDA against the plain path in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import DEVICE, needs_cuda
from tests.reference_ops import relative_errors

from core.ops import linear_cross_entropy_triton as module  # isort: skip
from core.ops.linear_cross_entropy import linear_cross_entropy  # isort: skip


def compare(rows, width, vocabulary, real, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(dtype)
    targets = torch.randint(0, real, (rows,), generator=generator)
    targets[1::5] = -100
    found = []
    for function, kind, device in (
        (linear_cross_entropy, torch.float64, "cpu"),
        (module.linear_cross_entropy_triton, dtype, DEVICE),
    ):
        leaves = [item.to(device, kind).requires_grad_() for item in (x, weight)]
        loss = function(*leaves, targets.to(device), vocab_size=real)
        (loss * 3).backward()
        found.append({"loss": loss.detach(), "x": leaves[0].grad, "weight": leaves[1].grad})
    wanted, result = ({name: item.cpu() for name, item in part.items()} for part in found)
    return max(relative_errors(result, wanted).values())


@pytest.mark.parametrize(("rows", "vocabulary", "real"), [(9, 64, 50), (7, 128, 128), (3, 8256, 8200)])
def test_loss_and_gradients(rows, vocabulary, real):
    assert compare(rows, 16, vocabulary, real, torch.float32) < (5e-3 if DEVICE == "cuda" else 1e-5)


def test_chunks_of_rows_add_up(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 64 * 4)
    assert compare(13, 8, 64, 60, torch.float32) < (5e-3 if DEVICE == "cuda" else 1e-5)


def test_without_gradient_the_loss_is_the_same():
    x, weight = torch.randn(5, 8, device=DEVICE), torch.randn(64, 8, device=DEVICE, requires_grad=True)
    targets = torch.randint(0, 64, (5,), device=DEVICE)
    with torch.no_grad():
        plain = module.linear_cross_entropy_triton(x, weight, targets)
    assert torch.equal(plain, module.linear_cross_entropy_triton(x, weight, targets).detach())


def test_all_ignored_is_zero():
    x, weight = torch.randn(4, 8, device=DEVICE), torch.randn(64, 8, device=DEVICE, requires_grad=True)
    loss = module.linear_cross_entropy_triton(x, weight, torch.full((4,), -100, device=DEVICE))
    loss.backward()
    assert loss == 0
    assert not weight.grad.any()


def test_operator_keeps_torch_compiles_rules():
    x = torch.randn(5, 8, device=DEVICE, requires_grad=True)
    weight = torch.randn(64, 8, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (x, weight, torch.randint(0, 60, (5,), device=DEVICE), -100, 60, True)
    torch.library.opcheck(module._operator, arguments, test_utils=checks)


@needs_cuda
@pytest.mark.cuda
def test_bfloat16_on_the_gpu():
    assert compare(700, 64, 50304, 50257, torch.bfloat16) < 1e-2
