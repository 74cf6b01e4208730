"""Terminals that aren't UTF-8."""

import codecs
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from mamba_tui import terminal_encoding
from mamba_tui.terminal_encoding import ascii_for

ROOT = Path(__file__).parents[2]
CONSOLE = """
import sys
from pathlib import Path
from mamba_tui.app import LaunchOptions, main
sys.exit(main(LaunchOptions(checkpoints=Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("character", "✔✘●★│┤─⠀⣿⠒⡇…→é日本▐█́\u200d🙂")
def test_what_stands_for_a_character_is_as_wide(character):
    stands = ascii_for(character)
    assert stands.isascii()
    assert cell_len(stands) == cell_len(character)


def test_only_what_cannot_be_encoded_is_replaced():
    codecs.register_error(terminal_encoding.HANDLER, terminal_encoding._ascii)
    assert "é ✔ ü ┤".encode("latin-1", terminal_encoding.HANDLER) == b"\xe9 Y \xfc +"


def _read_until(terminal, wanted, seconds=60.0):
    taken, deadline = b"", time.monotonic() + seconds
    while wanted not in taken:
        assert time.monotonic() < deadline, taken[-2000:]
        if select.select([terminal], [], [], 0.2)[0]:
            taken += os.read(terminal, 65536)
    return taken


def test_a_latin_1_terminal_gets_latin_1_and_its_letters_arrive(tmp_path):
    ours, theirs = pty.openpty()
    environment = {
        **os.environ, "PYTHONIOENCODING": "latin-1", "TERM": "xterm-256color",
        "COLUMNS": "100", "LINES": "30",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE, str(tmp_path)],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    try:
        first = _read_until(ours, b"using ASCII")
        assert b"\\u2" not in first
        assert not any(byte > 0xFF for byte in first)
        os.write(ours, b"\x1b[15~")  # F5: the prompt
        _read_until(ours, b"temperature")
        os.write(ours, "naïveté".encode("latin-1"))
        _read_until(ours, "ï".encode("latin-1"))
        os.write(ours, b"\x11")  # Ctrl+Q
        deadline = time.monotonic() + 30
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 65536)
                except OSError:
                    break
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
        os.close(ours)
