"""`train --plan`: what a run would be, and nothing is started or written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from core.system.processes import module_environment
from mamba_tui.cli.main import main
from tests.run_tools import new_run, write_text


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_text(tmp_path / "texts", words=400)
    return tmp_path


PLAN = ("train", "--plan", "--preset", "book", "--device", "cpu", "--dataset", "texts")


def planned(capsys, *options):
    assert main([*PLAN, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_plan_says_size_time_and_what_was_decided(capsys, place):
    before = files(place)
    assert main(list(PLAN)) == 0
    first, parts, decided, guess = capsys.readouterr().out.splitlines()
    assert "parameters" in first
    assert "passes, about " in first
    assert first.endswith(" steps")
    assert parts.startswith("of that time: ")
    assert "start " in parts
    assert "n_embd = [" in decided
    assert "max_iters = " in decided
    assert "mamba-tui bench" in guess
    assert set(files(place)) <= {*before, "cache"}, "no run, no working file"


def test_the_same_figures_are_there_for_other_programs(capsys):
    values = planned(capsys)
    assert values["seconds_low"] < values["seconds"] < values["seconds_high"]
    assert sum(values["seconds_of"].values()) == pytest.approx(values["seconds"], abs=0.1)
    assert values["seconds_of"]["text"] > 0
    assert values["decided"]["max_iters"] == values["steps"] > 0
    assert values["exact"] is False
    assert "warmup_iters" in values["decided"]


def test_what_is_set_is_not_decided_and_a_time_budget_ends_the_plan(capsys):
    values = planned(
        capsys, "--max-iters", "100000", "--set", "n_embd=[32,32]", "--set", "dropout=0.1", "--minutes", "0.5"
    )
    assert not values["decided"].keys() & {"n_embd", "max_iters", "dropout"}
    assert {"mixer_dropout", "batch_size"} <= values["decided"].keys()
    ours = ("steps", "evaluations", "samples", "checkpoints")
    assert sum(values["seconds_of"][name] for name in ours) == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*PLAN, "--detach"), "--plan starts nothing, so --detach does not go with it"),
        ((*PLAN, "--sweep", "dropout=0,0.1"), "--plan starts nothing, so --sweep does not go with it"),
        (("train", "--json"), "--json is for plans; give --plan too"),
        (("train", "--plan", "--preset", "book", "--dataset", "empty"), "contains no text"),
        ((*PLAN, "--run", "there"), '--plan is for new runs, and run "there" exists'),
    ],
)
def test_what_does_not_go_with_a_plan_is_refused_in_words(capsys, place, options, words):
    (place / "empty").mkdir()
    new_run(place / "checkpoints", place / "texts", name="there")
    assert main(list(options)) == 2
    assert words in capsys.readouterr().err


def test_a_plan_without_torch_as_a_process(place):
    code = (
        "import sys; from mamba_tui.cli.main import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command, environment = [sys.executable, "-c", code, *PLAN], module_environment()
    shown = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "parameters" in shown.stdout
