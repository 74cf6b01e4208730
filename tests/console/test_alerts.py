"""The console tells of the run that it follows as alerts.toml asks."""

import contextlib
import json

from core.runs.events import EndEvent
from tests.console.console_support import FakeTrainer, console, make_run, serving, until, until_shown

WANTED = """
bell = true
notification = "osc9"
notify = "cat > alert.json"
"""


@contextlib.asynccontextmanager
async def followed(tmp_path, monkeypatch):
    """A console that follows a living run, with a user who wants alerts."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "config" / "mamba-tui"
    folder.mkdir(parents=True)
    (folder / "alerts.toml").write_text(WANTED)
    trainer = FakeTrainer(make_run(tmp_path / "checkpoints"))
    async with serving(trainer), console(tmp_path / "checkpoints") as (app, pilot):
        await until(pilot, lambda: app.run_client.caught_up and app.run_client.alive)
        yield app, pilot, trainer


async def test_the_end_and_the_death_of_a_run_are_told(tmp_path, monkeypatch):
    async with followed(tmp_path, monkeypatch) as (app, pilot, trainer):
        written = []
        monkeypatch.setattr(app._driver, "write", written.append)
        trainer.writer.write(EndEvent(reason="finished", step=400, message="finished at step 400"))
        await until(pilot, lambda: "\x1b]9;run-001 finished: finished at step 400\x1b\\\a" in written)
        await until_shown(pilot, "run-001: finished at step 400")
        assert not (tmp_path / "alert.json").exists(), "the trainer itself tells the command"


async def test_a_death_is_told_to_the_command_by_the_console(tmp_path, monkeypatch):
    async with followed(tmp_path, monkeypatch) as (app, pilot, trainer):
        trainer.__exit__()
        await until_shown(pilot, "R in Train resumes it")
        alert = tmp_path / "alert.json"
        await until(pilot, lambda: alert.exists() and alert.read_text().endswith("\n"))
        assert json.loads(alert.read_text())["kind"] == "died"
        assert app.status_line.said[-1][1]


async def test_a_bad_file_of_alerts_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "mamba-tui"
    folder.mkdir(parents=True)
    (folder / "alerts.toml").write_text("bell = 3")
    make_run(tmp_path / "checkpoints")
    async with console(tmp_path / "checkpoints", (120, 40)) as (_, pilot):
        await until_shown(pilot, "bell is 3; accepted: true or false")
