"""The edited configuration: every operation on layers, problems, and undo that always restores."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import RunConfig, build, flat
from mamba_tui.document import (
    Document,
    fits,
    fitting_heads,
    nearest_heads,
    other_settings,
    parse_setting,
    type_name,
)


def document(**changes):
    return Document(build({"n_embd": [256, 192, 128], "n_head": 4, **changes}))


def widths(doc):
    return doc.values["n_embd"]


def test_adding_removing_duplicating_and_moving():
    doc = document(attention_type=["mamba", "standard", "mamba"])
    assert doc.add_layer(0) == 1
    assert widths(doc) == (256, 256, 192, 128)
    assert doc.values["attention_type"][1] == "standard"
    assert doc.remove_layer(0) == 0
    assert doc.duplicate_layer(2) == 3
    assert widths(doc) == (256, 192, 128, 128)
    assert doc.move_layer(0, 1) == 1
    assert widths(doc) == (192, 256, 128, 128)
    assert doc.move_layer(0, -1) == 0
    assert doc.values["n_layer"] == 4
    assert doc.config.model.n_layer == 4


def test_the_last_layer_cannot_be_removed():
    doc = Document(build({"n_embd": [64], "n_head": 2}))
    doc.remove_layer(0)
    assert doc.layer_count == 1


def test_mirror_keeps_the_first_half():
    doc = document(n_embd=[256, 192, 128, 64, 32])
    doc.mirror()
    assert widths(doc) == (256, 192, 128, 192, 256)
    even = document(n_embd=[256, 128, 64, 32])
    even.mirror()
    assert widths(even) == (256, 128, 128, 256)


@pytest.mark.parametrize(
    ("geometric", "expected"), [(False, (256, 192, 128, 64)), (True, (256, 160, 104, 64))]
)
def test_ramps_are_rounded_to_what_heads_divide(geometric, expected):
    doc = document(n_embd=[8, 8, 8, 8])
    doc.ramp(256, 64, geometric=geometric)
    assert widths(doc) == expected
    assert not doc.problems


def test_an_hourglass_is_one_step_of_undo():
    doc = document(n_embd=[64] * 6)
    doc.hourglass(256, 128, 256, geometric=False)
    assert widths(doc) == (256, 192, 128, 128, 192, 256)
    doc.undo()
    assert widths(doc) == (64,) * 6


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("256,256,192,128", "n_embd", (256, 256, 192, 128)),
        ("[64, 48]", "n_embd", (64, 48)),
        ("heads 4 4 8", "n_head", (4, 4, 8)),
        ("m a m2 standard", "attention_type", ("mamba", "standard", "mamba2", "standard")),
        ('["mamba", "standard"]', "attention_type", ("mamba", "standard")),
        ("n_embd = [96]", "n_embd", (96,)),
    ],
)
def test_lists_are_understood(text, key, expected):
    doc = document()
    doc.paste(text)
    assert doc.values[key] == expected
    assert doc.layer_count == len(expected)


@pytest.mark.parametrize("text", ["", "[]", "64,oops", "mamba,64", ",".join(["8"] * 600), "types 1 2"])
def test_lists_that_make_no_sense_are_refused_in_words(text):
    doc = document()
    with pytest.raises(ValueError, match=r"accepted|; use "):
        doc.paste(text)
    assert widths(doc) == (256, 192, 128)


def test_pasted_widths_bring_heads_that_divide():
    doc = document(n_head=8, attention_type="standard")
    doc.paste("100, 60, 36")
    assert not doc.problems


def test_wrong_values_are_kept_and_named():
    doc = document()
    doc.set_layer(1, "n_embd", 0)
    assert widths(doc)[1] == 0
    assert "n_embd[1]" in doc.problems
    doc.set("batch_size", "many")
    assert doc.problem("batch_size") is not None
    doc.undo()
    doc.undo()
    assert not doc.problems


def test_typing_is_one_step_of_undo_and_escape_leaves_nothing():
    doc = document()
    for text in ("5", "51", "512"):
        doc.attempt("n_embd", int(text), 0)
        assert widths(doc)[0] == int(text)
    doc.keep()
    assert widths(doc)[0] == 512
    doc.undo()
    assert widths(doc)[0] == 256
    doc.redo()
    assert widths(doc)[0] == 512
    doc.attempt("n_embd", 7, 0)
    doc.drop()
    assert widths(doc)[0] == 512


def test_changed_knows_the_file(tmp_path):
    doc = document()
    assert not doc.changed
    doc.set("seed", 5)
    assert doc.changed
    doc.save(tmp_path / "kept.toml")
    assert not doc.changed
    doc.undo()
    assert doc.changed


OPERATIONS = st.one_of(
    st.tuples(st.just("add_layer"), st.integers(0, 30)),
    st.tuples(st.just("remove_layer"), st.integers(0, 30)),
    st.tuples(st.just("duplicate_layer"), st.integers(0, 30)),
    st.tuples(st.just("move_layer"), st.integers(0, 30), st.sampled_from([-1, 1])),
    st.tuples(st.just("mirror")),
    st.tuples(st.just("set_layer"), st.integers(0, 30), st.just("n_embd"), st.integers(-5, 600)),
    st.tuples(st.just("set_layer"), st.integers(0, 30), st.just("n_head"), st.integers(-1, 20)),
    st.tuples(st.just("set_layer"), st.integers(0, 30), st.just("attention_type"),
              st.sampled_from(["mamba", "standard", "mamba2", "x"])),
    st.tuples(st.just("set"), st.just("dropout"), st.floats(-1, 2)),
    st.tuples(st.just("undo")),
    st.tuples(st.just("redo")),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(OPERATIONS, max_size=25))
def test_any_sequence_stays_consistent_and_undoes_to_the_start(operations):
    doc = Document(RunConfig())
    start = copy.deepcopy(dict(doc.values))
    for name, *arguments in operations:
        if arguments and isinstance(arguments[0], int) and name != "set":
            arguments[0] = min(arguments[0], doc.layer_count - 1)
        getattr(doc, name)(*arguments)
        counts = {len(doc.values[key]) for key in ("n_embd", "n_head", "attention_type")}
        assert counts == {doc.layer_count}
        assert doc.values["n_layer"] == doc.layer_count >= 1
        if not doc.problems:
            assert build(flat(doc.config)) == doc.config
    while doc.undo() is not None:
        pass
    assert dict(doc.values) == start


def test_head_counts_are_those_the_configuration_accepts():
    values = {"position": "rope", "expand": 2}
    for kind in ("standard", "mamba2"):
        for width in (96, 100, 128):
            accepted = []
            for heads in range(1, 1025):
                try:
                    build({"n_embd": [width], "n_head": heads, "attention_type": kind})
                except Exception:
                    continue
                accepted.append(heads)
            assert fitting_heads(values, kind, width) == accepted
    assert fits(values, "mamba", 7, 3)
    assert nearest_heads(values, "standard", 96, 5) in (4, 6)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch_size", "64", 64),
        ("batch_size", "1_000", 1000),
        ("max_iters", "2e3", 2000),
        ("learning_rate", "3e-4", 3e-4),
        ("capture", "yes", True),
        ("dataset_dir", " books ", "books"),
        ("batch_size", "many", "many"),
        ("learning_rate", "", ""),
    ],
)
def test_typed_values_take_the_type_of_their_key(key, text, value):
    assert parse_setting(key, text) == value


def test_types_are_known_by_any_unique_start():
    assert [type_name(word) for word in ("m", "a", "std", "mamba2", "S", "ssd")] == [
        "mamba", "standard", "standard", "mamba2", "standard", "mamba2",
    ]  # fmt: skip
    with pytest.raises(ValueError, match='"conv" is not a layer type; use standard, mamba or mamba2'):
        type_name("conv")


def test_every_setting_is_edited_somewhere():
    assert set(other_settings()) | {"n_layer", "n_embd", "n_head", "attention_type"} == set(flat(RunConfig()))
