"""The GPU benchmark loses no results to a failure, to a part that hangs, or to its time limit."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_measure import keep_going, report, settings


@pytest.fixture
def parts_are(monkeypatch):
    """Let every part run this program instead."""

    original = subprocess.Popen

    def choose(program: str) -> None:
        def start(command, **options):
            assert command[1:3] == ["-m", "benchmarks.gpu"]
            return original([sys.executable, "-c", program], **options)

        monkeypatch.setattr(gpu.subprocess, "Popen", start)

    return choose


def test_what_no_longer_fits_is_left_out(parts_are, capsys):
    parts_are("raise AssertionError")
    gpu.run_parts(["scan", "decode"], limit=gpu.LEAST - 1)
    assert capsys.readouterr().out.count("skipped, only") == 2


def test_a_part_that_hangs_is_ended_and_one_that_fails_is_told(parts_are, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", {"scan": 0.2, "decode": 60})
    parts_are("import time; time.sleep(60)")
    gpu.run_parts(["scan"], limit=100)
    parts_are("raise SystemExit(3)")
    gpu.run_parts(["decode"], limit=100)
    scan, decode = [line for line in capsys.readouterr().out.splitlines() if line]
    assert re.match(r"  \(scan: \d+ s, STOPPED", scan)
    assert decode.endswith("exit code 3)")


def test_every_part_can_be_run_and_a_failure_inside_is_told(monkeypatch, capsys):
    ran = []

    def works(name=""):
        ran.append(name)
        raise RuntimeError("no such kernel")

    for name in ("training", "decoding", "tests", "scans", "peer_scans", "nanogpt", "operations"):
        monkeypatch.setattr(gpu, name, lambda *arguments, name=name: works(*arguments or (name,)))
    monkeypatch.setattr(settings, "device", "cpu")
    for part in gpu.PARTS:
        gpu.run_part(part)
    names = {"decode": "decoding", "scan": "scans", "peer-scans": "peer_scans"}
    assert ran == [names.get(part, part) for part in gpu.PARTS]
    assert capsys.readouterr().out.count("FAILED: RuntimeError: no such kernel") == len(gpu.PARTS)


def test_figures_are_kept_where_files_come_back_from(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    report("first")
    with keep_going("second"):
        raise ValueError("why")
    assert (tmp_path / "gpu.txt").read_text().splitlines() == ["first", "  second FAILED: ValueError: why"]
