"""Many generated inputs through the command line itself: nothing may fail, hang, swell or change a file.

    python -m benchmarks.fuzz --cases 100000 --workers 16 --seed 1

Each worker has its own home folder, calls `mamba_tui.cli.main` in its own process with captured streams, and
checks after every case: an exit code that the README lists, no traceback, an answer of limited length, the
home folder unchanged byte for byte, no more than SLOWEST seconds or LARGEST bytes. Nothing starts another
process, and Textual is never needed. A case depends only on seed, kind and number: `--kind datasets --only
4711` runs one again and shows its answer.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.fuzz_cases import KINDS, MODEL, SENTENCE, example_of
from core.config.schema import build
from core.errors import UserError
from core.runs import prepare_run
from mamba_tui.cli.main import main as command_line
from mamba_tui.cli.streams import say_error

EXIT_CODES = (0, 1, 2, 130)
SLOWEST = 2.0
"""The most processor seconds for a case."""
HANGING = 20.0
"""Seconds after which a case that waits for something is ended."""
LARGEST = 500 << 20
LONGEST_ANSWER = 200_000
ALLOWED_BEYOND = 2 << 30  # of address space, so that a greedy case fails alone


@dataclasses.dataclass
class Result:
    """The result of one case."""

    kind: str
    number: int
    code: int | None
    seconds: float
    waited: float
    memory: int
    problem: str = ""


class HangingError(Exception):
    """A case that took longer than HANGING."""


class Bench:
    """A worker's own folders, and how it runs a case in them."""

    def __init__(self, folder: Path, seed: int, checkpoint: bytes) -> None:
        self.seed = seed
        self.checkpoint = checkpoint
        self.home, self.given = folder / "home", folder / "given"
        self.cache = folder / "cache"
        self.home.mkdir(parents=True)
        os.environ |= {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.cache),
                       "XDG_CONFIG_HOME": str(folder / "config"), "XDG_STATE_HOME": str(folder / "state"),
                       "COLUMNS": "100"}  # fmt: skip
        _furnish(self.home, checkpoint)
        self.before = contents(self.home)

    def run(self, kind: str, number: int) -> tuple[Result, str]:
        """Run one case. Returns its result, its command line and the answer."""
        shutil.rmtree(self.given, ignore_errors=True)
        self.given.mkdir()
        os.chdir(self.home)
        r = random.Random(f"{self.seed} {kind} {number}")
        line = KINDS[kind][1](r, self.given, self.home)
        shelf = contents(self.given) if kind == "datasets" else {}
        base = _reset_peak()
        began, cpu = time.monotonic(), time.process_time()
        code, answer = _call(line)
        result = Result(kind, number, code, time.process_time() - cpu, time.monotonic() - began, 0)
        result.memory = max(0, _peak() - base)
        result.problem = self._problem(result, answer) or self._changed(kind, shelf)
        return result, f"{line!r}\n{answer}"

    def _problem(self, result: Result, answer: str) -> str:
        if result.code not in EXIT_CODES:
            return f"exit code {result.code}: {answer[-300:]}"
        if "Traceback" in answer or "internal error" in answer:
            return answer[-600:]
        if len(answer) > LONGEST_ANSWER:
            return f"an answer of {len(answer):,} characters"
        if result.seconds > SLOWEST:
            return f"{result.seconds:.1f} s"
        return f"{result.memory >> 20} MB" if result.memory > LARGEST else ""

    def _changed(self, kind: str, shelf: dict[str, Any]) -> str:
        """What the case changed although it must not; its permitted additions are removed again."""
        after = contents(self.home)
        if after == self.before and (not shelf or contents(self.given) == shelf):
            shutil.rmtree(self.cache, ignore_errors=True)
            return ""
        kept = {name: after.get(name) for name in self.before}
        problem = "" if kept == self.before else "something in the home folder was changed"
        if kind not in ("command lines", "configurations") and after != self.before:
            problem = "the home folder was changed"
        if shelf and contents(self.given) != shelf:
            problem = "the dataset folder was changed"
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        os.chdir(self.home)
        _furnish(self.home, self.checkpoint)
        self.before = contents(self.home)
        return problem


