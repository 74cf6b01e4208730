"""The plan of a run: bounded, growing with the text, within a time budget, never changing what is set."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import run_time, speed
from core.config.changes import keep_planned, replace
from core.config.files import load_file, preset, save_file
from core.config.plan import (
    BUDGET_MARGIN,
    LEAST_EVALUATIONS,
    SHAPES,
    TextSize,
    expected_loss,
    plan,
    suited_parameters,
    tokens_per_step,
    without_budget,
)
from core.config.run_time import Costs
from core.config.schema import build
from core.config.setting import ConfigError
from core.config.speed import Speeds, remember
from core.system.hardware import available_cores
from mamba_tui.backend import shelf_table

SIZES = st.integers(1, 10**10)
CPU = Speeds("", "cpu", 2)


def planned(config, size, *, cuda=False):
    text = TextSize(size, max(1, size // 4))
    sides = (text.tokens, max(1, text.tokens // 9))
    return plan(
        config,
        text,
        cuda=cuda,
        vocab_size=4096,
        seconds=lambda one: CPU.duration(without_budget(one), 4096, sides).seconds,
    )


@given(SIZES, SIZES, st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_larger_text_never_gives_a_smaller_model_or_less_reading(one, other, cuda):
    small, large = (planned(preset("book", cuda=cuda), size, cuda=cuda) for size in sorted((one, other)))
    assert small.parameters <= large.parameters
    assert small.steps >= LEAST_EVALUATIONS
    assert large.steps >= LEAST_EVALUATIONS
    assert (large.passes > 0 and large.passes <= 60) or large.steps == LEAST_EVALUATIONS
    assert suited_parameters(min(one, other)) <= suited_parameters(max(one, other))
    assert small.config.training.auto == ""
    assert small.config.training.max_iters == small.steps


@given(SIZES, st.floats(0.05, 500))
@settings(deadline=None, max_examples=40)
def test_a_time_budget_is_respected_as_far_as_a_run_can_be_that_short(size, minutes):
    found = planned(replace(preset("book"), time_budget=minutes), size)
    sides = (max(1, size // 4), max(1, max(1, size // 4) // 9))
    seconds = CPU.duration(without_budget(found.config), 4096, sides).seconds
    assert found.steps >= LEAST_EVALUATIONS
    assert seconds <= minutes * 60 * BUDGET_MARGIN * 1.01 or found.steps == LEAST_EVALUATIONS
    longer = planned(replace(preset("book"), time_budget=minutes * 2), size)
    assert longer.parameters >= found.parameters


def test_what_a_person_sets_is_not_planned():
    config = replace(preset("book"), n_embd=[64, 48], dropout=0.5, max_iters=77)
    assert config.training.auto == "mixer_dropout batch_size"
    found = planned(config, 1_000_000).config
    assert (found.model.n_embd, found.model.dropout, found.training.max_iters) == ((64, 48), 0.5, 77)
    again = replace(config, dropout="auto")
    assert again.training.auto.split() == ["dropout", "mixer_dropout", "batch_size"]
    assert again.model.dropout == 0.5
    with pytest.raises(ConfigError, match='auto is "speed"; accepted: any of n_embd'):
        build({"auto": "speed"})


def test_auto_as_a_value_is_the_same_as_naming_the_key_and_survives_a_file(tmp_path):
    config = build({"dropout": "auto", "n_embd": "auto"})
    assert config.training.auto == "n_embd dropout"
    save_file(config, tmp_path / "c.toml")
    assert load_file(tmp_path / "c.toml") == config


def test_a_run_that_exists_keeps_what_was_planned_for_it():
    run = planned(preset("book", cuda=True), 500_000, cuda=True).config
    wanted = keep_planned(replace(preset("book", cuda=True), seed=3), run)
    assert wanted.model.n_embd == run.model.n_embd
    assert wanted.training.auto == ""
    assert wanted.training.batch_size == run.training.batch_size
    assert wanted.training.seed == 3


def test_shapes_are_valid_and_rise():
    for kind, table in SHAPES.items():
        assert table[-1][0] == math.inf
        assert [most for most, _ in table] == sorted(most for most, _ in table)
        sizes = [planned(preset("book", cuda=kind == "cuda"), 1, cuda=kind == "cuda").parameters]
        for _, shape in table:
            replace(preset("book"), **shape.changes(("n_embd", "dropout", "mixer_dropout", "batch_size")))
        assert sizes[0] > 0


def test_expected_losses_lie_between_the_figures_and_only_where_there_are_some():
    assert expected_loss(10**12, "cuda") is None
    assert expected_loss(1, "cpu") is None
    low, high = expected_loss(1_000_000, "cuda")
    assert low < 1.421 < high
    below, above = expected_loss(2_000_000, "cuda")
    assert below < low < high < above, "farther from a figure, less is known"
    assert expected_loss(5_000_000, "cuda") is None


def test_a_hint_says_when_a_model_is_far_from_what_suits_the_text():
    config = build({"n_embd": [512] * 8, "n_head": 8, "max_iters": 20000, "batch_size": 64})
    assert "it will learn it by heart" in planned(config, 1_000_000).hint
    fits = planned(preset("book", cuda=True), 1_000_000, cuda=True)
    assert fits.hint == ""


# ---- the speed of this machine


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mamba-tui" / speed.FILE


def test_a_measured_shape_is_estimated_as_it_was_measured_and_similar_ones_follow(own_cache):
    config = build({"device": "cpu", "max_iters": 100, "n_embd": [64] * 4, "n_layer": 4})
    formula = Speeds.here(config).formula(config, 300)
    assert Speeds.here(config).duration(config, 300, (9999, 999)).measured is False
    remember(config, 300, Costs(step=formula.step * 5, evaluation_token=1e-3))
    speeds = Speeds.here(config)
    costs, nearest = speeds.costs(config, 300)
    assert costs.step == pytest.approx(formula.step * 5, rel=0.1)
    assert nearest < 0.01
    assert costs.evaluation_token == pytest.approx(1e-3, rel=0.1)
    wider = replace(config, n_embd=[96] * 4)
    said = speeds.formula(wider, 300).step
    assert 2 * said < speeds.costs(wider, 300)[0].step < 6 * said


def test_a_newer_measurement_takes_an_older_ones_place_and_keeps_what_it_did_not_see(own_cache):
    config = build({"device": "cpu"})
    remember(config, 300, Costs(step=1.0, save=0.5))
    remember(config, 300, Costs(step=2.0))
    [only] = speed.load()
    assert (only.costs.step, only.costs.save) == (2.0, 0.5)


@pytest.mark.parametrize(
    "text", ["", "{", "[1, null, {}]", '[{"costs": {"step": -1}}]', '{"a": 1}', '[{"costs": {"step": "x"}}]']
)
def test_a_damaged_file_of_measurements_is_as_none(text, own_cache):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(text)
    assert speed.load() == []
    remember(build({"device": "cpu"}), 300, Costs(step=1.0))
    assert len(json.loads(own_cache.read_text())) == 1


def test_evaluations_samples_and_saves_are_part_of_the_time():
    config = build(
        {"max_iters": 100, "eval_interval": 10, "sample_tokens": 10, "eval_iters": 1, "device": "cpu"}
    )
    costs = Costs(
        step=1.0, evaluation_token=1e-4, sample_token=0.1, save=0.5, start=7.0, first_step=4.0,
        prepare_byte=1e-3, end=2.0,
    )  # fmt: skip
    read = 2 * tokens_per_step(config)
    found = run_time.duration(config, costs, (10**9, 10**9), 0.0)
    inside = 4 + 99 + 10 * (read * 1e-4 + 1.0 + 0.5)
    assert found.seconds == pytest.approx(7 + inside + 2)
    assert found.budgeted == pytest.approx(inside)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.low < found.seconds < found.high
    new = run_time.duration(config, costs, (10**9, 10**9), 0.0, new_bytes=3000)
    assert new.seconds == pytest.approx(found.seconds + 3)
    known = run_time.duration(config, costs, (10**9, 10**9), 0.0, new_bytes=3000, before=11.0)
    assert known.seconds == pytest.approx(11 + inside + 2), "what was measured takes the place of the guess"
    assert known.high - known.seconds < found.high - found.seconds


def test_a_time_budget_ends_all_but_the_start_and_the_end():
    config = build({"max_iters": 1000, "eval_interval": 100, "time_budget": 1.0, "device": "cpu"})
    costs = Costs(step=1.0, start=7.0, end=2.0)
    found = run_time.duration(config, costs, (999, 999), 0.0)
    assert found.seconds == pytest.approx(69)
    assert found.budgeted == pytest.approx(60)
    assert 60 < found.high < 60 + (7 + 2) * 1.3
    short = run_time.duration(replace(config, max_iters=10), costs, (999, 999), 0.0)
    assert short.seconds == pytest.approx(19)


def test_a_vocabulary_that_has_to_be_learned_takes_its_time():
    auto, byte = (build({"device": "cpu", "tokenizer": kind}) for kind in ("auto", "byte"))
    assert CPU.formula(auto, 300).prepare_byte > 2 * CPU.formula(byte, 300).prepare_byte > 0


def test_an_estimate_is_for_as_many_threads_as_torch_will_use(monkeypatch):
    config = build({"device": "cpu"})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Speeds.here(config).threads == 3
    assert "3 threads" in speed.device_key(config)
    assert Speeds.here(replace(config, threads=5)).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert Speeds.here(config).threads == available_cores()


def test_the_page_of_shelf_sizes_shows_what_is_planned():
    page = shelf_table.PAGE.read_text()
    assert shelf_table.with_table(page) == page, "python -m mamba_tui.backend.shelf_table"
    assert page.count("| measured |") >= 3
    assert shelf_table.planned(0.1, "2 CPU cores", 10).parameters < 1_000_000
