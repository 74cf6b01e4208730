"""Values: what is accepted, and that all problems are reported at once."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config.changes import replace
from core.config.schema import (
    ATTENTION_TYPES,
    GROUPS,
    SETTINGS,
    RunConfig,
    build,
    check,
    differences,
    flat,
)
from core.config.setting import ConfigError


def test_the_defaults_are_valid_and_complete():
    config = build({})
    assert config == RunConfig()
    assert set(flat(config)) == set(SETTINGS)


def test_keys_are_unique_across_groups():
    names = [item.name for cls in GROUPS.values() for item in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


def test_every_setting_says_what_it_is_and_accepts_its_default():
    for item in SETTINGS.values():
        assert item.help, item.key
        assert item.accepted, item.key
        build({item.key: item.default})


def test_single_values_spread_and_lists_tell_the_depth():
    model = build({"n_embd": [64, 48, 64], "n_head": 2, "attention_type": "standard"}).model
    assert (model.n_layer, model.n_head, model.attention_type) == (3, (2, 2, 2), ("standard",) * 3)
    assert model.widths == (64, 48, 64, 64)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        build({"n_emb": 3, "n_embd": [0, "a", 8], "dropout": 2, "device": 3, "batch_size": True}, "x.json")
    message = str(caught.value)
    for words in ('"n_embd"', "n_embd[0] is 0", 'n_embd[1] is "a"', "dropout is 2", "device", "batch_size"):
        assert words in message
    assert len(caught.value.problems) == 6
    assert all(line.startswith("x.json: ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"n_embd": [64, 48], "n_layer": 3}, "n_embd"),
        ({"n_embd": [], "n_head": 1}, "n_embd"),
        ({"n_embd": 30, "n_head": 4, "attention_type": "standard", "n_layer": 1}, "n_head[0]"),
        ({"n_embd": 12, "n_head": 4, "attention_type": "standard", "n_layer": 1}, "n_head[0]"),
        ({"n_embd": 30, "n_head": 7, "attention_type": "mamba2", "n_layer": 1}, "n_head[0]"),
        ({"attention_type": ["mamba", "lstm"]}, "attention_type[1]"),
        ({"learning_rate": 1e-4, "min_learning_rate": 1e-3}, "min_learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"position": "sinus"}, "position"),
        ({"compile": 1}, "compile"),
        ({"n_layer": 10**400}, "n_layer"),
    ],
)
def test_bad_values_name_their_key(values, key):
    _, problems = check(values)
    assert key in [problem.key for problem in problems]


def test_heads_of_a_mamba_layer_do_not_matter():
    assert build({"n_embd": 30, "n_head": 4, "attention_type": "mamba", "n_layer": 2}).model.n_head == (4, 4)


def test_another_depth_takes_the_other_lists_along():
    config = build({"n_embd": [128, 96, 96, 128], "n_head": 4, "attention_type": "standard"})
    shorter = replace(config, n_embd=[64, 44, 64])
    assert shorter.model.n_layer == 3
    assert shorter.model.n_head == (4, 2, 4)
    deeper = replace(config, n_layer=6).model
    assert deeper.n_embd == (128, 96, 96, 96, 96, 128)
    with pytest.raises(ConfigError):
        replace(config, n_embd=[64, 64], attention_type=["mamba"] * 3)


def test_differences_name_both_values():
    old = build({})
    assert differences(old, replace(old, dropout=0.25)) == {"dropout": (old.model.dropout, 0.25)}


layers = st.integers(1, 6)
kinds = st.sampled_from(ATTENTION_TYPES)


@given(data=st.data(), count=layers)
def test_what_is_built_builds_again(data, count):
    values = {
        "n_embd": data.draw(
            st.lists(st.integers(1, 32).map(lambda n: n * 8), min_size=count, max_size=count)
        ),
        "attention_type": data.draw(st.one_of(kinds, st.lists(kinds, min_size=count, max_size=count))),
        "n_head": data.draw(st.sampled_from([1, 2, 4])),
        "dropout": data.draw(st.just(0.0) | st.floats(1e-9, 0.9)),
        "seed": data.draw(st.integers(0, 2**63 - 1)),
    }
    config = build(values)
    assert build(flat(config)) == config
    assert replace(config) == config


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)) | st.text(max_size=10), anything, max_size=8))
def test_no_value_is_a_surprise(values):
    config, problems = check(values)
    assert isinstance(config, RunConfig)
    assert all(problem.accepted in str(problem) for problem in problems)
    if not problems:
        assert build(flat(config)) == config
