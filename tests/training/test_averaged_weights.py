"""Averaged weights: a plain mean at first, then an exponential one; kept in checkpoints; judged."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from core.checkpoint import export_weights, load, load_model
from core.config.schema import build
from core.model import GPT
from core.training.averaged_weights import EVERY, AveragedWeights
from tests.run_tools import evaluations, new_run, train_here, write_text


def small() -> GPT:
    torch.manual_seed(0)
    return GPT(build({"n_embd": [8], "n_head": 2, "attention_type": "standard", "block_size": 4}).model, 50)


def test_it_is_the_average_that_its_formula_says():
    model = small()
    averaged = AveragedWeights(model, 0.9)
    expected, weight = None, next(model.parameters())
    for step in range(1, 200):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        averaged.update(step)
        if step % EVERY == 0:
            share = max(1 - 0.9**EVERY, EVERY / step)
            expected = weight.clone() if expected is None else expected + share * (weight - expected)
    assert torch.allclose(next(averaged.model.parameters()), expected, atol=1e-5)
    assert not next(averaged.model.parameters()).requires_grad


def test_a_tied_head_stays_tied():
    averaged = AveragedWeights(small(), 0.9)
    assert averaged.model.head.weight is averaged.model.embedding.weight


def test_a_run_is_judged_by_its_average_and_resumes_with_it_exactly(tmp_path):
    dataset = write_text(tmp_path / "text")
    settings = {"average_decay": 0.8, "max_iters": 24, "schedule": "constant", "mixer_dropout": 0.2}
    whole = new_run(tmp_path / "whole", dataset, **settings)
    assert train_here(whole) == 0
    parts = new_run(tmp_path / "parts", dataset, **settings)
    assert train_here(parts, stop_at=11) == 130
    assert train_here(parts) == 0
    assert evaluations(parts) == evaluations(whole)
    one, two = (load(run.checkpoints()[-1].path) for run in (whole, parts))
    for name, tensor in one["averaged"].items():
        assert torch.equal(tensor, two["averaged"][name]), name
    assert any(not torch.equal(one["averaged"][name], one["model"][name]) for name in one["model"])
    path = whole.checkpoints()[-1].path
    model, _, _ = load_model(path)
    export_weights(path, tmp_path / "weights.safetensors")
    exported = load_file(tmp_path / "weights.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(model.state_dict()[name], one["averaged"][name]), name
        assert torch.equal(tensor, one["averaged"][name]), name
