"""Interrupt at any step and resume on CPU: every later loss is the uninterrupted run's exactly."""

from __future__ import annotations

import shutil

import pytest
import torch

from core.checkpoint import load
from core.data.corpus import cache_folder, read_split
from core.data.corpus.split import VALIDATION
from core.runs import Run, prepare_run
from tests.data.test_corpus import shelf, story
from tests.run_tools import curve, evaluations, history, new_run, tiny, train_here, warnings, write_text

MIXED = {
    "n_embd": [16, 12, 16],
    "n_head": 2,
    "attention_type": ["mamba", "standard", "mamba2"],
    "gradient_accumulation_steps": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset) -> Run:
    """A run that nothing interrupted: dropout on, all three mixers, accumulation, carried state."""
    run = new_run(tmp_path_factory.mktemp("whole"), dataset, **MIXED)
    assert train_here(run) == 0
    return run


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    return load(run.checkpoints()[-1].path)["model"]


def assert_same(run: Run, whole: Run) -> None:
    assert curve(run) == curve(whole)
    assert evaluations(run) == evaluations(whole)
    ours, theirs = final_weights(run), final_weights(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("cuts", [(1,), (8,), (3, 7, 8, 9, 16, 23), tuple(range(1, 24))], ids=str)
def test_interrupted_runs_repeat_the_uninterrupted_one(tmp_path, dataset, whole, cuts):
    run = new_run(tmp_path, dataset, **MIXED)
    for cut in cuts:
        assert train_here(run, stop_at=cut) == 130
        assert history(run).history.step == cut
    assert train_here(run) == 0
    assert_same(run, whole)


def test_a_crash_loses_only_the_steps_after_the_checkpoint(tmp_path, dataset, whole):
    run = new_run(tmp_path, dataset, **MIXED)
    assert train_here(run, stop_at=13) == 130
    # As if the trainer had been killed at step 13, with only the checkpoint of step 8 behind it.
    for path in run.path.glob("checkpoint_step_13.*"):
        path.unlink()
    assert [info.step for info in run.checkpoints()] == [8]
    assert train_here(run) == 0
    assert history(run).history.run.resumed_from == 8
    assert_same(run, whole)


def test_a_crash_before_the_first_checkpoint_starts_over(tmp_path, dataset, whole):
    run = new_run(tmp_path, dataset, **MIXED)
    assert train_here(run, stop_at=5) == 130
    for path in run.path.glob("checkpoint_step_*"):
        path.unlink()
    assert train_here(run) == 0
    assert_same(run, whole)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, dataset, whole):
    run = new_run(tmp_path, dataset, **MIXED)
    assert train_here(run, stop_at=20) == 130
    newest = run.checkpoints()[-1].path
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert train_here(run) == 0
    folded = history(run).history
    assert folded.run.resumed_from == 16
    assert any("checkpoint_step_20.pt is damaged" in message for message in warnings(folded))
    assert_same(run, whole)


def test_nothing_is_started_over_silently_when_every_checkpoint_is_damaged(tmp_path, dataset):
    run = new_run(tmp_path, dataset)
    assert train_here(run, stop_at=10) == 130
    for info in run.checkpoints():
        info.path.write_bytes(b"gone")
    assert train_here(run) == 2
    assert "no checkpoint to resume from" in history(run).history.error.message


def test_allowed_changes_apply_and_are_recorded(tmp_path, dataset):
    run = new_run(tmp_path, dataset)
    assert train_here(run, stop_at=10) == 130
    prepare_run(tmp_path, "run", tiny(dataset, learning_rate=1e-3, max_iters=30), mode="resume")
    assert train_here(run) == 0
    folded = history(run).history
    assert folded.run.changes == {"learning_rate": [3e-3, 1e-3], "max_iters": [24, 30]}
    assert folded.step == 30
    rates = dict(zip(folded.steps.column("step"), folded.steps.column("learning_rate")))
    assert rates[10] > 2e-3
    assert rates[11] == 1e-3


