"""The captured step computes what the plain step computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.config.schema import build
from core.data.loader import SequentialLoader
from core.model import GPT
from core.training.benchmark import RandomStream
from core.training.cuda_graph_step import CUDAGraphStep
from core.training.optimizer import make_optimizer
from core.training.step import EagerStep

EOT = 49
CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


def make_step(kind, device="cpu", **changes):
    config = build(
        {
            "n_layer": 3,
            "n_embd": [32, 16, 32],
            "n_head": 2,
            "attention_type": ["mamba", "standard", "mamba2"],
            "block_size": 16,
            "batch_size": 4,
            "warmup_iters": 3,
            "max_iters": 300,
            "grad_clip": 0.5,
            "dtype": "float32",
        }
        | changes
    )
    torch.manual_seed(0)
    model = GPT(config.model, 50).to(device)
    optimizer = make_optimizer(model, config.training)
    loader = SequentialLoader(
        RandomStream(3000, 50), EOT, config.training.batch_size, config.model.block_size, 8, seed=1
    )
    return model, kind(model, model, optimizer, loader, config, torch.device(device))


def assert_alike(plain, captured, rtol=1e-4, atol=1e-5):
    (model, step), (other, other_step) = plain, captured
    metrics, others = step.read(wait=True), other_step.read(wait=True)
    assert [m.step for m in metrics] == [m.step for m in others]
    assert [m.learning_rate for m in metrics] == [m.learning_rate for m in others]
    np.testing.assert_allclose([m.loss for m in metrics], [m.loss for m in others], rtol=rtol, atol=atol)
    for first, second in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(first, second, rtol=rtol * 10, atol=atol * 10)
    states = zip(step.state.tensors().values(), other_step.state.tensors().values())
    for first, second in states:
        torch.testing.assert_close(first, second, rtol=rtol * 10, atol=atol * 10, check_dtype=False)


@pytest.mark.parametrize("batches", [1, 3])
def test_same_losses_weights_and_states(batches):
    steps = [make_step(kind, gradient_accumulation_steps=batches) for kind in (EagerStep, CUDAGraphStep)]
    for _, step in steps:
        for number in range(1, 13):
            step.run(number)
    assert_alike(*steps)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 3}, {"tie_embeddings": False}])
def test_working_weights_learn_what_casts_do(changes):
    steps = [
        make_step(kind, dtype="bfloat16", **changes) for kind in (EagerStep, CUDAGraphStep, CUDAGraphStep)
    ]
    (plain, _), (casting, casting_step), (model, step) = steps
    casting_step.forward, casting_step._working = casting, None
    for _, each in steps:
        for number in range(1, 13):
            each.run(number)
    working = dict(step.plain.named_parameters())
    master = dict(model.named_parameters())
    assert {name for name in master if working[name] is master[name]} == {
        name for name, parameter in master.items() if working[name].dtype == parameter.dtype
    }
    for name, parameter in master.items():
        matrix = (
            parameter.ndim == 2 and name.endswith(".weight") and "embed" not in name and "head" not in name
        )
        assert (working[name].dtype == torch.bfloat16) == matrix, name
        assert torch.equal(working[name], parameter.to(working[name].dtype)), name
    plain_losses, casting_losses, losses = (
        [metrics.loss for metrics in each.read(wait=True)] for _, each in steps
    )
    assert losses == casting_losses
    assert all(map(torch.equal, model.parameters(), casting.parameters()))
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-3)
    for first, second in zip(plain.parameters(), model.parameters()):
        torch.testing.assert_close(first, second, rtol=1e-2, atol=5e-3)


def test_tokens_that_do_not_fit_come_from_the_host(monkeypatch):
    steps = [make_step(EagerStep)]
    monkeypatch.setattr("core.training.cuda_graph_step.RESIDENT_BYTES", 100)
    steps.append(make_step(CUDAGraphStep))
    for _, step in steps:
        for number in range(1, 6):
            step.run(number)
    assert_alike(*steps)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_step_that_cannot_be_taken_changes_nothing(batches, kind):
    model, step = make_step(CUDAGraphStep, gradient_accumulation_steps=batches, dtype=kind)
    for number in (1, 2):
        step.run(number)
    step.read(wait=True)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    state = step.state.map(torch.clone)
    hook = step.plain.norm.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    step.run(3)
    hook.remove()
    assert [metrics.good for metrics in step.read(wait=True)] == [False]
    assert all(map(torch.equal, kept, model.parameters()))
    assert all(map(torch.equal, state.tensors().values(), step.state.tensors().values()))
    step.run(4)
    assert [metrics.good for metrics in step.read(wait=True)] == [True]


def test_no_step_is_lost_or_told_twice_when_nobody_reads_for_long(monkeypatch):
    monkeypatch.setattr("core.training.cuda_graph_step.RING", 8)
    _, step = make_step(CUDAGraphStep)
    for number in range(1, 22):
        step.run(number)
    assert [metrics.step for metrics in step.read(wait=True)] == list(range(1, 22))


def test_goes_on_from_a_loaded_state():
    _, first = make_step(CUDAGraphStep)
    for number in range(1, 4):
        first.run(number)
    _, second = make_step(CUDAGraphStep)
    second.load_state(first.state)
    assert all(map(torch.equal, first.state.tensors().values(), second.state.tensors().values()))


@torch.no_grad()
def farthest(one, other):
    """The largest differences between two trainings: of losses, of weights, of states."""
    (model, step, losses), (other_model, other_step, other_losses) = one, other
    weights = [list(model.parameters()), list(other_model.parameters())]
    states = [list(step.state.tensors().values()), list(other_step.state.tensors().values())]
    return [
        max(float((first.double() - second.double()).abs().max()) for first, second in zip(*pair))
        for pair in (([losses], [other_losses]), weights, states)
    ]


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("batches", [1, 2])
def test_200_captured_steps_learn_what_200_plain_ones_do(batches):
    """Training amplifies rounding: compare with a plain training whose weights began one rounding away."""
    kinds = (EagerStep, CUDAGraphStep, EagerStep)
    plain, captured, rounded = (
        make_step(kind, "cuda", gradient_accumulation_steps=batches) for kind in kinds
    )
    with torch.no_grad():
        for weight in rounded[0].parameters():
            weight.copy_(torch.nextafter(weight, weight + 1))
    trained = []
    for model, step in (plain, captured, rounded):
        for number in range(1, 201):
            step.run(number)
        trained.append((model, step, torch.tensor([metrics.loss for metrics in step.read(wait=True)])))
    assert captured[1]._graphs
    for mine, noise in zip(farthest(*trained[:2]), farthest(trained[0], trained[2])):
        assert mine <= 4 * noise + 1e-6


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("batches", [1, 2])
def test_200_steps_as_the_trainer_takes_them_on_cuda(batches):
    """In 16 bits, compiled, captured, with bf16 working weights, against the plain step with autocast."""

    def compiling(model, forward, *rest):
        return CUDAGraphStep(model, torch.compile(model), *rest)

    options = {"dtype": "bfloat16", "gradient_accumulation_steps": batches}
    steps = [make_step(kind, "cuda", **options) for kind in (EagerStep, compiling)]
    for _, step in steps:
        for number in range(1, 201):
            step.run(number)
    (_, plain), (model, fast) = steps
    assert fast._graphs, fast.notices
    working_weights = dict(fast.plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(working_weights[name], parameter.to(working_weights[name].dtype)), name
    losses, fast_losses = ([metrics.loss for metrics in step.read(wait=True)] for step in (plain, fast))
    np.testing.assert_allclose(losses[:5], fast_losses[:5], rtol=5e-3)
    np.testing.assert_allclose(losses, fast_losses, rtol=1e-2)


@needs_cuda
@pytest.mark.cuda
def test_what_cannot_be_captured_goes_on_with_a_notice():
    model, step = make_step(CUDAGraphStep, "cuda", dropout=0.1)
    model.norm.register_forward_hook(lambda module, inputs, output: output * float(output.sum() != 0))
    for number in range(1, 6):
        step.run(number)
    assert len(step.notices) == 1
    assert "captured" in step.notices[0]
    assert len(step.read(wait=True)) == 5
