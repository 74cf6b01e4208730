"""`mamba-tui compress` and `decompress` as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mamba_tui.cli.compressors import compare
from mamba_tui.cli.main import main
from tests.compression.checkpoints import write_checkpoint

ROOT = Path(__file__).parents[2]
TEXT = "She had a lively, playful disposition, which delighted in anything ridiculous.\r\n" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress-command")
    write_checkpoint(folder / "checkpoints" / "harbor", text=TEXT[:80])
    return folder


def typed(folder, *words):
    done = subprocess.run(
        [sys.executable, "-m", "mamba_tui.cli.main", *words, "--device", "cpu"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_a_file_there_and_back(folder):
    (folder / "novel.txt").write_bytes(TEXT.encode())
    done = typed(folder, "compress", "novel.txt", "--compare")
    assert done.returncode == 0, done.stderr
    assert "bits/byte" in done.stdout
    assert "xz -9e" in done.stdout
    (folder / "novel.txt").rename(folder / "before.txt")
    done = typed(folder, "decompress", "novel.txt.mtz", "--run", "harbor")
    assert done.returncode == 0, done.stderr
    assert (folder / "novel.txt").read_bytes() == TEXT.encode()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compress", "missing"], "FILE is missing, which is not a file"),
        (["compress", "old", "--streams", "9999"], "--streams is 9,999; accepted"),
        (["compress", "old", "-o", "old"], "-o is old, the file to read"),
        (["compress", "old", "-o", "no/where"], "-o is no/where, whose folder does not exist"),
        (["compress", "old"], "old.mtz exists; accepted: -o with another name, or --force"),
        (["decompress", "old"], "does not end in .mtz"),
        (["decompress", "old.mtz"], "old exists"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, capfd, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("old", "old.mtz"):
        (tmp_path / name).write_text(name)
    assert main(words) == 2
    assert sentence in capfd.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "old": "old",
        "old.mtz": "old.mtz",
    }


def test_others_make_text_smaller_too():
    sizes = compare(TEXT.encode())
    assert all(size is None or 0 < size < len(TEXT) for size in sizes.values())
    assert sizes["gzip -9"]
    assert sizes["xz -9e"]
