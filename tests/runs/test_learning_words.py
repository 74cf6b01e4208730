"""How a run is learning, in words, and what the trainer doubts of it."""

from __future__ import annotations

import math

import pytest

from core.runs import RunHistory
from core.runs.events import EvaluationEvent, RunEvent, ScheduleEvent, StepEvent
from core.runs.learning import ROWS_KEPT, LearningTrace, learning_words
from core.runs.listing.fold import RunFold
from core.training.evaluation import SplitLoss
from core.training.learning_progress import LearningProgress


def evaluation(step, train, validation):
    return EvaluationEvent(
        step=step, train_loss=train, validation_loss=validation, bits_per_byte=validation / 2,
        train_bits_per_byte=train / 2, seconds=1.0,
    )  # fmt: skip


def cool_down(begin, end):
    return ScheduleEvent(step=begin, phase="cool-down", last_step=end)


NAN = math.nan
IMPROVING = [(200, 3.0, 3.2), (400, 2.5, 2.9), (600, 2.0, 2.7)]


@pytest.mark.parametrize(
    ("rows", "schedule", "step", "words"),
    [
        ([], None, 10, ""),
        (IMPROVING[:1], None, 250, ""),
        (IMPROVING, None, 650, "still improving"),
        ([*IMPROVING, (800, 1.9, 2.705)], None, 800, "no better since step 600"),
        ([*IMPROVING, (800, 1.9, 2.6999)], None, 800, "no better since step 600"),  # noise is no gain
        (
            [*IMPROVING, (800, 1.5, 2.8), (1000, 0.6, 2.9)],
            None,
            1000,
            "learning the text by heart: training 0.60, validation 2.90, rising",
        ),
        ([*IMPROVING, (800, 2.3, 3.1)], None, 800, "getting worse: validation 3.10, best 2.70 at step 600"),
        ([*IMPROVING, (800, NAN, NAN)], None, 800, "diverging: the validation loss is not a number"),
        (IMPROVING, cool_down(600, 900), 720, "cooling down: 120 of 300 steps"),
        (IMPROVING, cool_down(600, 900), 2000, "cooling down: 300 of 300 steps"),
        (IMPROVING, ScheduleEvent(step=0, phase="constant", last_step=900), 700, "still improving"),
    ],
)  # fmt: skip
def test_a_run_says_how_it_is_learning(rows, schedule, step, words):
    trace = LearningTrace()
    for row in rows:
        trace.take(evaluation(*row))
    assert learning_words(trace, schedule, step) == words


def started(step=None, max_iters=900):
    return RunEvent(
        time=1.0, run="a", pid=1, boot_id="b", started=float(step or 0), device="cpu", parameters=9,
        vocab_size=9, tokens_per_step=4, max_iters=max_iters, resumed_from=step,
    )  # fmt: skip


def stepped(step):
    return StepEvent(
        step=step, steps=1, loss=2.0, loss_min=2.0, loss_max=2.0, learning_rate=1e-3, gradient_norm=1.0,
        tokens_per_second=9.0, tokens=4, data_wait=0.0, epoch=0.0,
    )  # fmt: skip


def test_a_trainer_that_goes_back_takes_back_the_words():
    events = [started(), *(evaluation(*row) for row in IMPROVING), evaluation(800, 0.6, 2.9), stepped(820)]
    for fold in (RunHistory(), RunFold()):
        fold.feed(events)
        assert fold.learning_words.startswith("learning the text by heart")
        fold.feed([started(700)])
        assert fold.learning_words == "still improving"
        fold.feed([evaluation(800, 1.9, 2.705)])
        assert fold.learning_words == "no better since step 600"


def test_a_run_that_goes_on_after_its_cool_down_forgets_it():
    history = RunHistory()
    history.feed([started(), *(evaluation(*row) for row in IMPROVING), cool_down(600, 900), stepped(900)])
    assert history.learning_words == "cooling down: 300 of 300 steps"
    assert history.cooling_down
    history.feed([started(900, 2000)])
    assert (history.learning_words, history.max_iters) == ("still improving", 2000)


def test_the_words_survive_the_cache_and_thousands_of_evaluations():
    fold = RunFold()
    fold.feed(
        [started(), evaluation(1, 2.0, 2.0), *(evaluation(step, 1.9, 2.001) for step in range(2, 3000))]
    )
    assert fold.learning_words == "no better since step 1"
    assert len(fold.learning.values()) == ROWS_KEPT
    assert RunFold.from_values(fold.values()).learning_words == fold.learning_words


def loss(mean, error):
    return SplitLoss(mean, error, 4096, 9000)


def test_an_evaluation_too_small_to_judge_by_is_doubted_once_a_run():
    progress = LearningProgress()
    assert progress.doubt(loss(3.0, 0.1)) == ""  # the first has nothing to be better than
    progress.take(10, 3.0)
    assert progress.doubt(loss(2.5, 0.1)) == ""
    assert progress.doubt(loss(3.05, 0.1)) == ""  # not better: nobody takes it for the best
    assert progress.doubt(loss(2.95, math.nan)) == ""
    words = progress.doubt(loss(2.95, 0.1))
    assert words == (
        "validation improved by 0.0500, less than the evaluation's standard error of 0.1000, "
        "from 4,096 tokens"
    )
    resumed = LearningProgress()
    resumed.load_state_dict(progress.state_dict())
    assert resumed.doubt(loss(2.95, 0.1)) == ""
