"""The output head and loss on CUDA compared with the plain path in float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda
from tests.ops.reference_ops import relative_errors

from core.ops.triton import linear_cross_entropy as module  # isort: skip
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


# One piece, several of each count of warps, pieces that are all padding, rows that are read twice.
SIZES = [
    (9, 64, 50),
    (7, 128, 128),
    (7, 1088, 1050),
    (7, 1088, 300),
    (3, 8128, 8100),
    (3, 8256, 8200),
    (2, 26688, 26650),
    (2, 33024, 33000),
]


@pytest.mark.parametrize(("rows", "vocabulary", "real"), SIZES)
def test_loss_and_gradients(rows, vocabulary, real):
    assert compare(rows, 16, vocabulary, real, torch.float32) < (5e-3 if DEVICE == "cuda" else 1e-5)


def test_every_way_through_a_row_is_tested():
    found = {module._settings(vocabulary, 4).warps for _, vocabulary, _ in SIZES}
    assert found == {warps for warps, _ in module.HOLDS}
    assert [vocabulary for _, vocabulary, _ in SIZES if not module._settings(vocabulary, 4).held] == [33024]
    for size in (2, 4):
        for vocabulary in range(64, 70_000, 64):
            piece, _, held = module._settings(vocabulary, size)
            assert held == 0 or 0 <= held * piece - vocabulary < piece


@pytest.mark.parametrize("held", [0, 2])
@pytest.mark.parametrize("real", [1050, 200])
def test_pieces_that_are_not_held_are_read_twice(monkeypatch, held, real):
    monkeypatch.setattr(module, "_settings", lambda columns, size: module.Settings(256, 2, held))
    assert compare(5, 16, 1088, real, torch.float32) < (5e-3 if DEVICE == "cuda" else 1e-5)


@pytest.mark.parametrize("held", [0, 2, 5])
def test_padding_and_ignored_rows_have_no_gradient(monkeypatch, held):
    monkeypatch.setattr(module, "_settings", lambda columns, size: module.Settings(256, 1, held))
    x = torch.randn(5, 8, device=DEVICE, requires_grad=True)
    weight = torch.randn(1088, 8, device=DEVICE)
    weight[700:] *= 1e4  # Padding that would win, were it counted.
    weight.requires_grad_()
    targets = torch.tensor([3, -100, 699, 0, -100], device=DEVICE)
    module.linear_cross_entropy_triton(x, weight, targets, vocab_size=700).backward()
    assert not weight.grad[700:].any()
    assert x.grad.ne(0).any(1).tolist() == [True, False, True, True, False]


def test_chunks_of_rows_add_up(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 64 * 4)
    assert compare(13, 8, 64, 60, torch.float32) < (5e-3 if DEVICE == "cuda" else 1e-5)


def test_without_gradient_the_loss_is_the_same():
    x, weight = torch.randn(5, 8, device=DEVICE), torch.randn(64, 8, device=DEVICE, requires_grad=True)
    targets = torch.randint(0, 64, (5,), device=DEVICE)
    with torch.no_grad():
        plain = module.linear_cross_entropy_triton(x, weight, targets)
    assert torch.equal(plain, module.linear_cross_entropy_triton(x, weight, targets).detach())


def test_a_copy_of_the_head_takes_its_place_in_the_products():
    x = torch.randn(5, 8, device=DEVICE, requires_grad=True)
    weight = torch.randn(64, 8, device=DEVICE, requires_grad=True)
    targets = torch.randint(0, 64, (5,), device=DEVICE)
    found = []
    for head, copy in ((weight, -weight.detach()), (weight, None), (-weight, None)):
        loss = module.linear_cross_entropy_triton(x, head, targets, working_weight=copy)
        found.append((loss, *torch.autograd.grad(loss, (x, head))))
    assert all(map(torch.equal, found[0], found[2]))
    assert not torch.equal(found[0][0], found[1][0])


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
    arguments = (x, weight, None, torch.randint(0, 60, (5,), device=DEVICE), -100, 60, True)
    torch.library.opcheck(module._operator, arguments, test_utils=checks)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("vocabulary", "real"),
    [(128, 100), (4096, 4090), (16384, 16000), (50304, 50257), (65536, 65536), (65600, 65537)],
)
def test_bfloat16_on_the_gpu(vocabulary, real):
    assert compare(700, 64, vocabulary, real, torch.bfloat16) < 1e-2


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize(("vocabulary", "real"), [(128, 100), (4096, 4090)])
def test_float16_on_the_gpu(vocabulary, real):
    assert compare(70, 64, vocabulary, real, torch.float16) < 1e-2
