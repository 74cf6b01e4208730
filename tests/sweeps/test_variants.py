"""Sweeps without processes: which variants there are, the plan on disk, early ending, effects."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from core.config.changes import replace
from core.errors import UserError
from core.runs import Run, list_runs
from core.runs.listing.notes import read_notes
from core.sweeps import capacity
from core.sweeps.axes import parse_axes, parse_axis, variants
from core.sweeps.effects import Rated, effects
from core.sweeps.plan import Variant, load_plan, make_plan, next_tag, plan_names
from core.sweeps.preparing import SweepOptions, expand, prepare
from core.sweeps.progress import Progress
from core.sweeps.pruning import poor
from tests.run_tools import tiny

PLAN = b"""{"format": 1, "prune": true, "at_once": 1, "after": "",
"variants": [], "pruned": {}, "restarts": {}}"""


@pytest.fixture
def base(tmp_path):
    return tiny(tmp_path)


def test_every_combination_is_a_variant(base):
    axes = [parse_axis("learning_rate=1e-3,2e-3"), parse_axis("dropout=0,0.2")]
    assert variants(base, axes) == [
        {"learning_rate": 0.001, "dropout": 0.0},
        {"learning_rate": 0.001, "dropout": 0.2},
        {"learning_rate": 0.002, "dropout": 0.0},
        {"learning_rate": 0.002, "dropout": 0.2},
    ]


def test_lists_and_words_are_values(base):
    assert [one["n_embd"] for one in variants(base, [parse_axis("n_embd=[16,12],[32,16]")])] == [
        (16, 12),
        (32, 16),
    ]
    kinds = variants(base, [parse_axis("attention_type=mamba,mamba2")])
    assert [one["attention_type"] for one in kinds] == [("mamba", "mamba"), ("mamba2", "mamba2")]


def test_random_variants_are_different_repeatable_and_inside_their_ranges(base):
    axes = [
        parse_axis("learning_rate=1e-4..1e-2"),
        parse_axis("batch_size=2..9"),
        parse_axis("dropout=0,0.1"),
    ]
    drawn = variants(base, axes, 20)
    assert drawn == variants(base, axes, 20)
    assert drawn != variants(replace(base, seed=7), axes, 20)
    assert len({json.dumps(one) for one in drawn}) == 20
    assert all(1e-4 <= one["learning_rate"] <= 1e-2 and 2 <= one["batch_size"] <= 9 for one in drawn)
    assert sum(one["learning_rate"] < 1e-3 for one in drawn) > 4  # evenly over the logarithm
    assert len(variants(base, [parse_axis("dropout=0,0.1")], 20)) == 2  # there are no more


@pytest.mark.parametrize(
    ("axes", "drawn", "words"),
    [
        (["dropout"], None, ["--sweep", "key=value"]),
        (["dropout="], None, ["--sweep", "key=value"]),
        (["dropot=1"], None, ['the key "dropout"']),
        (["dropout=0,0"], None, ["repeated"]),
        (["dropout=0..0.2"], None, ["--random"]),
        (["dropout=0.2..0"], 3, ["larger"]),
        (["position=rope..none"], 3, ["two numbers"]),
        (["n_embd=16..32"], 3, ["two numbers"]),
        (["dropout=0,0.1", "dropout=0.2"], None, ["dropout twice"]),
        (["dropout=0,2"], None, ["dropout=2", "from 0 to 0.9"]),
        (["n_head=2,5"], None, ["n_head=5"]),
        (["seed=" + ",".join(map(str, range(501)))], None, ["501 variants", "from 1 to 500"]),
        (["dropout=0,0.1"], 0, ["0 variants"]),
    ],
)
def test_bad_axes_are_one_sentence(base, axes, drawn, words):
    with pytest.raises(UserError) as refused:
        variants(base, [parse_axis(text) for text in axes], drawn)
    for word in words:
        assert word in str(refused.value)


def test_axes_in_one_line_are_those_of_several_options():
    line = "learning_rate=1e-3, 2e-3 n_embd=[16, 12],[32,16]  dropout=0..0.2"
    assert parse_axes(line) == [
        parse_axis("learning_rate=1e-3,2e-3"),
        parse_axis("n_embd=[16,12],[32,16]"),
        parse_axis("dropout=0..0.2"),
    ]
    assert parse_axes(" ") == []
    with pytest.raises(UserError, match="this key is unknown"):
        parse_axes("dropot=1")


def test_what_is_asked_for_becomes_a_plan_of_tagged_runs(tmp_path, base):
    options = SweepOptions([parse_axis("dropout=0,0.1,0.2")], tag="my sweep", at_once=2)
    changes, at_once = expand(base, options)
    assert [one["dropout"] for one in changes] == [0.0, 0.1, 0.2]
    assert at_once == 2
    plan = prepare(tmp_path, base, options)
    assert [read_notes(plan.run(one)).tags for one in plan.variants] == [("my-sweep",)] * 3
    with pytest.raises(UserError, match='no run "nobody"'):
        prepare(tmp_path, base, dataclasses.replace(options, tag="other", after="nobody"))
    with pytest.raises(UserError, match="nothing is varied"):
        expand(base, SweepOptions([]))
    with pytest.raises(UserError, match="at-once"):
        expand(base, dataclasses.replace(options, at_once=-1))
    assert [run.name for run in list_runs(tmp_path)] == ["my sweep-1", "my sweep-2", "my sweep-3"]


def test_a_plan_survives_and_its_runs_are_ordinary(tmp_path, base):
    root = tmp_path / "ck"
    changes = variants(base, [parse_axis("n_embd=[16,12],[32,16]"), parse_axis("dropout=0,0.1")])
    plan = make_plan(root, "wide", base, changes, prune=True, at_once=3)
    assert [run.name for run in list_runs(root)] == ["wide-1", "wide-2", "wide-3", "wide-4"]
    assert Run(root / "wide-4").config().model.n_embd == (32, 16)
    assert Run(root / "wide-4").config().model.dropout == 0.1
    plan.pruned["wide-1"] = 7
    plan.restarts["wide-2"] = (1, 5)
    plan.save()
    assert load_plan(root, "wide") == plan
    assert make_plan(root, "wide", base, changes) == plan, "the same sweep again goes on"
    with pytest.raises(UserError, match="other variants"):
        make_plan(root, "wide", base, changes[:2])
    assert plan_names(root) == ["wide"]
    assert next_tag(root) == "sweep-001"
    with pytest.raises(UserError, match="no sweep"):
        load_plan(root, "narrow")


def test_a_plan_takes_no_run_that_is_there(tmp_path, base):
    root = tmp_path / "ck"
    make_plan(root, "a", base, variants(base, [parse_axis("dropout=0,0.1")]))
    (root / ".sweeps" / "a.json").unlink()
    with pytest.raises(UserError, match='run "a-1"'):
        make_plan(root, "a", base, variants(base, [parse_axis("dropout=0.3,0.4")]))
    assert Run(root / "a-1").config().model.dropout == 0.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        PLAN.replace(b"[]", b"5"),
        PLAN.replace(b"[]", b'[{"run": "../x", "changes": {}}]'),
        b"[" * 100_000,
    ],
)
def test_a_damaged_plan_is_one_sentence(tmp_path, content):
    (tmp_path / ".sweeps").mkdir()
    (tmp_path / ".sweeps" / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="not a sweep's plan"):
        load_plan(tmp_path, "x")


def progress(curve, *, max_iters=100, **changes):
    return Progress(
        Variant("r", changes), Run(None), "training", max(curve, default=0), max_iters, curve=curve
    )


def test_the_median_rule_compares_at_the_same_step():
    good = [progress({20: 3.0, 40: 2.0, 60: 1.0}) for _ in range(3)]
    assert poor(progress({20: 3.1}), good)
    assert not poor(progress({20: 2.9}), good)
    assert not poor(progress({20: 2.9, 40: 2.5, 60: 0.9}), good)
    assert poor(progress({20: 2.9, 40: 2.5}), good), "its best until then is what counts"
    assert not poor(progress({20: 3.0}), good), "equal is not worse"


def test_nothing_is_ended_early_on_little_evidence():
    good = [progress({20: 3.0}) for _ in range(3)]
    assert not poor(progress({20: 9.0}), good[:2]), "two are too few to compare with"
    assert not poor(progress({10: 9.0}), [progress({10: 3.0}) for _ in range(3)]), "a tenth of the steps"
    assert not poor(progress({40: 9.0}), good), "none has got that far"
    assert not poor(progress({}), good)


def test_effects_rank_the_settings_that_mattered():
    rated = [
        Rated({"learning_rate": rate, "dropout": drop}, 2.0 + (rate == 1e-4) * 1.0 + (drop == 0.2) * 0.1)
        for rate in (1e-4, 1e-3)
        for drop in (0.0, 0.2)
    ]
    first, second = effects([*rated, Rated({"learning_rate": 1e-3, "dropout": 0.2}, math.inf)])
    assert (first.key, second.key) == ("learning_rate", "dropout")
    assert first.spread == pytest.approx(1.0)
    assert first.share == pytest.approx(1.0 / 1.01)
    assert [name for name, _, _ in first.means] == ["0.001", "0.0001"]
    assert first.share + second.share == pytest.approx(1.0)


def test_effects_of_a_range_compare_thirds():
    rated = [Rated({"dropout": number / 10}, float(number)) for number in range(1, 10)]
    (effect,) = effects(rated)
    assert [name for name, _, _ in effect.means] == ["0.1 to 0.3", "0.4 to 0.6", "0.7 to 0.9"]
    assert effects(rated[:1]) == []


def test_progress_without_an_evaluation_is_last():
    assert progress({}).best == math.inf


def test_what_fits_follows_cores_and_memory(base, monkeypatch):
    monkeypatch.setattr(capacity, "available_cores", lambda: 8)
    one_thread = replace(base, threads=1)
    assert 1 <= capacity.fitting(one_thread) <= 8
    assert capacity.fitting(replace(base, threads=8)) == 1
    assert capacity.sharing_cores(replace(base, threads=0), 4).hardware.threads == 2
    assert capacity.sharing_cores(one_thread, 4) == one_thread