def _furnish(home: Path, checkpoint: bytes) -> None:
    """A user's files: texts, a run that has ended, a checkpoint, files of other programs."""
    for name in ("texts", "dataset"):
        (home / name).mkdir()
        (home / name / "a.txt").write_text(SENTENCE * 50)
    (home / "notes.txt").write_text("precious")
    (home / "current_configuration.json").write_text('{"configuration_version": 1, "config": {}}\n')
    run = prepare_run(home / "checkpoints", "old", build(MODEL | {"dataset_dir": str(home / "texts")}))
    run.events_path.write_text(json.dumps(example_of("run")) + "\n")
    (home / "checkpoints" / "right.pt").write_bytes(checkpoint)


def contents(folder: Path) -> dict[str, Any]:
    """Every entry below a folder: its kind and mode, its link target, its content."""
    contents: dict[str, Any] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            info = os.lstat(path)
            what: Any = None
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
            elif stat.S_ISLNK(info.st_mode):
                what = os.readlink(path)
            contents[path] = (info.st_mode, what)
    return contents


def _call(line: list[str]) -> tuple[int | None, str]:
    """The exit code of a command run in this process, and everything it printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2)]
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, HANGING)
    code: int | None
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            try:
                code = load(line[1]) if line[0] == "load" else command_line(line)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
            except HangingError:
                code = None
                print(f"still at it after {HANGING:g} s", file=sys.stderr)
            except BaseException:
                code = None
                traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdin = before
    for stream in streams:
        stream.flush()
    return code, "".join(stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]


def _too_long(number: int, frame: FrameType | None) -> None:
    raise HangingError


def load(path: str) -> int:
    """Use a checkpoint as `generate` and `train --resume` do, without their processes."""
    from benchmarks.fuzz_checkpoint import use

    try:
        use(Path(path))
    except UserError as error:
        say_error(f"mamba-tui: {error}")
        return 2
    return 0


def _peak(name: bytes = b"VmHWM:") -> int:
    """The most memory this process has used since `_reset_peak`, in bytes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_bytes()
        return int(status.split(name)[1].split()[0]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _reset_peak() -> int:
    """Start measuring again. Returns the bytes in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a sandbox without it: the peak of all cases so far
        return _peak()
    return _peak(b"VmRSS:")


def no_process(*arguments: object, **options: object) -> None:
    """Replaces subprocess.Popen."""
    raise UserError("a process would have been started")


class NoTextual:
    """Refuses to import the console's library: no command without a screen may need it."""

    def find_spec(self, name: str, *_: object) -> None:
        """Called by `import`."""
        if name.partition(".")[0] == "textual":
            raise ImportError("the fuzzer never opens the console")


def confine() -> None:
    """Keep this process from starting others, importing the console, and taking too much memory."""
    subprocess.Popen = no_process  # type: ignore[assignment, misc]
    sys.meta_path.insert(0, NoTextual())  # type: ignore[arg-type]
    most = _peak(b"VmSize:") + ALLOWED_BEYOND
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def cases(count: int, kinds: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(kind, number) of all cases, every kind by its share."""
    chosen = list(kinds)
    whole = sum(KINDS[kind][0] for kind in chosen)
    for kind in chosen:
        for number in range(math.ceil(count * KINDS[kind][0] / whole)):
            yield kind, number


def work(folder: Path, plan: list[tuple[str, int]], seed: int, checkpoint: bytes, core: int) -> None:
    """One worker: runs its cases and writes a line to `results` for each."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {core})
    confine()
    bench = Bench(folder, seed, checkpoint)
    with open(folder / "results", "a") as results:
        for kind, number in plan:
            print(json.dumps([kind, number]), file=results, flush=True)
            result, answer = bench.run(kind, number)
            shown = answer[:2000] if result.problem else ""
            print(json.dumps([*dataclasses.astuple(result), shown]), file=results, flush=True)


def run_all(count: int, workers: int, seed: int, kinds: Iterable[str]) -> list[Result]:
    """Run all cases on several processes. A worker that dies is replaced, and its case is a failure."""
    plan = list(cases(count, kinds))
    context = multiprocessing.get_context("fork")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="mamba-tui-fuzz-") as scratch:
        checkpoint = _right_checkpoint(Path(scratch))
        waiting = {worker: plan[worker::workers] for worker in range(workers)}
        running: dict[int, tuple[Any, Path]] = {}
        began = shown = time.monotonic()
        turn = 0
        while waiting or running:
            for worker, part in list(waiting.items()):
                if worker not in running:
                    folder = Path(scratch) / f"{worker}-{turn}"
                    turn += 1
                    folder.mkdir()
                    core = cores[worker % len(cores)]
                    process = context.Process(target=work, args=(folder, part, seed, checkpoint, core))
                    process.start()
                    running[worker] = (process, folder)
                    del waiting[worker]
            for worker, (process, folder) in list(running.items()):
                process.join(0.2)
                if process.exitcode is None:
                    continue
                done, rest = _read(folder / "results", plan[worker::workers], process.exitcode)
                results += done
                if rest:
                    waiting[worker] = rest
                shutil.rmtree(folder, ignore_errors=True)
                del running[worker]
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                lines = sum(_lines(folder / "results") for _, folder in running.values())
                print(f"  {len(results) + lines // 2:,} of {len(plan):,}, {shown - began:.0f} s", flush=True)
    return results


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _read(path: Path, plan: list[tuple[str, int]], code: int) -> tuple[list[Result], list[tuple[str, int]]]:
    """What a worker that has ended got done, and what is left of its plan."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = [Result(*row[:7]) for row in rows if len(row) > 2]
    for row in rows:
        if len(row) > 2 and row[6]:
            print(f"--kind {row[0]!r} --only {row[1]}: {row[6]}\n{row[7]}\n", flush=True)
    if not rows:
        raise SystemExit(f"a worker could not begin (exit code {code})")
    if len(rows[-1]) == 2:  # it died of this one
        kind, number = rows[-1]
        done.append(Result(kind, number, None, 0, 0, 0, f"the process died with exit code {code}"))
        print(f"--kind {kind!r} --only {number}: {done[-1].problem}\n", flush=True)
    last = (rows[-1][0], rows[-1][1])
    return done, plan[plan.index(last) + 1 :]


def _right_checkpoint(scratch: Path) -> bytes:
    """A checkpoint as training writes it."""
    from benchmarks.fuzz_checkpoint import right_checkpoint, use

    folder = scratch / "training"
    folder.mkdir()
    (folder / "a.txt").write_text(SENTENCE * 50)
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    os.environ["XDG_STATE_HOME"] = str(scratch / "state")
    checkpoint = right_checkpoint(build(MODEL | {"dataset_dir": str(folder)}), scratch / "runs")
    path = folder / "checkpoint_step_2.pt"
    path.write_bytes(checkpoint)
    use(path)  # imports everything that a case needs, once for all workers
    return checkpoint


def table(results: list[Result], seconds: float) -> str:
    """The results, one line per kind."""
    lines = [
        "| kind | cases | exit codes | longest | largest | failures |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind in dict.fromkeys(result.kind for result in results):
        some = [result for result in results if result.kind == kind]
        codes = collections.Counter(result.code for result in some)
        told = ", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items(), key=str))
        longest, largest = max(r.seconds for r in some), max(r.memory for r in some)
        bad = sum(bool(result.problem) for result in some)
        lines.append(
            f"| {kind} | {len(some):,} | {told} | {longest:.2f} s | {largest / 1e6:.0f} MB | {bad} |"
        )
    bad = sum(bool(result.problem) for result in results)
    return "\n".join([*lines, "", f"{len(results):,} cases in {seconds:.0f} s, {bad} failures"])


def main() -> int:
    """Run everything. The exit code is 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=sorted(KINDS), help="only this kind")
    parser.add_argument("--only", type=int, help="only the case of this number, with its answer")
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else list(KINDS)
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="mamba-tui-fuzz-") as scratch:
            checkpoint = _right_checkpoint(Path(scratch))
            confine()
            bench = Bench(Path(scratch) / "one", options.seed, checkpoint)
            result, answer = bench.run(kinds[0], options.only)
            print(answer, result, sep="\n")
            os.chdir("/")
            return int(bool(result.problem))
    began = time.monotonic()
    results = run_all(options.cases, options.workers, options.seed, kinds)
    print(table(results, time.monotonic() - began))
    return int(any(result.problem for result in results))


if __name__ == "__main__":
    sys.exit(main())
