"""The list of runs: what is kept of a history equals all of it; filters, sorting, notes, renaming."""

import json
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.runs import Run, list_runs
from core.runs.event_file import parse
from core.runs.events import encode
from core.runs.listing import cache
from core.runs.listing.columns import chosen, differing, sorted_by
from core.runs.listing.filters import compiled
from core.runs.listing.fold import RunFold
from core.runs.listing.notes import Notes, change_tags, notes_path, read_notes, write_notes
from core.runs.listing.run_list import RunList
from core.runs.listing.trash import (
    delete_for_good,
    delete_run,
    deleted_runs,
    newest_deleted,
    rename_run,
    undelete_run,
)
from tests.console.console_support import (
    FakeTrainer,
    end_run,
    eval_event,
    make_run,
    run_event,
    step_event,
    typed,
    write_events,
)


def history(choices: list[int]) -> list[bytes]:
    """Lines as a trainer writes them: steps, evaluations, new starts that go back, ends, and damage."""
    lines, step, now, started = [], 0, 1000.0, 0

    def add(event):
        lines.append(encode(typed([{"time": now, **event}])[0], now)[:-1])

    for choice in choices:
        now += 1 + choice % 7
        kind = choice % 10
        if kind < 5 or not started:
            if not started:
                started = 1
                add(run_event(pid=started))
            step += 1
            add(step_event(step, loss=5 + choice / 100))
        elif kind == 5:
            add(eval_event(step or 1) | {"bits_per_byte": choice % 13 / 3})
        elif kind == 6:
            started += 1
            step = max(0, step - choice % 4)
            add(run_event(step, pid=started))
        elif kind == 7:
            add({"kind": "end", "reason": "stopped", "step": step, "message": "", "checkpoint": None})
        elif kind == 8:
            lines.append(b'{"kind":"step","step":' + b"x" * (choice % 9) + b"}")
        else:
            add({"kind": "warning", "message": "w"})
    return lines


def facts(fold: RunFold):
    newest = fold.newest.time if fold.newest else None
    kept = {name: getattr(fold, name) for name in ("state", "last_step", "last_evaluation", "error", "end")}
    return {**kept, "records": fold.records, "seconds": fold.seconds, "step": fold.step, "newest": newest}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 999), max_size=80), st.integers(0, 80), st.booleans())
def test_a_fold_that_passes_over_steps_and_lies_on_disk_equals_one_of_all_events(choices, cut, stored):
    lines = history(choices)
    every = RunFold()
    every.feed(parse(lines)[0])
    quick = RunFold()
    quick.feed_lines(lines[:cut])
    if stored:
        quick = RunFold.from_values(json.loads(json.dumps(quick.values())))
    quick.feed_lines(lines[cut:])
    assert facts(quick) == facts(every)
    assert (quick.newest is quick.run) == (every.newest is every.run)


def test_the_list_after_growth_and_from_the_cache_equals_a_list_that_read_everything(tmp_path):
    chance = random.Random(3)
    root, kept = tmp_path / "runs", tmp_path / "cache" / "list.json"
    for name in ("a", "b", "c"):
        make_run(root, name, steps=40)
    for turn in range(6):
        for name in ("a", "b", "c"):
            lines = history([chance.randrange(1000) for _ in range(chance.randrange(30))])
            with open(root / name / "events.jsonl", "ab") as file:
                file.writelines(line + b"\n" for line in lines)
        if turn == 3:  # another file in its place
            (root / "b" / "events.jsonl").unlink()
            write_events(Run(root / "b"), [run_event(run="b"), step_event(5), eval_event(5)])
        grown = RunList(root, kept).read_all()
        fresh = RunList(root, tmp_path / f"none-{turn}").read_all()
        assert grown == fresh
    assert len(cache.load(kept)) == 3


def test_a_grown_history_is_read_from_where_reading_had_come_to(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs", "a")
    runs = RunList(tmp_path / "runs", tmp_path / "list.json")
    runs.read_all()
    reads, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: reads.append(at) or pread(fd, size, at))
    before = run.events_path.stat().st_size
    write_events(run, [step_event(405), eval_event(405) | {"bits_per_byte": 0.25}])
    assert RunList(tmp_path / "runs", tmp_path / "list.json").look()[0].best == 0.25
    assert reads
    assert min(reads) >= before - 512