def test_a_batch_that_did_not_fit_can_be_made_smaller(tmp_path, dataset):
    """What the advice after memory ran out asks for: the run goes on, with batch rows that begin anew."""
    run = new_run(tmp_path, dataset, batch_size=6)
    assert train_here(run, stop_at=10) == 130
    smaller = tiny(dataset, batch_size=3, gradient_accumulation_steps=2)
    prepare_run(tmp_path, "run", smaller, mode="resume")
    assert train_here(run) == 0
    folded = history(run).history
    assert folded.run.changes == {"batch_size": [6, 3], "gradient_accumulation_steps": [1, 2]}
    assert [step for step, _ in curve(run)] == list(range(1, 25))
    assert set(folded.steps.column("tokens")[9:]) == {step * 6 * 16 for step in range(10, 25)}
    losses = [loss for _, loss in curve(run)]
    assert losses[-1] < losses[9]


def test_a_finished_run_says_so_and_goes_on_only_when_max_iters_is_raised(tmp_path, dataset, whole):
    shutil.copytree(whole.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = curve(run)
    assert train_here(run) == 0
    assert curve(run) == before
    assert history(run).history.end.reason == "finished"
    prepare_run(tmp_path, "run", tiny(dataset, **MIXED, max_iters=26), mode="auto")
    assert train_here(run) == 0
    assert [step for step, _ in curve(run)] == list(range(1, 27))


def test_a_run_carries_its_split(tmp_path):
    """The cache is lost and books arrive: what the run was measured by is still not trained on."""
    texts = shelf(tmp_path / "texts")
    run = new_run(tmp_path, texts)
    assert train_here(run, stop_at=4) == 130
    before = read_split(run.split_path)
    (held,) = [name for name, (_, side) in before.items() if side == VALIDATION]

    def lose_the_cache() -> None:
        shutil.rmtree(cache_folder(str(texts)))
        for number in range(20):
            (texts / f"new {number}.txt").write_text(story(100 + number))

    lose_the_cache()
    assert train_here(run, stop_at=6) == 130
    after = read_split(run.split_path)
    assert after.items() > before.items()
    assert len(after) == 26
    assert any("the text has changed" in message for message in warnings(history(run).history))

    # A damaged record in the run is told, and the one beside the text serves.
    run.split_path.write_bytes(b"[")
    assert train_here(run, stop_at=8) == 130
    assert read_split(run.split_path) == after
    assert any("split.json was damaged" in message for message in warnings(history(run).history))

    # Started over, the run has nothing to keep apart and may choose anew.
    lose_the_cache()
    fresh = prepare_run(tmp_path, "run", tiny(texts), mode="fresh")
    assert not fresh.split_path.exists()
    assert train_here(fresh, stop_at=2) == 130
    assert read_split(fresh.split_path)[held][1] != VALIDATION
    assert read_split(tmp_path / "run.old-1" / "split.json") == after


def test_an_evaluation_cut_off_by_a_stop_is_made_up_for(tmp_path, dataset, whole, monkeypatch):
    run = new_run(tmp_path, dataset, **MIXED)
    # The stop arrives at step 8, whose evaluation hears it between two of its batches.
    import core.training.trainer

    monkeypatch.setattr(core.training.trainer.Trainer, "_listen", lambda self: None)
    assert train_here(run, stop_at=8) == 130
    monkeypatch.undo()
    assert evaluations(run) == []
    assert run.checkpoints()[-1].validation_loss is None
    assert train_here(run) == 0
    assert_same(run, whole)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capture", [True, False])
def test_on_cuda_too(tmp_path, dataset, capture):
    settings = MIXED | {"device": "cuda", "deterministic": True, "capture": capture}
    runs = [new_run(tmp_path, dataset, name, **settings) for name in ("whole", "cut")]
    assert train_here(runs[0]) == 0
    assert train_here(runs[1], stop_at=11) == 130
    assert train_here(runs[1]) == 0
    assert_same(runs[1], runs[0])
