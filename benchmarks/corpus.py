"""Preparing text at full size: 2 GB of books, one line of 2 GB, ten thousand notes.

    python -m benchmarks.corpus [--megabytes 2000] [--parts books,line,notes] [--folder /tmp/...]

`books`  fifty files of shuffled paragraphs, prepared by a process that is killed (SIGKILL) half way and
         then by a second one that finishes the work. Before and after, tiktoken's own `encode_batch`
         encodes part of the same text with the same vocabulary on all cores. Compares megabytes per
         second and reports peak memory.
`line`   one file with a single line of the full size.
`notes`  10,000 files of 1 KB, and the time it takes to open them again unchanged.

Everything is written to a temporary folder and deleted afterwards. Paragraphs come from --texts, by default
from the Python language reference, which comes with every Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY_MB = 600
SPEED = 0.8
REOPEN_SECONDS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--parts", default="books,line,notes")
    parser.add_argument("--folder", help="where to work (default: the temporary folder)")
    parser.add_argument("--texts", help="folder of .txt files to take paragraphs from")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    good = True
    folder = Path(tempfile.mkdtemp(prefix="mamba-tui-corpus-", dir=arguments.folder))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # here and in the child processes
    try:
        paragraphs = read_paragraphs(arguments.texts)
        for part in arguments.parts.split(","):
            good &= PARTS[part](folder / part, paragraphs, arguments.megabytes * 1_000_000)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def read_paragraphs(texts: str | None) -> list[str]:
    from core.data.sample_corpus import sample_documents

    if texts:
        whole = "\n\n".join(
            path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
            for path in sorted(Path(texts).rglob("*.txt"))
        )
    else:
        whole = "\n\n".join(sample_documents().values())
    return [paragraph for paragraph in whole.split("\n\n") if paragraph.strip() and "***" not in paragraph]


def shuffled(paragraphs: list[str], size: int, seed: int, join: str = "\n\n") -> str:
    chance = random.Random(seed)
    chosen, length = [], 0
    while length < size:
        paragraph = chance.choice(paragraphs)
        chosen.append(paragraph if join == "\n\n" else paragraph.replace("\n", " "))
        length += len(paragraph) + len(join)
    return join.join(chosen)


# ------------------------------------------------------------------------------------------ children


def child(what: str, folder: str) -> None:
    """Work in a separate process, whose memory can be measured and which can be killed."""
    began, cpu = time.monotonic(), cpu_seconds()
    if what == "prepare":
        result = prepare_here(folder)
    else:
        result = encode_batch_here(folder)
        began -= result.pop("outside")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = result.pop("seconds", time.monotonic() - began)
    result |= {
        "seconds": seconds,
        "cpu_seconds": result.get("cpu_seconds", cpu_seconds() - cpu),
        "peak_mb": usage.ru_maxrss / 1024,
    }
    print(json.dumps(result), flush=True)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def prepare_here(folder: str) -> dict[str, object]:
    from core.config.schema import DataConfig
    from core.data.corpus import prepare

    stages: dict[str, float] = {}
    last = time.monotonic()

    def tell(progress) -> None:
        nonlocal last
        now = time.monotonic()
        stages[progress.stage] = stages.get(progress.stage, 0.0) + now - last
        last = now
        print(json.dumps({"stage": progress.stage, "share": progress.fraction}), flush=True)

    corpus = prepare(DataConfig(dataset_dir=folder), 1, progress=tell)
    corpus.tokenizer.save(Path(folder) / "tokenizer.json")
    return {
        "bytes": corpus.train.text_bytes + corpus.validation.text_bytes,
        "tokens": len(corpus.train) + len(corpus.validation),
        "vocabulary": corpus.tokenizer.vocab_size,
        "files": len(corpus.read),
        "encoded_files": corpus.encoded_files,
        "stages": {stage: round(seconds, 1) for stage, seconds in stages.items()},
    }


def encode_batch_here(folder: str) -> dict[str, object]:
    """A tenth of the text, file by file, in pieces of 128 K characters, by tiktoken's own means."""
    from core.data.tokenizer.tokenizer import Tokenizer
    from core.system.hardware import available_cores

    encoding = Tokenizer.load(Path(folder) / "tokenizer.json").encoding
    files = sorted(Path(folder).glob("*.txt"))
    size = seconds = cpu = 0.0
    for path in files[:: max(1, len(files) // 6)]:
        text = path.read_text(encoding="utf-8")
        pieces = [text[low : low + (1 << 17)] for low in range(0, len(text), 1 << 17)]
        size += path.stat().st_size
        began, cpu_began = time.monotonic(), cpu_seconds()
        encoding.encode_batch(pieces, num_threads=available_cores(), disallowed_special=())
        seconds += time.monotonic() - began
        cpu += cpu_seconds() - cpu_began
    return {"bytes": size, "seconds": seconds, "cpu_seconds": cpu, "outside": 0.0}


def run(what: str, folder: Path, kill_at: float | None = None) -> dict[str, object] | None:
    """Run a child and return its result. With `kill_at` it is killed once that much is encoded; then None."""
    command = [sys.executable, "-m", "benchmarks.corpus", "--child", what, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        last: dict[str, object] = {}
        for line in process.stdout:
            last = json.loads(line)
            share = float(last.get("share", 0.0))  # type: ignore[arg-type]
            if kill_at is not None and last.get("stage") == "encoding" and share >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                return None
    return last if "seconds" in last else None


# --------------------------------------------------------------------------------------------- parts


def books(folder: Path, paragraphs: list[str], size: int) -> bool:
    folder.mkdir(parents=True)
    count = 50
    for number in range(count):
        text = shuffled(paragraphs, size // count, number)
        (folder / f"book {number:02}.txt").write_text(text, encoding="utf-8")
    print(f"books: {count} files, {size / 1e6:,.0f} MB", flush=True)
    assert run("prepare", folder, kill_at=0.4) is None
    second = run("prepare", folder)
    assert second is not None
    redone = int(second["encoded_files"])  # type: ignore[call-overload]
    print(f"  killed at 40%; the next start encoded {redone} of {count} files", flush=True)
    from core.data.corpus.cleaning import clean

    batch_before = run("batch", folder)
    clean(str(folder))
    whole = run("prepare", folder)
    batch_after = run("batch", folder)
    assert whole is not None
    assert batch_before is not None
    assert batch_after is not None
    show("prepared in one go", whole)
    print(f"  stages, seconds: {whole['stages']}; vocabulary {whole['vocabulary']:,}")
    show("encode_batch before", batch_before)
    show("encode_batch after", batch_after)
    both = speed(batch_before, batch_after)
    ratio, cpu_ratio = (
        speed(whole) / both,
        speed(whole, of="cpu_seconds") / speed(batch_before, batch_after, of="cpu_seconds"),
    )
    print(f"  {ratio:.0%} of encode_batch by the clock, {cpu_ratio:.0%} by processor time")
    peak = max(float(whole["peak_mb"]), float(second["peak_mb"]))  # type: ignore[arg-type]
    return check(
        {
            "finished files were not encoded again": 0 < redone < 0.7 * count,
            f"at least {SPEED:.0%} of encode_batch": ratio >= SPEED,
            f"peak memory {peak:.0f} MB, below {MEMORY_MB}": peak < MEMORY_MB,
        }
    )


def line(folder: Path, paragraphs: list[str], size: int) -> bool:
    folder.mkdir(parents=True)
    with open(folder / "line.txt", "w", encoding="utf-8") as file:
        for number in range(max(1, size // 20_000_000)):
            file.write(shuffled(paragraphs, min(size, 20_000_000), number, join=" "))
    print(f"line: one line of {(folder / 'line.txt').stat().st_size / 1e6:,.0f} MB", flush=True)
    result = run("prepare", folder)
    assert result is not None
    show("prepared", result)
    peak = float(result["peak_mb"])  # type: ignore[arg-type]
    return check({f"peak memory {peak:.0f} MB, below {MEMORY_MB}": peak < MEMORY_MB})


def notes(folder: Path, paragraphs: list[str], size: int) -> bool:
    from core.config.schema import DataConfig
    from core.data.corpus import prepare

    for number in range(10_000):
        part = folder / f"{number // 1000}"
        part.mkdir(parents=True, exist_ok=True)
        (part / f"note {number}.txt").write_text(shuffled(paragraphs, 1000, number)[:1000])
    print("notes: 10,000 files of 1 KB", flush=True)
    first = run("prepare", folder)
    assert first is not None
    show("prepared", first)
    prepare(DataConfig(dataset_dir=str(folder)), 1)
    times = []
    for _ in range(5):
        began = time.monotonic()
        corpus = prepare(DataConfig(dataset_dir=str(folder)), 1)
        times.append(time.monotonic() - began)
    assert corpus.encoded_files == 0
    print(f"  opened again in {sorted(round(t, 3) for t in times)} seconds")
    middle = sorted(times)[2]
    return check({f"opened again in {middle:.2f} s, below {REOPEN_SECONDS}": middle < REOPEN_SECONDS})


PARTS = {"books": books, "line": line, "notes": notes}


def speed(*results: dict[str, object], of: str = "seconds") -> float:
    """Megabytes per second over all of them."""
    size = sum(float(result["bytes"]) for result in results)  # type: ignore[arg-type]
    return size / sum(float(result[of]) for result in results) / 1e6  # type: ignore[arg-type]


def show(title: str, result: dict[str, object]) -> None:
    megabytes, seconds = float(result["bytes"]) / 1e6, float(result["seconds"])  # type: ignore[arg-type]
    print(
        f"  {title}: {megabytes:,.0f} MB in {seconds:,.1f} s, {megabytes / seconds:.1f} MB/s, "
        f"{result['cpu_seconds']:,.0f} s of processor time, peak {result['peak_mb']:,.0f} MB",
        flush=True,
    )


def check(claims: dict[str, bool]) -> bool:
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO '} {claim}", flush=True)
    return all(claims.values())


if __name__ == "__main__":
    sys.exit(main())
