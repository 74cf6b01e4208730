"""Crafted dataset folders, opened with the real command; a home folder beside them is compared byte for byte.

Add a line to ATTACKS: a name, and what makes the folder hostile.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "The old man walked home and the rain fell.\n" * 200


def planted_cache(shelf, home):
    cache = shelf / ".mamba-tui-cache" / "tokens-0123456789abcdef"
    cache.mkdir(parents=True)
    (cache / "entries.jsonl").write_text('{"tokens": 7}\n')
    (cache / "tokens-7.bin").symlink_to(home / "bashrc")


def tokenizer_that_loses_text(shelf, home):
    (shelf / "tokenizer.json").write_text('{"format": 1, "kind": "x", "pattern": "x", "tokens": []}')


ATTACKS = {
    "a cache with a link in it": planted_cache,
    "a cache that is a link": lambda shelf, home: (shelf / ".mamba-tui-cache").symlink_to(home),
    "a file that leads out": lambda shelf, home: (shelf / "notes.txt").symlink_to(home / "secret"),
    "a folder that leads out": lambda shelf, home: (shelf / "more").symlink_to(home),
    "a chain that leads out": lambda shelf, home: [
        (shelf / "one.txt").symlink_to("two.txt"),
        (shelf / "two.txt").symlink_to(home / "secret"),
    ],
    "a link to itself": lambda shelf, home: (shelf / "loop.txt").symlink_to("loop.txt"),
    "a named pipe": lambda shelf, home: os.mkfifo(shelf / "pipe.txt"),
    "an endless device": lambda shelf, home: (shelf / "zero.txt").symlink_to("/dev/zero"),
    "a gzip bomb": lambda shelf, home: (shelf / "bomb.txt.gz").write_bytes(
        gzip.compress(bytes(80_000_000), 1)
    ),
    "a name with an escape": lambda shelf, home: (shelf / "a\x1b]52;c;eA==\x07.txt").write_text(TEXT),
    "a tokenizer beside the texts": tokenizer_that_loses_text,
}


def state(folder):
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_dataset_changes_nothing_and_shows_nothing(tmp_path, attack):
    home, shelf = tmp_path / "home", tmp_path / "shelf"
    home.mkdir()
    shelf.mkdir()
    (home / "bashrc").write_text("alias x=y\n")
    (home / "secret").write_text("SECRETWORD " * 300)
    (home / "secret.txt").write_text("SECRETWORD " * 300)
    for number in range(5):
        (shelf / f"book {number}.txt").write_text(TEXT + str(number))
    ATTACKS[attack](shelf, home)
    before = state(home), sorted(os.listdir(shelf))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for action in (["info"], ["clean", "--forget-split"], ["sample", "--tokens", "5"]):
        command = [sys.executable, "-m", "mamba_tui", "data", *action]
        command += ["--dataset", str(shelf), "--set", "tokenizer=byte"]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=240)
        assert result.returncode == 0, result.stderr
        assert b"Traceback" not in result.stderr
        assert b"\x1b" not in result.stdout + result.stderr
    assert (state(home), sorted(os.listdir(shelf))) == before
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert not path.is_file() or b"SECRETWORD" not in path.read_bytes().replace(b"\0", b"")
