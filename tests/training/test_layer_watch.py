"""What a trainer says of its layers is what its checkpoints say, and costs what is learned nothing."""

from __future__ import annotations

import pytest
import torch

from core.checkpoint import load
from core.data.loader import EvaluationLoader
from core.model import GPT
from core.runs import EventReader, EventWriter, RunHistory
from core.runs.events import LayersEvent
from core.training.build import build_parts
from core.training.layer_watch import ROWS, LayerWatch
from tests.run_tools import new_run, run_event, train_here, write_text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def layers_of(run):
    return [event for event in EventReader(run.events_path).poll() if event.kind == "layers"]


@pytest.mark.parametrize("changes", [{}, {"average_decay": 0.9, "dropout": 0.1}])
def test_layers_are_told_as_the_checkpoints_are(tmp_path, dataset, changes):
    run = new_run(
        tmp_path, dataset, max_iters=5, eval_interval=2, checkpoint_interval=1, sample_tokens=0,
        keep_last=9, **changes,
    )  # fmt: skip
    assert train_here(run) == 0
    told = layers_of(run)
    assert [event.step for event in told] == [2, 4, 5]
    payloads = {info.step: load(info.path) for info in run.checkpoints()}
    parts = build_parts(run, run.config(), None, lambda text, share: None)
    for event in told:
        before, after = payloads[event.step - 1]["model"], payloads[event.step]["model"]
        model = GPT(run.config().model, parts.tokenizer.vocab_size).double()
        model.load_state_dict(after)
        model.eval()
        x, y, doc_start = map(
            torch.from_numpy,
            next(iter(EvaluationLoader(
                parts.corpus.train, parts.tokenizer.eot, min(ROWS, 3), run.config().model.block_size
            ))),
        )  # fmt: skip
        model(x, None, doc_start, y).loss.backward()
        for layer, block in enumerate(model.blocks):
            names = [name for name in after if name.startswith(f"blocks.{layer}.")]
            added = sum(
                float((after[name].double() - before[name].double()).square().sum()) for name in names
            )
            old = sum(float(before[name].double().square().sum()) for name in names)
            assert event.update_ratio[layer] == pytest.approx((added / old) ** 0.5, rel=1e-4)
            norm = sum(float(weight.grad.square().sum()) for weight in block.parameters()) ** 0.5
            assert event.gradient_norm[layer] == pytest.approx(norm, rel=1e-3)
            passed = x if layer < 0 else model.encode_layer(layer, x, None, doc_start)[0]
            stream = block.skip(passed) + block.mlp(block.mlp_norm(passed))
            assert event.activation[layer] == pytest.approx(float(stream.square().mean() ** 0.5), rel=1e-3)


def test_only_the_first_rank_looks_and_nothing_is_left_behind(tmp_path, dataset):
    run = new_run(tmp_path, dataset, eval_interval=2)
    parts = build_parts(run, run.config(), None, lambda text, share: None)
    writer = EventWriter(tmp_path / "events.jsonl")
    watch = LayerWatch(parts, run.config(), writer)
    parts.model.train()
    random = torch.get_rng_state()
    watch.before_step(2, 100)
    watch.report(2)
    watch.report(3)  # asked for by a command: nobody kept the weights before
    assert torch.equal(torch.get_rng_state(), random)
    assert parts.model.training
    assert all(weight.grad is None for weight in parts.model.parameters())
    assert not any(block._forward_hooks for block in parts.model.blocks)
    parts.ranks = type("Ranks", (), {"first": False})()
    watch.before_step(4, 100)
    watch.report(4)
    writer.close()
    first, second = EventReader(tmp_path / "events.jsonl").poll()
    assert first.update_ratio == [0.0] * parts.model.config.n_layer
    assert second.update_ratio == []


def test_memory_that_does_not_suffice_costs_only_the_figures(tmp_path, dataset, monkeypatch):
    run = new_run(tmp_path, dataset, max_iters=2, eval_interval=2, sample_tokens=0)

    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LayerWatch, "_gradients_and_activations", full)
    assert train_here(run) == 0
    assert layers_of(run) == []


def test_a_resumed_run_takes_back_the_layers_of_what_happens_again():
    history = RunHistory()
    history.feed([run_event()])
    history.feed(
        LayersEvent(step=step, gradient_norm=[1.0], update_ratio=[], activation=[1.0])
        for step in range(1, 1500)
    )
    assert 500 <= len(history.layers) <= 1000
    history.feed([run_event(resumed_from=700, started=5.0)])
    assert history.layers[-1].step <= 700
