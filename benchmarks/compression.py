"""How fast a model compresses and decompresses: KB/s with and without loading, and beside xz.

    python -m benchmarks.compression FILE... --data DIR [--device cuda] [--minutes 1.2] [--out DIR]
    python -m benchmarks.compression FILE... --checkpoint C [--device cuda]

Without a checkpoint the `book` preset of the device is trained on DIR's texts for so many minutes; a second
call uses the same run. Each file is compressed and restored in this process after a short text has warmed
it up (kernels are compiled, the model is on the device), and then by the command in processes of its own.
What comes back is compared with the file. Figures are lines of a markdown table, and added
to OUT/compression.md.
"""

from __future__ import annotations

import argparse
import lzma
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.trained import trained
from core.compression.compress import Result, compress, decompress
from core.compression.fingerprints import arithmetic_name

HEAD = "| file | bytes | streams | bits/byte | xz -9e | compress | decompress | with loading | and back |"


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint, facts = trained(
            options.out, f"book-{options.device}", options.data, cuda=options.device == "cuda",
            device=options.device, time_budget=options.minutes, max_iters=0,
        )  # fmt: skip
        say(options.out, f"\n`book`, {facts['steps']:,} steps, {facts['bits_per_byte']:.3f} bits/byte")
    say(
        options.out,
        f"\n{arithmetic_name(torch.device(options.device))}, {options.workers or 'all'} workers\n",
    )
    say(options.out, f"{HEAD}\n{'| --- ' * HEAD.count(' | ')}| --- |")
    for source in options.files:
        say(options.out, row(source, checkpoint, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, help="folder of texts to train on, FILE not among them")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=1.2, help="of training (default 1.2)")
    parser.add_argument("--streams", type=int, help="texts read side by side (default: by the file's size)")
    parser.add_argument("--workers", type=int, help="processes on CPU (default: one a core)")
    parser.add_argument("--out", type=Path, default=Path("compression-results"))
    options = parser.parse_args()
    if options.checkpoint is None and options.data is None:
        parser.error("--data names the texts to train on, or --checkpoint a model")
    return options


def say(out: Path, text: str) -> None:
    """Print, and add to the results."""
    print(text, flush=True)
    with (out / "compression.md").open("a") as file:
        file.write(text + "\n")


def row(source: Path, checkpoint: Path, options: argparse.Namespace) -> str:
    """A line of the table."""
    data = source.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "sample")
        sample.write_bytes(data[: min(len(data), 1 << 15)])
        both_ways(sample, checkpoint, Path(folder), options)
        coded, back = both_ways(source, checkpoint, Path(folder), options)
        assert Path(folder, "back").read_bytes() == data, f"{source} did not come back"
        seconds = [with_loading(words, checkpoint, options) for words in (
            ["compress", str(source), "-o", f"{folder}/by-command.mtz"],
            ["decompress", f"{folder}/by-command.mtz", "-o", f"{folder}/by-command"],
        )]  # fmt: skip
        assert Path(folder, "by-command").read_bytes() == data, f"{source} did not come back"
    xz = 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
    durations = [coded.seconds - coded.loading, back.seconds - back.loading, *seconds]
    speeds = [f"{len(data) / 1e3 / duration:.1f} KB/s" for duration in durations]
    figures = [
        f"{len(data):,}",
        coded.streams,
        f"{8 * coded.compressed / len(data):.3f}",
        f"{xz:.3f}",
        *speeds,
    ]
    return "| " + " | ".join(map(str, [source.name, *figures])) + " |"


def both_ways(
    source: Path, checkpoint: Path, folder: Path, options: argparse.Namespace
) -> tuple[Result, Result]:
    """Compress a file and decompress it in this process; what loading took is said apart."""
    small = folder / "small.mtz"
    common = {"device": options.device, "workers": options.workers}
    coded = compress(source, small, checkpoint, streams=options.streams, **common)
    return coded, decompress(small, folder / "back", checkpoint, **common)


def with_loading(words: list[str], checkpoint: Path, options: argparse.Namespace) -> float:
    """The seconds that the command takes, all of it."""
    more = ["--checkpoint", str(checkpoint), "--device", options.device, "--force"]
    for name in ("streams", "workers"):
        if getattr(options, name) and (name != "streams" or words[0] == "compress"):
            more += [f"--{name}", str(getattr(options, name))]
    began = time.monotonic()
    command = [sys.executable, "-m", "mamba_tui.cli.main", *words, *more]
    subprocess.run(command, check=True, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
