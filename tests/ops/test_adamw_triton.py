"""The update in three launches does the same as AdamW, clipping and the bf16 copies one by one."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda

from core.training.cuda_graph_step import CUDAGraphStep  # isort: skip
from core.ops.triton import adamw as module  # isort: skip
from core.ops.triton.adamw import FusedUpdate  # isort: skip
from core.training.optimizer import AdamW  # isort: skip
from tests.training.test_cuda_graph_step import assert_alike, make_step  # isort: skip

SHAPES = [(3, 5), (40, 30), (7,), (300,), (1,)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several programs a parameter, whole ones and a rest."""
    monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(module, "PIECE", 128)


def make_optimizer():
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator).to(DEVICE) for shape in SHAPES]
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    groups = [
        {"names": ["a", "b"], "params": parameters[:2], "weight_decay": 0.1},
        {"names": ["c", "d", "e"], "params": parameters[2:], "weight_decay": 0.0},
    ]
    return parameters, AdamW(groups, 0.1, (0.9, 0.95))


def gradients(step, bf16, size):
    generator = torch.Generator().manual_seed(100 + step)
    found = [(torch.randn(shape, generator=generator) * size).to(DEVICE) for shape in SHAPES]
    return [
        gradient.bfloat16() if has_copy and bf16 else gradient
        for gradient, has_copy in zip(found, [True, True, False, False, False])
    ]


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("bf16", [True, False])
def test_same_weights_averages_copies_and_numbers(clip, bf16):
    parameters, plain = make_optimizer()
    others, optimizer = make_optimizer()
    copies = {id(weight): weight.detach().bfloat16() for weight in others[:2]}
    fused = FusedUpdate(optimizer.param_groups, clip, lambda weight: copies.get(id(weight)))
    ring, slot = torch.zeros(4, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for step in range(1, 6):
        rate, loss = 0.1 / step, torch.tensor(2.0 + step, device=DEVICE)
        found = gradients(step, bf16, size=0.3)
        if step == 3:
            found[1].view(-1)[5] = math.inf
        norm = torch.nn.utils.get_total_norm([gradient.float() for gradient in found])
        good = bool(torch.isfinite(norm))
        plain.found_inf = torch.tensor(float(not good), device=DEVICE)
        plain.grad_scale = ((norm + 1e-6) / clip).clamp(min=1.0) if clip > 0 else None
        for group in plain.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, found):
            parameter.grad = gradient.float().clone()  # which torch scales in place
        plain.step()
        slot.fill_(step % 4)
        before = [weight.clone() for weight in others]
        exact = torch.tensor(rate, dtype=torch.float64, device=DEVICE)
        fused.step(found, loss, exact, slot, ring)
        assert bool(fused.good) == good
        torch.testing.assert_close(ring[step % 4], torch.stack((loss, norm.float())))
        if not good:
            assert all(map(torch.equal, before, others))
    for first, second in zip(parameters, others):
        torch.testing.assert_close(first, second, rtol=2e-6, atol=2e-6)
    for first, second in zip(plain.param_groups, optimizer.param_groups):
        assert first["step"] == second["step"] == 4
        for name in ("averages", "squares"):
            for one, other in zip(first[name], second[name]):
                torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-7)
    for weight in others[:2]:
        # The interpreter cuts digits off where a GPU rounds.
        rtol = 0.0 if DEVICE == "cuda" else 2**-7
        torch.testing.assert_close(copies[id(weight)], weight.bfloat16(), rtol=rtol, atol=0.0)


def test_a_loss_that_is_no_number_changes_nothing():
    parameters, optimizer = make_optimizer()
    before = [weight.detach().clone() for weight in parameters]
    fused = FusedUpdate(optimizer.param_groups, 1.0)
    ring, slot = torch.zeros(1, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    rate = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
    fused.step(gradients(1, False, 1.0), torch.tensor(math.nan, device=DEVICE), rate, slot, ring)
    assert not fused.good
    assert all(map(torch.equal, before, parameters))
    assert [float(group["step"]) for group in optimizer.param_groups] == [0.0, 0.0]


def test_gradients_may_begin_anywhere_and_lie_across():
    parameters, optimizer = make_optimizer()
    others, second = make_optimizer()
    found = gradients(1, False, 1.0)
    moved = [
        torch.cat((gradient.flatten(), gradient.flatten()))[1 : 1 + gradient.numel()] for gradient in found
    ]
    moved = [piece.roll(1).view(gradient.shape) for piece, gradient in zip(moved, found)]
    across = [gradient.mT.contiguous().mT if gradient.ndim == 2 else gradient for gradient in found]
    numbers = torch.tensor(1.0, device=DEVICE), torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
    ring, slot = torch.zeros(1, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    FusedUpdate(optimizer.param_groups, 0.0).step(moved, *numbers, slot, ring)
    FusedUpdate(second.param_groups, 0.0).step(across, *numbers, slot, ring)
    assert all(map(torch.equal, parameters, others))


def test_bias_correction_is_exact_after_many_steps():
    """float32 would lose the difference between beta ** step and 1."""
    _, optimizer = make_optimizer()
    fused = FusedUpdate(optimizer.param_groups, 0.0)
    ring, slot = torch.zeros(1, 2, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for taken in (0, 6, 1000, 123456):
        for group in optimizer.param_groups:
            group["step"].fill_(taken)
        rate = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
        fused.step(gradients(1, False, 1.0), torch.tensor(1.0, device=DEVICE), rate, slot, ring)
        _, step_size, root, *_ = fused._numbers.tolist()
        assert step_size == pytest.approx(0.1 / (1 - 0.9 ** (taken + 1)), rel=1e-7)
        assert root == pytest.approx(math.sqrt(1 - 0.95 ** (taken + 1)), rel=2e-7)


@pytest.mark.skipif(DEVICE == "cuda", reason="the step takes these kernels there by itself")
@pytest.mark.parametrize(("dtype", "batches"), [("float32", 1), ("float32", 2), ("bfloat16", 1)])
def test_the_captured_step_learns_the_same_with_it(monkeypatch, dtype, batches):
    monkeypatch.undo()
    options = {"dtype": dtype, "gradient_accumulation_steps": batches}
    plain = make_step(CUDAGraphStep, **options)
    monkeypatch.setattr("core.training.cuda_graph_step.takes_triton", lambda *_: True)
    fused = make_step(CUDAGraphStep, **options)
    for _, step in (plain, fused):
        for number in range(1, 4):
            step.run(number)
    assert fused[1]._fused is not None
    assert plain[1]._fused is None
    # The interpreter cuts the copies' digits off where a GPU rounds.
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    assert_alike(plain, fused, rtol=tolerance, atol=tolerance)


@needs_cuda
@pytest.mark.cuda
def test_on_the_gpu_with_blocks_of_its_own_size(monkeypatch):
    monkeypatch.undo()
    weight = torch.randn(1000, 333, device="cuda")
    results = []
    for fast in (True, False):
        parameter = torch.nn.Parameter(weight.clone())
        optimizer = AdamW([{"names": ["a"], "params": [parameter], "weight_decay": 0.1}], 0.1, (0.9, 0.95))
        parameter.grad = weight.roll(1) * 0.01
        if fast:
            ring, slot = torch.zeros(1, 2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
            numbers = torch.tensor(1.0, device="cuda"), torch.tensor(0.1, dtype=torch.float64, device="cuda")
            FusedUpdate(optimizer.param_groups, 0.0).step([parameter.grad], *numbers, slot, ring)
        else:
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
