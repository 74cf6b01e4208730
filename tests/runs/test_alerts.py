"""Alerts: which there are, what the user's file may say, and how they are sent."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from core.errors import UserError
from core.runs import start_trainer
from core.runs.alerts import (
    DIVERGED_ADVICE,
    Alert,
    AlertSettings,
    AlertWatch,
    load_settings,
    run_command,
    terminal_sequence,
)
from core.runs.events import EndEvent, ErrorEvent, EvaluationEvent
from tests.run_tools import EVERY_STEP, ended, new_run, step_event, wait_for, write_text


def watch(tmp_path, **wishes):
    told = []
    return AlertWatch("r", tmp_path, AlertSettings(**wishes), told.append), told


def evaluation(step, bits):
    return EvaluationEvent(
        step=step,
        train_loss=bits,
        validation_loss=bits,
        bits_per_byte=bits,
        train_bits_per_byte=bits,
        seconds=1.0,
    )


def end(reason):
    return EndEvent(reason=reason, step=9, message=f"{reason} at step 9")


def test_ends_that_nobody_asked_for_are_told(tmp_path):
    alerts, told = watch(tmp_path)
    alerts.feed(end("stopped"))
    alerts.feed(end("interrupted"))
    assert told == []
    alerts.feed(end("finished"))
    alerts.feed(end("failed"))
    alerts.feed(ErrorEvent(message="nan", advice=DIVERGED_ADVICE))
    alerts.feed(end("failed"))
    assert [alert.kind for alert in told] == ["finished", "failed", "diverged"]
    assert told[0].message == "finished at step 9"


def test_a_plateau_is_told_once(tmp_path):
    alerts, told = watch(tmp_path, patience=3)
    for step, bits in enumerate([3.0, 2.0, 2.1, 2.0, 1.9999, 2.0, 2.0]):
        alerts.feed(evaluation(step, bits))
    assert [alert.kind for alert in told] == ["plateau"]
    assert "3 evaluations" in told[0].message
    for step, bits in enumerate([1.5, 1.6, 1.6, 1.6]):
        alerts.feed(evaluation(step, bits))
    assert len(told) == 2, "after an improvement it may be told again"


def test_a_nearly_full_disk_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    monkeypatch.setattr("core.runs.alerts.DISK_SECONDS", 0.0)
    alerts, told = watch(tmp_path)
    alerts.feed(step_event(1))
    alerts.feed(step_event(2))
    assert [alert.message for alert in told] == ["only 5 MB are free where the run is saved"]


def test_only_what_is_wanted_is_told(tmp_path):
    alerts, told = watch(tmp_path, alerts=("died",))
    alerts.feed(end("finished"))
    alerts.alert("died", "gone")
    assert [alert.kind for alert in told] == ["died"]


def test_without_a_file_everything_is_off(tmp_path):
    wishes = load_settings(tmp_path / "none.toml")
    alert = Alert("finished", "r", "m", 1, 1.0)
    assert terminal_sequence(alert, wishes) == ""
    assert run_command(alert, wishes) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bell = 1", ["bell is 1", "true or false"]),
        ('notification = "osc8"', ["osc8", "osc777"]),
        ('alerts = ["finish"]', ["alerts is", "finished"]),
        ("patience = 0", ["patience is 0"]),
        ("rings = true", ["rings", "bell"]),
        ("bell =", ["cannot be read", "TOML"]),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "alerts.toml"
    path.write_text(content)
    with pytest.raises(UserError) as refused:
        load_settings(path)
    for word in [*words, "alerts.toml"]:
        assert word in str(refused.value)


def test_a_terminal_gets_no_foreign_escapes():
    alert = Alert("failed", "a\x1b]52;c;x\x07b", "x;y\x9c\n", 1, 1.0)
    for notification in ("osc9", "osc777"):
        text = terminal_sequence(alert, AlertSettings(bell=True, notification=notification))
        inner = text[2:].removesuffix("\x1b\\\a")
        assert inner.isprintable()
        assert text.startswith("\x1b]")


def test_the_command_gets_the_alert_as_json(tmp_path):
    target = tmp_path / "it's told"
    alert = Alert("finished", "r $(touch evil)", "done", 7, 1.0)
    child = run_command(alert, AlertSettings(notify=f'cat > "{target}"'))
    assert child.wait() == 0
    found = json.loads(target.read_text())
    assert (found["kind"], found["run"], found["step"]) == ("finished", "r $(touch evil)", 7)


@pytest.mark.faults
def test_a_detached_run_tells_the_users_command(tmp_path):
    target = tmp_path / "told"
    (tmp_path / "config" / "mamba-tui").mkdir(parents=True)
    (tmp_path / "config" / "mamba-tui" / "alerts.toml").write_text(f"notify = 'cat >> {target}'\n")
    run = new_run(tmp_path / "runs", write_text(tmp_path / "text"), max_iters=2)
    start_trainer(run, environment=EVERY_STEP | {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    wait_for(lambda: ended(run), "the end of the run")
    wait_for(lambda: target.exists() and target.read_text().endswith("\n"), "the command")
    assert json.loads(target.read_text().splitlines()[-1])["kind"] == "finished"


def test_a_bad_file_does_not_keep_a_run_from_its_display(tmp_path, monkeypatch, capsys):
    from mamba_tui.cli.headless import _alert_settings

    monkeypatch.setattr("core.runs.alerts.config_root", lambda: tmp_path)
    (tmp_path / "alerts.toml").write_text("bell = 1")
    assert _alert_settings() == AlertSettings()
    assert "no alerts: " in capsys.readouterr().err
