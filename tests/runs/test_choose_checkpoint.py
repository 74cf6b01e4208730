"""Which checkpoint of a run is used."""

from __future__ import annotations

import math

import pytest

from core.runs.checkpoints import CheckpointInfo, checkpoint_path, choose_checkpoint, write_manifest


def declare(folder, step, loss, content=b"weights"):
    path = checkpoint_path(folder, step)
    path.write_bytes(b"weights")
    write_manifest(CheckpointInfo(step, path, len(content), "", None, loss, None, 0.0, best=False))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({10: 2.0, 20: 1.5, 30: 1.9}, 20),
        ({10: 1.5, 20: 1.5, 30: 1.9}, 10),
        ({10: 2.0, 20: math.nan, 30: None}, 10),
        ({10: None, 20: None}, 20),
        ({}, None),
    ],
)
def test_the_best_is_that_of_the_lowest_validation_loss(tmp_path, losses, best):
    for step, loss in losses.items():
        declare(tmp_path, step, loss)
    chosen = choose_checkpoint(tmp_path, "best")
    assert (chosen and chosen.step) == best
    newest = choose_checkpoint(tmp_path, "newest")
    assert (newest and newest.step) == max(losses, default=None)


def test_a_damaged_one_is_never_chosen(tmp_path):
    declare(tmp_path, 10, 2.0)
    declare(tmp_path, 20, 1.0, content=b"longer than the file")
    for which in ("best", "newest"):
        assert choose_checkpoint(tmp_path, which).step == 10


def test_a_folder_that_is_not_there_has_none(tmp_path):
    assert choose_checkpoint(tmp_path / "nowhere") is None
