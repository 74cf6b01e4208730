"""`runs --json` and `logs`, as scripts and people see them."""

from __future__ import annotations

import json
import shutil

from core.runs import status
from mamba_tui.cli.main import main
from tests.console.console_support import end_run, make_run, write_events

ESCAPE = "\x1b]52;c;AAAA\x07"


def test_runs_as_json_is_one_object_a_run(tmp_path, capsys):
    make_run(tmp_path, "a")
    end_run(make_run(tmp_path, "b"))
    assert main(["runs", "--json", "--checkpoints", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["name"], row["state"], row["step"]) for row in rows] == [
        ("a", "died", 400),
        ("b", "stopped", 400),
    ]


def test_logs_are_exact_in_a_pipe_and_tell_what_the_console_does(tmp_path, capsys):
    run = make_run(tmp_path, "a")
    write_events(run, [{"kind": "warning", "message": f"odd {ESCAPE}"}])
    end_run(run)
    run.log_path.write_text("torch says something\n")
    assert main(["logs", "a", "-f", "--checkpoints", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for words in (
        "started on cpu", "evaluated: training", "saved checkpoint_step_400.pt", f"warning: odd {ESCAPE}",
        "stopped: stopped at step 400", "torch says something",
    ):  # fmt: skip
        assert words in out
    assert main(["logs", "a", "--lines", "2", "--checkpoints", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_folder_that_is_gone_is_called_gone(tmp_path):
    run = make_run(tmp_path, "a")
    shutil.rmtree(run.path)
    assert (status(run).state, status(run).alive) == ("gone", False)
    assert "is gone" in status(run).message


def shown(capsys, root, *arguments, code=0):
    assert main(["runs", *arguments, "--checkpoints", str(root)]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def three(root):
    end_run(make_run(root, "a", learning_rate=2e-3))
    make_run(root, "b", steps=200, dropout=0.1)
    end_run(make_run(root, "c", steps=100), "finished", 100)


def test_runs_are_filtered_sorted_and_shown_with_the_chosen_columns(tmp_path, capsys):
    three(tmp_path)
    lines = shown(capsys, tmp_path, "--sort", "best", "--columns", "name,best,dropout").splitlines()
    assert [line.split()[0] for line in lines] == ["run", "a", "b", "c"]
    assert lines[2].split() == ["b", "2.5844", "0.1"]
    assert [line.split()[0] for line in shown(capsys, tmp_path, "--sort", "best", "--reverse").splitlines()][
        1:
    ] == ["c", "b", "a"]
    assert shown(capsys, tmp_path, "--filter", "lr>1e-3", "--columns", "name").split() == ["run", "a"]
    assert "None of 3 runs pass" in shown(capsys, tmp_path, "--filter", "nothing")
    different = shown(capsys, tmp_path, "--differences").splitlines()[0].split()
    assert different == ["run", "best", "dropout", "learning_rate"]


def test_wrong_columns_and_filters_are_refused_in_a_sentence(tmp_path, capsys):
    three(tmp_path)
    assert '--sort: "bets"' in shown(capsys, tmp_path, "--sort", "bets", code=2)
    assert "--filter: " in shown(capsys, tmp_path, "--filter", "lr>x", code=2)
    assert "--columns is empty" in shown(capsys, tmp_path, "--columns", ",", code=2)


def test_json_tells_what_the_list_knows(tmp_path, capsys):
    three(tmp_path)
    assert "saved" in shown(capsys, tmp_path, "note", "a", "the long one")
    assert shown(capsys, tmp_path, "tag", "a", "x", "y", "--remove", "x") == "a: y\n"
    (row,) = map(json.loads, shown(capsys, tmp_path, "--json", "--filter", "tags=y").splitlines())
    assert (row["note"], row["tags"], row["shape"] != "", row["max_iters"]) == (
        "the long one",
        ["y"],
        True,
        1000,
    )
    assert row["best_bits_per_byte"] == row["bits_per_byte"]
    assert row["config"]["learning_rate"] == 2e-3
    assert shown(capsys, tmp_path, "note", "a") == "the long one\n"


def test_rename_delete_and_undelete(tmp_path, capsys):
    three(tmp_path)
    assert shown(capsys, tmp_path, "rename", "a", "z") == "a is now z\n"
    assert "undelete z brings it back" in shown(capsys, tmp_path, "delete", "z")
    assert shown(capsys, tmp_path, "undelete") == "z\n"
    assert 'no run "z"' in shown(capsys, tmp_path, "delete", "z", code=2)
    assert shown(capsys, tmp_path, "undelete", "z") == "z is back\n"
    assert "deleted" in shown(capsys, tmp_path, "delete", "z")
    assert "freed" in shown(capsys, tmp_path, "delete", "z", "--forever")
    assert "Nothing to undelete" in shown(capsys, tmp_path, "undelete")


def test_a_renamed_variant_keeps_its_place_in_its_sweep(tmp_path, capsys):
    from core.config.schema import RunConfig
    from core.sweeps.plan import load_plan, make_plan

    plan = make_plan(tmp_path, "s", RunConfig(), [{"dropout": 0.0}, {"dropout": 0.2}])
    plan.pruned["s-2"] = 7
    plan.save()
    shown(capsys, tmp_path, "rename", "s-2", "other")
    plan = load_plan(tmp_path, "s")
    assert [variant.run for variant in plan.variants] == ["s-1", "other"]
    assert plan.pruned == {"other": 7}
