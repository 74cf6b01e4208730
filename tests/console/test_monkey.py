"""Random keys in the console while a run trains: it doesn't crash, and the run is unharmed."""

import random

import pytest

from core.runs import Run
from core.runs.events import StepEvent
from mamba_tui.keys import TABLE
from tests.console.console_support import FakeTrainer, console, make_run, serving, texts_folder

KEYS = sorted(
    {name for table in TABLE.values() for key in table for name in key.keys.split(",")}
    | {"enter", "escape", "tab", "shift+tab", "up", "down", "left", "right", "1", "2", "9", "z", "backspace"}
)
# These keys end the test, or litter the folder with pictures.
SPARED = {"ctrl+q", "f12"}
SIZES = [(80, 24), (120, 40), (40, 12), (20, 6), (200, 50), (7, 3)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_keys_clicks_and_sizes(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    texts_folder(tmp_path)
    monkeypatch.setattr("core.runs.start_trainer", lambda run: 1)
    monkeypatch.setattr("core.sweeps.process.start_in_background", lambda plan: 1)
    chance = random.Random(seed)
    run = make_run(tmp_path)
    before = run.config()
    async with serving(FakeTrainer(run)) as trainer:
        async with console(tmp_path) as (app, pilot):
            await pilot.press("f3")
            for step in range(120):
                if trainer.alive and step % 7 == 0:
                    trainer.writer.write(StepEvent(
                        step=401 + step, steps=1, loss=2.0, loss_min=1.0, loss_max=3.0, learning_rate=1e-3,
                        gradient_norm=1.0, tokens_per_second=1.0, tokens=1, data_wait=0.0, device_memory=None,
                        epoch=0.1,
                    ))  # fmt: skip
                what = chance.random()
                if what < 0.03:
                    await pilot.resize_terminal(*chance.choice(SIZES))
                elif what < 0.10:
                    width, height = app.size
                    await pilot.click(offset=(chance.randrange(width), chance.randrange(height)))
                else:
                    key = chance.choice(KEYS)
                    if key not in SPARED:
                        await pilot.press(key)
                assert app.is_running, f"the console ended at step {step}"
                while len(app.screen_stack) > 4:
                    app.pop_screen()
            await pilot.resize_terminal(80, 24)
            await pilot.pause()
            assert app._exception is None
    assert run.config() == before
    assert Run(run.path).checkpoints()
    commands = {"pause", "resume", "stop", "save", "evaluate", "sample", "finish"}
    assert {name for name, _ in trainer.commands} <= commands
