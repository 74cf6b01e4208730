"""Runs that end well: early, from the best weights, when validation no longer improves or somebody asks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from core.checkpoint import load
from core.runs import EventReader
from core.runs.control import post_command
from core.training import early_end, trainer
from core.training.learning_progress import LearningProgress
from core.training.schedule import SHORTEST_COOLDOWN
from tests.run_tools import StopAt, evaluations, new_run, train_here, write_text


def warnings(run):
    return [event.message for event in EventReader(run.events_path).poll() if event.kind == "warning"]


def ask_to_finish(run, monkeypatch, step):
    """Have the command arrive once, when the trainer has come to `step`."""
    real, asked = StopAt.listen, []

    def listen(self, now):
        if now == step and not asked:
            asked.append(post_command(run.control_path, "finish", {}))
        real(self, now)

    monkeypatch.setattr(StopAt, "listen", listen)


@pytest.fixture
def dataset(tmp_path):
    return write_text(tmp_path / "text")


def test_progress_counts_evaluations_without_a_better_one():
    progress = LearningProgress()
    for step, loss in enumerate([3.0, 2.0, 2.0, 1.9999, 2.5, float("nan")], 1):
        progress.take(step, loss)
    assert (progress.best_loss, progress.best_step, progress.evaluations_since) == (2.0, 2, 4)
    assert progress.exhausted(4)
    assert not progress.exhausted(5)
    assert not progress.exhausted(0)
    resumed = LearningProgress()
    resumed.load_state_dict(progress.state_dict())
    assert resumed == progress


def scripted(losses):
    """An evaluation whose validation losses are given, and all else is real."""
    real, left = trainer.evaluate, list(losses)

    def evaluate(*arguments):
        found = real(*arguments)
        loss = left.pop(0) if left else losses[-1]
        validation = dataclasses.replace(found.validation, loss=loss)
        return dataclasses.replace(found, validation=validation)

    return evaluate


def test_a_run_that_stops_improving_cools_down_from_its_best_weights(tmp_path, dataset, monkeypatch):
    settings = {"max_iters": 400, "eval_interval": 4, "patience": 3, "schedule": "constant"}
    run = new_run(tmp_path / "runs", dataset, **settings, cooldown_iters=12)
    monkeypatch.setattr(trainer, "evaluate", scripted([5.0, 4.0, 4.1, 4.2, 4.3, 4.0]))
    returned = []
    real = early_end.return_to
    monkeypatch.setattr(
        early_end, "return_to", lambda parts, info: (returned.append(info.step), real(parts, info))
    )
    assert train_here(run) == 0
    assert returned == [8]
    assert evaluations(run)[-1][0] == 20 + 12
    (message,) = warnings(run)
    assert message == (
        "validation has not improved since step 8 (4.0000): cooling down from the weights of step 8, "
        "until step 32"
    )
    rates = [event.learning_rate for event in EventReader(run.events_path).poll() if event.kind == "step"]
    assert rates[-1] == 0


def test_a_cool_down_ends_where_validation_rises(tmp_path, dataset, monkeypatch):
    # Steps 4, 8, ... of which those after 20 cool down. What rose before counts for nothing then.
    losses = [5.0, 3.5, 4.5, 3.6, 4.4, 4.3, 4.0, 4.0039, 4.01]
    settings = {
        "max_iters": 60,
        "eval_interval": 4,
        "patience": 9,
        "schedule": "constant",
        "cooldown_iters": 40,
    }
    whole = new_run(tmp_path / "whole", dataset, **settings)
    monkeypatch.setattr(trainer, "evaluate", scripted(losses))
    assert train_here(whole) == 0
    assert evaluations(whole)[-1][0] == 36
    (message,) = warnings(whole)
    assert message == (
        "validation rises while the learning rate cools down (4.0100 after 4.0000): training ends at step 36 "
        "instead of 60"
    )
    assert load(whole.checkpoints()[-1].path)["step"] == 36
    assert train_here(whole) == 0  # it has come to its end: nothing is left to do
    assert evaluations(whole)[-1][0] == 36

    parts = new_run(tmp_path / "parts", dataset, **settings)
    monkeypatch.setattr(trainer, "evaluate", scripted(losses))
    assert train_here(parts, stop_at=30) == 130  # after the best of the cool-down, which is remembered
    assert train_here(parts) == 0
    assert evaluations(parts)[-1][0] == 36


def test_without_patience_a_run_goes_its_planned_way(tmp_path, dataset, monkeypatch):
    settings = {"max_iters": 24, "eval_interval": 4, "schedule": "constant", "cooldown_iters": 20}
    run = new_run(tmp_path / "runs", dataset, **settings)
    monkeypatch.setattr(trainer, "evaluate", scripted([4.0, 5.0, 6.0, 7.0, 8.0, 9.0]))
    assert train_here(run) == 0
    assert evaluations(run)[-1][0] == 24


def test_going_back_takes_weights_and_averages_of_the_best_checkpoint(tmp_path, dataset, monkeypatch):
    settings = {"max_iters": 400, "eval_interval": 4, "patience": 2, "schedule": "constant", "keep_last": 9}
    run = new_run(tmp_path / "runs", dataset, **settings, cooldown_iters=8, average_decay=0.9)
    monkeypatch.setattr(trainer, "evaluate", scripted([4.0, 4.1, 4.2]))
    seen = {}
    real = early_end.return_to

    def watch(parts, info):
        real(parts, info)
        best = load(info.path)
        seen["weights"] = all(torch.equal(best["model"][n], t) for n, t in parts.model.state_dict().items())
        averaged = parts.averaged.state_dict()
        seen["averaged"] = all(torch.equal(best["averaged"][n], t) for n, t in averaged.items())

    monkeypatch.setattr(early_end, "return_to", watch)
    assert train_here(run) == 0
    assert seen == {"weights": True, "averaged": True}


def test_finish_ends_a_run_early_with_a_rate_of_zero(tmp_path, dataset, monkeypatch):
    run = new_run(tmp_path / "runs", dataset, max_iters=5000, eval_interval=1000, schedule="constant")
    ask_to_finish(run, monkeypatch, step=6)
    assert train_here(run) == 0
    assert evaluations(run)[-1][0] == 6 + SHORTEST_COOLDOWN
    events = list(EventReader(run.events_path).poll())
    details = [event.detail for event in events if event.kind == "state" and event.state == "training"]
    assert f"cooling down until step {6 + SHORTEST_COOLDOWN}" in details
    assert [event.reason for event in events if event.kind == "end"] == ["finished"]


def test_a_cool_down_goes_on_after_a_stop(tmp_path, dataset, monkeypatch):
    run = new_run(tmp_path / "runs", dataset, max_iters=5000, eval_interval=1000, schedule="constant")
    ask_to_finish(run, monkeypatch, step=6)
    assert train_here(run, stop_at=20) == 130
    assert train_here(run) == 0
    assert evaluations(run)[-1][0] == 6 + SHORTEST_COOLDOWN


def test_more_steps_after_the_end_warm_up_again_and_say_so(tmp_path, dataset):
    from core.config.changes import replace
    from core.runs import prepare_run

    run = new_run(tmp_path / "runs", dataset, max_iters=16, schedule="constant", warmup_iters=4)
    assert train_here(run) == 0
    prepare_run(run.path.parent, run.name, replace(run.config(), max_iters=32), mode="resume")
    assert train_here(run) == 0
    assert any("warms up again to 0.003 within 4 steps" in message for message in warnings(run))