def test_a_long_history_shows_its_end_before_all_of_it_is_read(tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=5)
    write_events(run, [eval_event(6) | {"bits_per_byte": 0.5}])
    write_events(run, [step_event(step) for step in range(10, 6000, 5)])
    runs = RunList(tmp_path / "runs", tmp_path / "list.json")
    first = runs.look()[0]
    assert (first.complete, first.step, first.parameters) == (False, 5995, 1_300_000)
    while runs.read_on(0.001) is not None:
        pass
    assert (runs.look()[0].complete, runs.look()[0].best) == (True, 0.5)


@pytest.mark.parametrize(
    "damage", ["nothing", "[]", '{"format": 1, "runs": {"a": 3}}', "huge", "negative", "event"]
)
def test_a_damaged_cache_is_as_good_as_none(tmp_path, damage):
    make_run(tmp_path / "runs", "a")
    path = tmp_path / "list.json"
    expected = RunList(tmp_path / "runs", path).read_all()
    values = json.loads(path.read_text())
    one = values["runs"]["a"]
    if damage == "huge":
        one["position"][0] = 1 << 200
    elif damage == "negative":
        one["fold"]["earlier_seconds"] = -5
    elif damage == "event":
        one["fold"]["events"]["last_step"] = one["fold"]["events"]["run"]
    path.write_text(json.dumps(values) if damage in ("huge", "negative", "event") else damage)
    assert cache.load(path) == {}
    assert RunList(tmp_path / "runs", path).read_all() == expected


def test_what_a_summary_says_of_a_run(tmp_path):
    mixers = ["mamba", "standard", "mamba2", "mamba"]
    run = make_run(tmp_path, "a", n_embd=[64, 32, 32, 64], attention_type=mixers, n_head=4,
                   learning_rate=2e-3, dataset_dir="/books/war")  # fmt: skip
    end_run(run)
    row = RunList(tmp_path, tmp_path / "list.json").read_all()[0]
    assert (row.state, row.step, row.target) == ("stopped", 400, 1000)
    assert (row.shape, row.mixers, row.dataset) == ("64-2x32-64", "ma2m", "war")
    assert (row.best, row.last, row.best_step) == (row.last, pytest.approx(1.748, abs=1e-3), 400)
    assert row.tokens == 512 * 400
    assert row.parameters == 1_300_000
    assert row.seconds == 600


def test_a_trainer_that_comes_and_goes_is_noticed(tmp_path):
    run = make_run(tmp_path, "a")
    runs = RunList(tmp_path, tmp_path / "list.json")
    assert runs.read_all()[0].state == "died"
    with FakeTrainer(run):
        assert runs.look()[0].alive
        assert runs.look()[0].state == "training"
    assert not runs.look()[0].alive


