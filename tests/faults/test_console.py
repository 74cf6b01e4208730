"""Whatever happens to the console that started it, the run continues and its chart has no gap."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys

import pytest

from core.errors import UserError
from core.runs import Follower, is_alive, read_holder, send_command, signal_trainer, status, wait_for_command
from tests.run_tools import ROOT, ended, new_run, starts, wait_for, write_text

pytestmark = pytest.mark.faults

# A console in the terminal's foreground: it starts the run, then follows it until it dies.
CONSOLE = """
import sys, time
from pathlib import Path
from core.runs import Follower, Run, start_trainer
run = Run(Path(sys.argv[1]))
start_trainer(run)
follower = Follower(run.events_path)
while True:
    follower.poll()
    time.sleep(0.01)
"""


def in_a_terminal(code: str, *arguments: str) -> tuple[int, int]:
    """Start python code as a terminal's foreground process: (pid, the terminal's other end)."""
    pid, terminal = pty.fork()
    if pid == 0:
        # As a terminal starts it: whoever runs the tests in the background, or by nohup, ignores these.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ["MAMBA_TUI_EVENT_SECONDS"] = "0"
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
    return pid, terminal


@pytest.mark.parametrize("end", ["killed", "terminal closed", "ctrl-c"])
def test_the_run_outlives_its_console(tmp_path, end):
    dataset = write_text(tmp_path / "text")
    run = new_run(tmp_path, dataset, max_iters=1_000_000, eval_interval=1_000_000, sample_tokens=0)
    console, terminal = in_a_terminal(CONSOLE, str(run.path))
    try:
        follower = Follower(run.events_path)
        wait_for(lambda: follower.poll() and follower.history.step >= 3, "the first steps")
        trainer = read_holder(run.lock_path).pid
        if end == "killed":
            os.kill(console, signal.SIGKILL)
        elif end == "terminal closed":
            os.close(terminal)
            terminal = -1
        else:
            os.write(terminal, b"\x03")
        wait_for(lambda: os.waitpid(console, os.WNOHANG)[0], "the console's end")
        before = Follower(run.events_path)
        before.poll()
        wait_for(lambda: follower.poll() and follower.history.step >= before.history.step + 5, "more steps")
        assert is_alive(run)
        assert status(run).state == "training"

        # Another console attaches: the same trainer, the whole history.
        assert read_holder(run.lock_path).pid == trainer
        assert wait_for_command(run, send_command(run, "stop")).accepted
        wait_for(lambda: ended(run), "the end of the run")
        again = Follower(run.events_path)
        again.poll()
        steps = list(again.history.steps.column("step"))
        assert steps == list(range(1, again.history.step + 1))
        assert len(starts(again.history)) == 1
        assert again.history.end.reason == "stopped"
        assert run.checkpoints()[-1].step == again.history.step
    finally:
        if terminal >= 0:
            os.close(terminal)
        with contextlib.suppress(UserError):
            signal_trainer(run, signal.SIGKILL)
