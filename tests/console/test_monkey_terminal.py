"""Random keys in a real terminal, with the real console and a real trainer, faster than anybody types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import random
import signal
import struct
import sys
import termios
import threading

import pytest

from core.errors import UserError
from core.runs import Follower, Run, is_alive, send_command, signal_trainer, start_trainer, wait_for_command
from core.runs.checkpoints import verify
from tests.run_tools import ended, new_run, wait_for, write_text

pytestmark = pytest.mark.faults

ACTIONS = 2000
SIZES = [(80, 24), (120, 40), (40, 12), (20, 6), (200, 50), (7, 3)]
ESCAPE, ENTER, CTRL_Q = b"\x1b", b"\r", b"\x11"
# Not: ending a run (x), beginning or branching one (Ctrl+R, R, r, b), leaving (Ctrl+Q), pictures (F12).
LETTERS = "acdefghijklmnopqstuvwyzCGJKLMNSWAZ0123456789+-=/.,<>[](){}'\" \t\r\x7fé鯨"
PLAIN = [letter.encode() for letter in LETTERS]
CONTROL = [bytes([ord(letter) - 64]) for letter in "BDEGJLNOPSTYZ"]
FUNCTION = [b"\x1bO" + code for code in (b"P", b"Q", b"R", b"S")] + [
    b"\x1b[%d~" % n for n in (15, 17, 18, 19, 20)
]
CURSOR = [b"\x1b[" + code for code in (b"A", b"B", b"C", b"D", b"H", b"F", b"Z", b"2~", b"3~", b"5~", b"6~")]
MODIFIED = [b"\x1b[1;%d" % n + code for n in (2, 3) for code in (b"A", b"B", b"C", b"D")] + [
    b"\x1b[5;5~",
    b"\x1b[6;5~",
]
KEYS = PLAIN + CONTROL + FUNCTION + CURSOR + MODIFIED + [ESCAPE]

CONSOLE = """
import sys
from pathlib import Path
from mamba_tui.app import LaunchOptions, main
from core.runs import Run
run = Run(Path(sys.argv[1]))
sys.exit(main(LaunchOptions(checkpoints=run.path.parent, attach=run.name, config=run.config())))
"""


class Terminal:
    """A console in its own terminal; only the end of its output is kept."""

    def __init__(self, folder, run: Run) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PYTHONPATH=os.getcwd(), TERM="xterm-256color", COLORTERM="truecolor")
            os.chdir(folder)
            os.execv(sys.executable, [sys.executable, "-c", CONSOLE, str(run.path)])
        self.code: int | None = None
        self.size = (80, 24)
        self.tail = b""
        self.resize((80, 24))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self.fd, 65536):
                self.tail = (self.tail + data)[-200_000:]

    def resize(self, size: tuple[int, int]) -> None:
        self.size = size
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def over(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None


def mouse(chance: random.Random, size: tuple[int, int]) -> bytes:
    """A click, a drag or a turn of the wheel somewhere (xterm's SGR coding)."""
    x, y = chance.randint(1, size[0]), chance.randint(1, size[1])
    if chance.random() < 0.3:
        return f"\x1b[<{chance.choice((64, 65))};{x};{y}M".encode()
    to_x, to_y = (x, y) if chance.random() < 0.7 else (chance.randint(1, size[0]), chance.randint(1, size[1]))
    return f"\x1b[<0;{x};{y}M\x1b[<32;{to_x};{to_y}M\x1b[<0;{to_x};{to_y}m".encode()


def test_thousands_of_keys_clicks_and_sizes_harm_neither_console_nor_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBA_TUI_EVENT_SECONDS", "0")
    dataset = write_text(tmp_path / "text")
    run = new_run(tmp_path / "runs", dataset, max_iters=1_000_000, eval_interval=200, checkpoint_interval=200)
    try:
        monkey(tmp_path, run)
    finally:
        for path in (tmp_path / "runs").iterdir():
            with contextlib.suppress(UserError):
                signal_trainer(Run(path), signal.SIGKILL)


def monkey(folder, run: Run) -> None:
    start_trainer(run)
    follower = Follower(run.events_path)
    wait_for(lambda: follower.poll() and follower.history.step >= 3, "the first steps")
    chance = random.Random(7)
    terminal = Terminal(folder, run)
    wait_for(lambda: b"Generate" in terminal.tail or terminal.over(), "the first paint")
    try:
        for number in range(ACTIONS):
            assert not terminal.over(), f"the console ended at action {number}: {terminal.tail[-2000:]!r}"
            what = chance.random()
            if what < 0.03:
                terminal.resize(chance.choice(SIZES))
            elif what < 0.15:
                terminal.write(mouse(chance, terminal.size))
            else:
                terminal.write(chance.choice(KEYS))
        terminal.resize((80, 24))

        def left() -> bool:
            """Leave whatever is open, as a user would; Enter keeps a training run going."""
            for key in (ESCAPE, CTRL_Q, ENTER):
                if terminal.over():
                    return True
                with contextlib.suppress(OSError):
                    terminal.write(key)
                with contextlib.suppress(AssertionError):
                    wait_for(terminal.over, "the end", seconds=0.5)
            return terminal.over()

        wait_for(left, "the console to be left")
        assert terminal.code == 0, terminal.tail[-3000:].decode(errors="replace")
        assert b"Traceback" not in terminal.tail
        assert not list((folder / "runs").glob("console-error*"))
    finally:
        if not terminal.over():
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        os.close(terminal.fd)
    unharmed(run, follower)


def unharmed(run: Run, follower: Follower) -> None:
    """The trainer did only what it was told; its history has no gap and its checkpoints are intact."""
    follower.poll()
    if follower.history.end is None:
        assert is_alive(run)
        before = follower.history.step
        wait_for_command(run, send_command(run, "resume"))
        wait_for(lambda: follower.poll() and follower.history.step > before, "more steps")
        assert wait_for_command(run, send_command(run, "stop")).accepted
        wait_for(lambda: ended(run), "the end of the run")
        follower.poll()
    assert follower.history.end is not None
    assert follower.history.end.reason == "stopped"
    assert list(follower.history.steps.column("step")) == list(range(1, follower.history.step + 1))
    newest = run.checkpoints()[-1]
    assert newest.step == follower.history.step
    assert verify(newest) == ""
