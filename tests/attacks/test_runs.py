"""Crafted run folders, opened by the commands; a home folder beside them is compared byte for byte.

Add a line to ATTACKS: a name, and what makes the run hostile. Commands are called in this process.
"""

from __future__ import annotations

import json
import os

import pytest

from core.runs import Run, prepare_run
from core.runs.checkpoints import find_checkpoints
from tests.attacks.test_datasets import state
from tests.awkward.test_awkward_inputs import call
from tests.run_tools import tiny

MANIFEST = {"format": 1, "step": 3, "file": "checkpoint_step_3.pt", "bytes": 10, "sha256": "0" * 64}
STEP = {"kind": "step", "time": 1.0, "step": 3, "steps": 1, "loss": 1.0}
PLAN = {"kind": "plan", "time": 1.0, "step": 0, "tokens": 9, "parameters": 9, "steps": 3, "passes": 1.0,
        "seconds": 9.0, "seconds_low": 5.0, "seconds_high": 10.0}  # fmt: skip


def replace(path, kind, home):
    """Put something that is no file of ours in the place of one."""
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(home / "bashrc")
    elif kind == "second name":
        os.link(home / "bashrc", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()


def control_is_a_link(run, home):
    run.control_path.rmdir()
    run.control_path.symlink_to(home)


def checkpoint_is_a_link(run, home):
    (run.path / "checkpoint_step_3.json").write_text(json.dumps(MANIFEST))
    (run.path / "checkpoint_step_3.pt").symlink_to(home / "bashrc")


ODD = {
    f"{name} is a {kind}": lambda run, home, name=name, kind=kind: replace(run.path / name, kind, home)
    for name in ("events.jsonl", "run.lock", "trainer.log", "checkpoint_step_3.json", "tokenizer.json")
    for kind in ("link", "second name", "pipe", "device", "folder")
}
ATTACKS = ODD | {
    "control is a link": control_is_a_link,
    "a checkpoint that is a link": checkpoint_is_a_link,
    "a command that is a link": lambda run, home: (run.control_path / "1-ab.json").symlink_to(
        home / "bashrc"
    ),
    "a number of 401 digits": lambda run, home: run.events_path.write_text(
        json.dumps(STEP | {"loss": 0}).replace("0}", "9" * 401 + "}") + "\n"
    ),
    "an integer of 5,000 digits": lambda run, home: run.events_path.write_text(
        '{"kind": "step", "step": ' + "9" * 5000 + "}\n"
    ),
    "nesting 900 deep": lambda run, home: run.events_path.write_text('{"a":' * 900 + "1" + "}" * 900 + "\n"),
    "a line of a megabyte": lambda run, home: run.events_path.write_text("x" * 1_000_000 + "\n"),
    **{
        f"a plan of {seconds} seconds": lambda run, home, seconds=seconds: run.events_path.write_text(
            json.dumps(PLAN | {"seconds_low": seconds})
            + "\n"
            + json.dumps(PLAN | {"seconds": seconds})
            + "\n"
        )
        for seconds in (float("nan"), float("inf"), float("-inf"), 1e300)
    },
    "an escape sequence in a message": lambda run, home: run.events_path.write_text(
        json.dumps({"kind": "warning", "time": 1.0, "message": "\x1b]52;c;eA==\x07"}) + "\n"
    ),
    "a lock of another": lambda run, home: run.lock_path.write_text(
        '{"pid": 1, "host": "' + "h" * 5000 + '"}'
    ),
    "a manifest of 10 MB": lambda run, home: (run.path / "checkpoint_step_3.json").write_text(
        " " * 10_000_000
    ),
    "a huge configuration": lambda run, home: run.config_path.write_text("x = 1\n" * 2_000_000),
}
COMMANDS = (
    ["runs"],
    ["runs", "--json"],
    ["logs", "r"],
    ["attach", "r", "--no-ui"],
    ["stop", "r"],
    ["pause", "r"],
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "bashrc").write_text("alias x=y\n")
    (folder / "1-ab.json").write_text('{"command": "stop"}')
    monkeypatch.chdir(tmp_path)
    return folder


def two_runs(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("text " * 100)
    prepare_run(tmp_path / "runs", "good", tiny(texts))
    return prepare_run(tmp_path / "runs", "r", tiny(texts))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_run_changes_nothing_and_is_one_bad_row(tmp_path, home, capsys, attack):
    run = two_runs(tmp_path)
    ATTACKS[attack](run, home)
    before = state(home)
    for command in COMMANDS:
        code, said = call([*command, "--checkpoints", str(run.path.parent)], capsys)
        assert code in (0, 1, 2, 130), said
        assert "Traceback" not in said
        assert "internal error" not in said
        assert "\x1b]52" not in said or command == ["logs", "r"]  # exact in a pipe, safe on a terminal
        assert len(said) < 20_000
        assert command[0] != "runs" or "good" in said
    assert state(home) == before


def test_a_checkpoint_that_leads_out_of_its_run_is_not_used(tmp_path, home):
    run = two_runs(tmp_path)
    checkpoint_is_a_link(run, home)
    assert [info.problem for info in find_checkpoints(run.path)] == [
        "its file is a link that leads out of the run's folder"
    ]
    # Inside of the run it may lead where it likes; the size is compared as ever.
    (run.path / "checkpoint_step_3.pt").unlink()
    (run.path / "kept.pt").write_bytes(b"0123456789")
    (run.path / "checkpoint_step_3.pt").symlink_to("kept.pt")
    assert [info.problem for info in find_checkpoints(run.path)] == [""]


def test_the_folder_of_runs_and_a_run_in_it_may_be_links_of_the_user(tmp_path, home, capsys):
    run = two_runs(tmp_path)
    (tmp_path / "elsewhere").symlink_to(run.path.parent)
    (run.path.parent / "linked").symlink_to(run.path)
    code, said = call(["runs", "--checkpoints", str(tmp_path / "elsewhere")], capsys)
    assert code == 0
    assert "linked" in said
    assert Run(tmp_path / "elsewhere" / "linked").exists
