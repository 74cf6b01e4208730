"""Awkward inputs, one per line: the command, the exit code, and words of the one-sentence answer.

Add a line to `TYPED` for a command line (run in this process), to `FILES` for a configuration file, to
`STREAMS` for a real process with odd standard streams. `Home` below checks for every line that no file
changed and that no traceback was shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mamba_tui.cli.main import main

ROOT = Path(__file__).parents[2]
LONG = "x" * 300
DIGITS = "9" * 5000

# (command line, exit code, words that the answer holds)
TYPED = [
    # Devices and folders that don't exist: noticed before anything starts.
    ("train --device mps", 2, ["mps", "this machine does not have"]),
    ("train --set device=mps", 2, ["mps", "this machine does not have"]),
    ("train --device cuda:1234567", 2, ["cuda:1234567", "accepted"]),
    ("train --dataset /nonexistent", 2, ["dataset_dir", "/nonexistent", "does not exist"]),
    ("train --dataset empty", 2, ["empty", "no text"]),
    ("train --dataset /dev/null/x", 2, ["/dev/null/x"]),
    ("train --detach --dataset /nonexistent", 2, ["/nonexistent"]),
    (f"train --dataset {LONG}", 2, ["dataset_dir", "xxx"]),
    (f"train --dataset {LONG * 20}", 2, ["dataset_dir", "6,000 characters"]),
    ("train --set tokenizer=/none.json", 2, ["tokenizer", "/none.json"]),
    ("train --set encoding=latin-77", 2, ["encoding", "latin-77"]),
    # Names.
    (f"train --run {LONG}", 2, ["--run", "120 bytes"]),
    ("train --run ..", 2, ["--run", '".."']),
    ("train --run a/b", 2, ["--run", '"a/b"']),
    ("train --fresh --run a/b", 2, ["--run", '"a/b"']),
    ("train --run=", 2, ["--run", '""']),
    ("train --run=-x", 2, ["--run", '"-x"']),
    ("train --run -x", 2, ["--run expected one argument"]),
    ("train --run \udcff", 2, ["--run"]),
    (f"attach --no-ui {LONG}", 2, ["RUN is"]),
    ("attach --no-ui ../escape", 2, ["RUN is"]),
    (f"stop {LONG}", 2, ["RUN is"]),
    (f"logs {LONG}", 2, ["RUN is"]),
    ("logs ..", 2, ["RUN is"]),
    (f"runs --checkpoints {LONG}", 2, ["--checkpoints", "File name too long"]),
    ("runs --checkpoints a.txt", 2, ["--checkpoints", "is a file"]),
    ("runs --checkpoints a.txt/x", 2, ["--checkpoints", "Not a directory"]),
    ("runs --checkpoints \udcff", 0, []),
    ("train --dataset \udcff", 2, ["dataset_dir", "Unicode"]),
    ("train --dataset a\0b", 2, ["NUL"]),
    ("train --config a\0b.json", 2, ["NUL"]),
    (f"train --config {LONG}.json", 2, ["cannot be read", "File name too long"]),
    ('train --set dataset_dir="a\\u0000b"', 2, ["dataset_dir", "NUL"]),
    # Numbers that can't be represented.
    ("train --max-iters 1e3", 2, ["--max-iters is", "whole number"]),
    ("train --max-iters ١٢", 2, ["--max-iters is", "whole number"]),
    ("train --max-iters 1000000000000", 2, ["max_iters", "1,000,000,000"]),
    (f"train --max-iters {DIGITS}", 2, ["--max-iters", "5,000 characters"]),
    (f"train --set max_iters={DIGITS}", 2, ["max_iters"]),
    (f"train --set learning_rate={'9' * 400}", 2, ["learning_rate", "40 digits"]),
    ("train --set learning_rate=1e-300", 2, ["learning_rate", "1e-12"]),
    ("train --set learning_rate=1e309", 2, ["learning_rate is inf"]),
    ("train --set learning_rate=nan", 2, ["learning_rate is nan"]),
    ("train --set learning_rate=-inf", 2, ["learning_rate is -inf"]),
    ("train --set beta1=0.99999999", 2, ["beta1", "0.9999"]),
    ("train --set beta2=0.999999999", 2, ["beta2"]),
    ("train --set grad_clip=1e300", 2, ["grad_clip", "1,000,000"]),
    ("train --set grad_clip=1e-30", 2, ["grad_clip", "1e-12"]),
    ("train --set dropout=true", 2, ["dropout is true"]),
    (f"train --set n_embd=[{'16,' * 600}]", 2, ["n_embd", "600 entries"]),
    ("bench --seconds nan", 2, ["--seconds is", "a number"]),
    ("bench --seconds 1e309", 2, ["--seconds is", "a number"]),
    ("bench --seconds 0", 2, ["--seconds is 0"]),
    ("logs ghost --lines 99999999999999999999", 2, ["--lines is", "18 digits"]),
    # Typos.
    ("trian", 2, ["trian", "did you mean train?"]),
    ("train --datset x", 2, ["--datset", "did you mean --dataset?"]),
    ("train --set learning_rat=1", 2, ["learning_rat", '"learning_rate"']),
    ("train --set", 2, ["--set expected one argument"]),
    ("train --set =3", 2, ["unknown"]),
    (f"train --set {'[' * 3000}=1", 2, ["unknown", "characters"]),
    (f"train --set n_embd={'[' * 3000}", 2, ["n_embd", "3,000 characters"]),
    (f"train --preset {LONG}", 2, ["--preset", "300 characters"]),
    ("data", 2, ["ACTION"]),
    ("data inf", 2, ["inf", "did you mean info?"]),
    ("launch", 2, ["needs a terminal", "--no-ui"]),
    ("attach ghost", 2, ["needs a terminal", "--no-ui"]),
]

# (file name, content, words of the answer)
FILES = [
    ("c.json", b"", ["line 1"]),
    ("c.json", b"[]", ["c.json", "list"]),
    ("c.json", b"[" * 100_000, ["c.json", "nested"]),
    ("c.json", b'{"config": ' * 900 + b"1" + b"}" * 900, ["c.json"]),
    ("c.json", b'{"max_iters": ' + DIGITS.encode() + b"}", ["c.json", "digits"]),
    ("c.json", b'{"learning_rate": ' + b"9" * 400 + b"}", ["learning_rate", "40 digits"]),
    ("c.json", b'{"learning_rate": 1e309}', ["learning_rate is inf"]),
    ("c.json", b'{"learning_rate": NaN}', ["learning_rate is nan"]),
    ("c.json", b'{"dataset_dir": "a\\u0000b"}', ["dataset_dir", "NUL"]),
    ("c.json", b'{"dataset_dir": "\\ud800"}', ["dataset_dir", "Unicode"]),
    ("c.json", b'{"sample_prompt": "' + b"y" * 1_000_000 + b'"}', ["sample_prompt", "1,000,000 characters"]),
    ("c.json", b'{"' + b"k" * 1_000_000 + b'": 1}', ["unknown"]),
    ("c.json", b'{"n_embd": []}', ["n_embd"]),
    ("c.json", b'{"n_embd": ' + b"[" * 800 + b"]" * 800 + b"}", ["n_embd"]),
    ("c.json", b"\xff\xfe{}", ["c.json", "UTF-8"]),
    ("c.toml", b"n_layer = " + DIGITS.encode(), ["c.toml"]),
    ("c.toml", b"n_layer = 1979-05-27T07:32:00Z", ["n_layer", "1979"]),
    ("c.toml", b"x = " + b"[" * 5000, ["c.toml"]),
    ("c.toml", b"[model]\nmax_iters = 5", ["[training]"]),
    ("c.yaml", b"a: b", [".json or .toml"]),
]

# (what is odd about the streams, shell command with M for the program, exit code, words)
STREAMS = [
    ("latin-1", "PYTHONIOENCODING=latin-1 M runs --checkpoints $'\\u6797'", 0, ["No runs in ?"]),
    ("ascii", "PYTHONIOENCODING=ascii M stop $'\\u6797'", 2, ["?"]),
    ("closed input", "M train --set x=1 <&-", 2, ["unknown"]),
    ("closed output", "M runs >&-", 0, []),
    ("closed error", "M stop ghost 2>&-", 2, []),
    ("everything closed", "M runs <&- >&- 2>&-", 0, []),
    ("nobody reads", "M runs | true; exit ${PIPESTATUS[0]}", None, []),
    ("nobody reads help", "M --help | true; exit ${PIPESTATUS[0]}", None, []),
    ("full disk", "M runs > /dev/full", 1, ["No space left on device"]),
    ("error to nobody", "M stop ghost 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 2, []),
    ("launch without a terminal", "M launch </dev/null", 2, ["needs a terminal", "--detach"]),
    ("a folder that cannot be written", "cd /proc && M train --device tpu", 2, ["will not be saved", "tpu"]),
    ("a folder that is only looked at", "cd /proc && M launch --read-only </dev/null", 2, ["a terminal"]),
    ("a folder that is gone", "mkdir gone && cd gone && rmdir ../gone && M runs", 0, []),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a user's files, which must be unchanged afterwards."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("The old man walked home and the rain fell.\n" * 200)
    (tmp_path / "a.txt").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "current_configuration.json").write_text('{"configuration_version": 1, "config": {}}\n')
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    yield tmp_path
    os.chdir(tmp_path)
    assert contents(tmp_path) == before


def contents(folder):
    """Every file below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def call(arguments, capsys):
    """(exit code, everything printed) by a command run in this process."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    return code, said.out + said.err


def check(answer, words):
    assert "Traceback" not in answer
    assert "internal error" not in answer
    assert len(answer) < 20_000
    for word in words:
        assert word in answer, answer


@pytest.mark.parametrize(("line", "code", "words"), TYPED, ids=[ascii(line)[1:50] for line, _, _ in TYPED])
def test_what_is_typed(home, capsys, line, code, words):
    began = time.process_time()
    found, answer = call(line.split(" "), capsys)
    assert found == code, answer
    check(answer, words)
    assert code == 0 or 0 < answer.count("\n") <= 2, "one sentence"
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(("name", "content", "words"), FILES, ids=[f"{n}-{c[:30]!r}" for n, c, _ in FILES])
def test_configuration_files(home, capsys, name, content, words, tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / name
    path.write_bytes(content)
    found, answer = call(["train", "--config", str(path)], capsys)
    assert found == 2, answer
    check(answer, words)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("command", "code", "words"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS]
)
def test_streams(home, command, code, words):
    program = f'M() {{ "{sys.executable}" -P -m mamba_tui "$@"; }}; '
    result = subprocess.run(
        ["bash", "-c", program + command],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"},
        timeout=120,
        check=False,
    )
    answer = (result.stdout + result.stderr).decode(errors="replace")
    assert "Exception ignored" not in answer
    check(answer, words)
    assert result.returncode == code or (code is None and result.returncode in (0, 1)), answer


def test_a_refused_start_leaves_no_run_and_costs_less_than_a_second(home):
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-P", "-m", "mamba_tui", "train", "--detach", "--dataset", "boooks", "--run", "r"],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    seconds = time.monotonic() - began
    assert result.returncode == 2
    assert b'dataset_dir is "boooks"' in result.stderr
    assert not (home / "checkpoints").exists()
    assert seconds < 5  # under a second on an idle machine; a trainer that loads torch takes longer


def test_the_console_can_say_which_devices_are_missing(monkeypatch):
    from core.system import hardware

    monkeypatch.setattr(hardware, "has_cuda", lambda: False)
    monkeypatch.setattr(hardware, "has_mps", lambda: True)
    assert hardware.missing_devices() == {"cuda": "no NVIDIA device is visible"}
