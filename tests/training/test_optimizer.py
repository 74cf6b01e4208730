"""The optimizer: torch's own numbers, the right parameters decayed, skipped steps truly skipped."""

from __future__ import annotations

import math

import pytest
import torch

from core.config.schema import TrainingConfig, build
from core.model import GPT
from core.training.optimizer import AdamW, make_optimizer, parameter_groups
from core.training.schedule import Schedule

TRAINING = TrainingConfig(warmup_iters=10, max_iters=110, learning_rate=1e-2, min_learning_rate=1e-3)


def model(**changes) -> GPT:
    values = {
        "n_embd": [8, 8, 8],
        "n_head": 2,
        "attention_type": ["mamba", "standard", "mamba2"],
        "block_size": 4,
    }
    torch.manual_seed(0)
    return GPT(build(values | changes).model, 100)


def test_runs_from_before_still_decay_the_small_matrices():
    groups = parameter_groups(model(), TrainingConfig(decay_small_matrices=True))
    assert {"conv_weight", "weight"} <= {name.rpartition(".")[2] for name in groups[0]["names"]}
    assert any("dt_proj" in name for name in groups[0]["names"])


@pytest.mark.parametrize("tied", [True, False])
def test_what_decays(tied):
    built = model(tie_embeddings=tied, position="learned")
    groups = {
        name: group["weight_decay"] for group in parameter_groups(built, TRAINING) for name in group["names"]
    }
    assert groups.keys() == dict(built.named_parameters()).keys()
    free = {name for name, decay in groups.items() if decay == 0}
    for name in groups:
        last = name.rpartition(".")[2]
        expected = last in ("A_log", "D", "dt_bias", "conv_bias") or "norm" in name or "embedding" in name
        expected |= last == "conv_weight" or "dt_proj" in name
        assert (name in free) == expected, name
    assert ("head.weight" in groups) == (not tied)


def gradients(built, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in built.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_is_torch_s_fused_adamw_bit_for_bit():
    ours, theirs = model(), model()
    own = make_optimizer(ours, TRAINING)
    groups = [
        {key: group[key] for key in ("params", "weight_decay")}
        for group in parameter_groups(theirs, TRAINING)
    ]
    reference = torch.optim.AdamW(groups, betas=(TRAINING.beta1, TRAINING.beta2), fused=True)
    for step in range(1, 6):
        for optimizer in (own, reference):
            for group in optimizer.param_groups:
                group["lr"] = Schedule(TRAINING).rate(step)
        gradients(ours, step)
        gradients(theirs, step)
        own.step()
        reference.step()
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, other), name


def test_a_skipped_step_changes_nothing_and_is_not_counted():
    built, plain = model(), model()
    optimizer, reference = make_optimizer(built, TRAINING), make_optimizer(plain, TRAINING)
    for step, bad in enumerate([False, True, False], 1):
        gradients(built, step)
        before = [parameter.detach().clone() for parameter in built.parameters()]
        if bad:
            next(built.parameters()).grad[0] = math.nan
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        if bad:
            assert all(torch.equal(new, old) for new, old in zip(built.parameters(), before))
        else:
            gradients(plain, step)
            reference.step()
    assert all(torch.equal(mine, other) for mine, other in zip(built.parameters(), plain.parameters()))
    assert {float(group["step"]) for group in optimizer.param_groups} == {2.0}


def test_state_goes_on_where_it_was():
    built = model()
    optimizer = make_optimizer(built, TRAINING)
    for step in range(3):
        gradients(built, step)
        optimizer.step()
    other = model()
    other.load_state_dict(built.state_dict())
    resumed = make_optimizer(other, TRAINING)
    resumed.load_state_dict(optimizer.state_dict())
    for each, learner in ((built, optimizer), (other, resumed)):
        gradients(each, 9)
        learner.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(built.parameters(), other.parameters()))
    with pytest.raises(KeyError):
        resumed.load_state_dict({})


def test_gradients_are_forgotten():
    built = model()
    optimizer: AdamW = make_optimizer(built, TRAINING)
    gradients(built, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(parameter.grad.abs().sum() == 0 for parameter in built.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in built.parameters())
    before = [parameter.detach().clone() for parameter in built.parameters()]
    optimizer.step()
    assert all(torch.equal(new, old) for new, old in zip(built.parameters(), before))