def three(tmp_path):
    end_run(make_run(tmp_path, "small", learning_rate=1e-3, dropout=0.0))
    make_run(tmp_path, "large", learning_rate=3e-3, dropout=0.1, n_embd=[96, 64, 96], n_head=4,
             attention_type=["mamba2", "mamba2", "mamba2"], steps=200)  # fmt: skip
    end_run(make_run(tmp_path, "empty", steps=0), step=0)
    write_notes(Run(tmp_path / "small"), Notes("the long one", ("baseline", "keep")))
    return RunList(tmp_path, tmp_path / "list.json").read_all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "small large empty"),
        ("lr>1e-3 mamba2", "large"),
        ("learning_rate>=1e-3 -mamba2 best<9", "small"),
        ("stopped", "small empty"),
        ("-stopped", "large"),
        ("state=DIED", "large"),
        ("state!=died", "small empty"),
        ("step>=200", "small large"),
        ("step<1k tokens>150k", "small"),
        ("best>0", "small large"),
        ("best!=0", "small large empty"),
        ("dropout=0.1", "large"),
        ("dropout!=0.1 -empty", "small"),
        ("n_embd=96 best>0", "large"),
        ("time>5min step>0", "small"),
        ("time>1h", ""),
        ("keep", "small"),
        ("tags=keep", "small"),
        ("tag=kee", ""),
        ('"the long one"', "small"),
        ('note~"LONG one"', "small"),
        ("shape=96-64-96", "large"),
        ("mixers=mamba2", "large"),
        ("tie_embeddings=true -small -empty", "large"),
    ],
)
def test_filters(tmp_path, text, expected):
    test = compiled(text)
    assert {run.name for run in three(tmp_path) if test(run)} == set(expected.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr>1", 'filter: "lrr" is not a column or a setting; did you mean lr?'),
        ("zzzzzz=1", "accepted: name, state, step"),
        ("lr>abc", 'filter: "abc" is not a number; accepted after lr>: 0.5, 1e-3'),
        ("lr>", "filter: lr> has no value; accepted: lr>VALUE"),
        ("state>3", "filter: state is a text"),
        (">3", 'filter: ">3" has no key; accepted: key>3'),
        ('"open', "a quote is not closed"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_in_one_sentence(text, words):
    with pytest.raises(UserError) as refused:
        compiled(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_is_refused(text):
    try:
        compiled(text)
    except UserError as refused:
        sentence = str(refused)
    else:
        sentence = "filter"
    assert sentence.startswith("filter")


def test_sorting_puts_the_best_first_and_the_unknown_last(tmp_path):
    runs = three(tmp_path)

    def names(*arguments, **options):
        return [run.name for run in sorted_by(runs, *arguments, "--sort", **options)]

    assert names("best") == ["small", "large", "empty"]
    assert names("best", reverse=True) == ["large", "small", "empty"]
    assert names("lr")[0] == "large"
    assert names("name") == ["empty", "large", "small"]
    assert names("note")[0] == "small"
    assert chosen("name, best,dropout", "--columns") == ("name", "best", "dropout")
    with pytest.raises(UserError, match='--columns: "bets" is not a column or a setting; did you mean bits'):
        chosen("bets", "--columns")


def test_only_what_differs(tmp_path):
    small, large = (next(run for run in three(tmp_path) if run.name == name) for name in ("small", "large"))
    assert {"learning_rate", "dropout", "n_embd"} <= set(differing([small, large]))
    assert "batch_size" not in differing([small, large])
    assert differing([small]) == []


def test_notes_and_tags_are_kept_and_hostile_ones_ignored(tmp_path):
    run = make_run(tmp_path, "a")
    write_notes(run, Notes("good", ("x",)))
    assert change_tags(run, ["y", "-x", "y"]) == Notes("good", ("y",)) == read_notes(run)
    with pytest.raises(UserError, match="is not a tag"):
        change_tags(run, ["two words"])
    with pytest.raises(UserError, match="accepted: at most 1,000"):
        write_notes(run, Notes("x" * 1001))
    for content in ("", "[]", "{}", '{"note": 3, "tags": []}', "[" * 10_000, "x" * (1 << 17)):
        notes_path(run).write_text(content)
        assert read_notes(run) == Notes()
    notes_path(run).write_text('{"note": "n", "tags": ["ok", 7, "a b", "ok"]}')
    assert read_notes(run) == Notes("n", ("ok",))
    notes_path(run).unlink()
    notes_path(run).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text('{"note": "n", "tags": []}')
    assert read_notes(run) == Notes()
    with pytest.raises(UserError, match="there is no run"):
        write_notes(Run(tmp_path / "none"), Notes())


def test_renaming_refuses_what_would_lose_something(tmp_path):
    run = make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    for name in ("b", "../c", "", ".c", "a/b"):
        with pytest.raises(UserError, match="accepted"):
            rename_run(run, name)
    with FakeTrainer(run), pytest.raises(UserError, match="is training"):
        rename_run(run, "c")
    assert rename_run(run, "c").exists
    assert [one.name for one in list_runs(tmp_path)] == ["b", "c"]


def test_deleted_runs_come_back_whole(tmp_path):
    run = make_run(tmp_path, "a")
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with FakeTrainer(run), pytest.raises(UserError, match="is training"):
        delete_run(run)
    before["run.lock"] = run.lock_path.read_bytes()
    deleted = delete_run(run)
    assert list_runs(tmp_path) == []
    assert deleted_runs(tmp_path) == [deleted]
    make_run(tmp_path, "a")
    with pytest.raises(UserError, match="another a now"):
        undelete_run(deleted)
    second = delete_run(run)
    assert newest_deleted(tmp_path, "a") == second
    undelete_run(deleted)
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before
    (second.now / "mine.txt").write_text("not the program's")
    assert delete_for_good(second) > 0
    assert [path.name for path in second.now.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match='no deleted run "zzz"'):
        newest_deleted(tmp_path, "zzz")


def test_a_look_cut_short_shows_the_rest_as_unread_and_keeps_what_was_kept(tmp_path):
    root, kept = tmp_path / "runs", tmp_path / "list.json"
    for name in ("a", "b", "c"):
        end_run(make_run(root, name))
    whole = RunList(root, kept).read_all()
    for seconds, unread in ((0.0, 3), (60.0, 0)):
        runs = RunList(root, kept)
        rows = runs.look(seconds)
        assert [row.state for row in rows].count("unread") == unread
        assert len(rows) == 3
        runs.save()
        assert len(cache.load(kept)) == 3
        assert (runs.read_on() or rows) == whole
        assert runs.read_on() is None
