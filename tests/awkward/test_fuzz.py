"""Generated command lines, files and folders for the command line itself; see benchmarks/fuzz.py.

`python -m benchmarks.fuzz --cases 100000 --workers 16` runs many; these are enough to notice a mistake.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_cases import KINDS
from tests.run_tools import ROOT

CASES = os.environ.get("MAMBA_TUI_FUZZ", "250")


def test_no_promise_is_broken():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases", CASES, "--seed", "7"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert all(f"| {kind} |" in result.stdout for kind in KINDS)
    assert ", 0 failures" in result.stdout


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "COLUMNS"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path)))
    return fuzz.Bench(tmp_path / "worker", 1, b"")


def crash(line):
    raise RuntimeError("unforeseen")


def swell(line):
    print("x" * 300_000)
    return 2


def change(line):
    with open("notes.txt", "w") as file:
        file.write("spoilt")
    return 0


def add(line):
    with open("more", "w") as file:
        file.write("more")
    return 0


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (crash, "unforeseen"),
        (swell, "300,001 characters"),
        (change, "home folder was changed"),
        (add, "home folder was changed"),
        (lambda line: 3, "exit code 3"),
        (lambda line: 2, ""),
    ],
)
def test_the_fuzzer_notices(bench, monkeypatch, command, problem):
    monkeypatch.setattr(fuzz, "command_line", command)
    for _ in range(2):  # what a case has spoilt is whole again for the next
        result, _ = bench.run("run folders", 3)
        assert problem in result.problem
        assert bool(problem) == bool(result.problem)


def test_a_case_depends_on_its_number_alone(bench):
    first, again = (bench.run("run folders", 5)[1] for _ in range(2))
    assert first == again
    assert bench.run("run folders", 6)[1] != first
