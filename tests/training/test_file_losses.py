"""The loss of each file in a run: told at the best evaluation and at the end, and the best one kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from core.runs import RunHistory
from core.runs.events import EvaluationEvent, FilesEvent, decode, encode
from core.training.file_losses import MOST_FILES, FileLoss, FileLosses, files_event
from core.training.ranks import ALONE
from tests.run_tools import history, new_run, train_here, write_text


def test_a_run_tells_the_loss_of_each_validation_file(tmp_path):
    text = write_text(tmp_path / "text", files=4, words=300)
    run = new_run(tmp_path, text, validation_fraction=0.5, eval_iters=100, max_iters=16, sample_tokens=0)
    assert train_here(run) == 0
    fold = history(run).history
    best = min(fold.evaluations.column("validation_loss"))
    assert fold.files is not None
    names = [name for name, *_ in fold.files.files]
    assert len(names) >= 2
    assert names == sorted(names)
    assert all(name.startswith("book") for name in names)
    tokens = np.array([count for _, count, _, _ in fold.files.files])
    losses = np.array([loss for _, _, loss, _ in fold.files.files])
    assert (tokens * losses).sum() / tokens.sum() == pytest.approx(best, abs=1e-3)
    assert all(0 < bits < 9 for *_, bits in fold.files.files)


def test_losses_of_rows_that_cross_files_are_parted_and_added_up_over_batches():
    sums = FileLosses([("a", 0), ("b", 5), ("never read", 100)], np.array([1, 2, 0]))
    targets = np.array([[0, 1, 1], [1, -100, -100]])
    sums.add(np.array([3, 6]), targets, torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]]))
    sums.add(np.array([1, 9]), np.array([[2, -100, -100], [0, -100, -100]]), torch.full((2, 3), 0.5))
    a, b = sums.figures(ALONE)
    assert (a.name, a.tokens, a.loss) == ("a", 3, pytest.approx(3.5 / 3))
    assert a.bits_per_byte == pytest.approx(3.5 / math.log(2) / 3)
    assert (b.name, b.tokens, b.loss) == ("b", 3, pytest.approx(12.5 / 3))


def test_of_many_files_those_of_which_most_was_read_are_told():
    many = [FileLoss(f"{number:04}", number, 1.0, math.nan) for number in range(2000)]
    event = files_event(7, many)
    assert len(event.files) == MOST_FILES
    assert event.files[0][0] == "1800"
    again = decode(json.loads(encode(event, 1.0)))
    assert isinstance(again, FilesEvent)
    assert again.files[-1][:3] == ("1999", 1999, 1.0)
    assert math.isnan(again.files[-1][3])


@pytest.mark.parametrize(
    "files", [3, [["a", 1, 2.0]], [["a", -1, 2.0, 3.0]], [[1, 1, 2.0, 3.0]], [["a"]] * 2000]
)
def test_what_is_no_list_of_files_is_no_event(files):
    assert decode({"kind": "files", "time": 1.0, "step": 3, "files": files}) is None


def test_a_history_keeps_the_files_of_the_best_evaluation():
    def evaluated(step, loss):
        return EvaluationEvent(
            step=step, train_loss=loss, validation_loss=loss, bits_per_byte=loss, train_bits_per_byte=loss,
            seconds=1.0,
        )  # fmt: skip

    def told(step):
        return FilesEvent(step=step, files=(("a", 9, float(step), 1.0),))

    fold = RunHistory()
    fold.feed([evaluated(10, 3.0), told(10), evaluated(20, 2.0), told(20), evaluated(30, 2.5), told(30)])
    assert fold.files == told(20)
    fold.take_back(15)
    assert fold.files is None
