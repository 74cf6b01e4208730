"""`runs --json` and `logs`, as a script and a person meet them."""

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
