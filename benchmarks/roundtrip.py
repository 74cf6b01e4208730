"""Whether everything that is compressed comes back byte for byte: made-up byte strings, and whole folders.

    python -m benchmarks.roundtrip [--strings 1000] [--folder DIR]... [--seed 0] [--device cpu]

A string has 0 to 100 KB. One in three is noise, stored as it is; the others are made so that the model
codes them: few kinds of bytes, repeated pieces, text with stray bytes, CR LF line ends. A tiny model with one
layer of each kind does the work, in this process, through files and all checks. Ends with how many came back
the same, and with exit code 1 if any differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from core.checkpoint import save
from core.compression.compress import compress, decompress
from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.model import GPT
from core.runs import CheckpointInfo, checkpoint_path

SHAPE = {
    "n_embd": [16, 8, 16], "n_head": 2, "attention_type": ["mamba", "standard", "mamba2"], "block_size": 16,
}  # fmt: skip
LONGEST = 100_000
WORDS = ["the", "of", "and", "a", "to", "in", "he", "was", "that", "it", "his", "her", "with", "as", "had"]
STREAMS = (3, 50, 100, 200, 300, 400, 500)
"""Many, so that a string takes few steps, and sometimes few."""
REPORT = 50


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    generator = np.random.default_rng(options.seed)
    results, began = Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tiny_checkpoint(Path(folder))
        for number in range(1, options.strings + 1):
            kind, data = made_up(generator)
            source = Path(folder, "string")
            source.write_bytes(data)
            streams = int(generator.choice(STREAMS))
            results[f"{kind}: {check(source, checkpoint, options, streams)}"] += 1
            if number % REPORT == 0:
                print(f"{number:,} strings, {time.monotonic() - began:.0f} s", flush=True)
        for path in files(options.folder):
            outcome = check(path, checkpoint, options)
            results[f"file: {outcome}"] += 1
            print(f"{path}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)
    for outcome, count in sorted(results.items()):
        print(f"{count:>6,}  {outcome}")
    return 1 if any("DIFFERS" in outcome for outcome in results) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strings", type=int, default=1000)
    parser.add_argument("--folder", action="append", default=[], help="every file below it; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def tiny_checkpoint(folder: Path) -> Path:
    """A checkpoint of a model whose layers all do something."""
    torch.manual_seed(0)
    tokenizer, config = byte_tokenizer(), build(SHAPE)
    model = GPT(config.model, tokenizer.vocab_size)
    for parameter in model.parameters():
        if not parameter.any():  # a new model's layers change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    payload = {
        "format": 2, "step": 1, "config": flat(config), "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.to_dict(), "model": model.state_dict(),
    }  # fmt: skip
    path = checkpoint_path(folder, 1)
    save(path, payload, CheckpointInfo(1, path, 0, "", None, 1.0, None, 0.0, best=False))
    return path


def made_up(generator: np.random.Generator) -> tuple[str, bytes]:
    """A kind of byte string, and one of that kind."""
    size = int(generator.integers(0, LONGEST + 1))
    noise = generator.integers(0, 256, size, np.uint8).tobytes()
    words = b" ".join(word.encode() for word in generator.choice(WORDS, size // 4 + 1))[:size]
    match int(generator.integers(0, 6)):
        case 0 | 1:
            return "noise", noise
        case 2:
            few = generator.integers(0, 256, int(generator.integers(1, 9)), np.uint8)
            return "few kinds of bytes", generator.choice(few, size).tobytes()
        case 3:
            piece = noise[: int(generator.integers(1, 2_000))]
            return "a repeated piece", (piece * (size // len(piece) + 1))[:size] if piece else b""
        case 4:
            stray = bytearray(words)
            for at in generator.integers(0, max(1, size), size // 1_000):
                stray[int(at) : int(at) + 1] = noise[int(at) : int(at) + 1]
            return "text with stray bytes", bytes(stray)
        case _:
            return "text with CR LF", words.replace(b" and ", b"\r\n")


def files(folders: list[str]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in Path(folder).rglob("*") if path.is_file())


def check(source: Path, checkpoint: Path, options: argparse.Namespace, streams: int | None = None) -> str:
    """Compress a file, decompress it and compare."""
    with tempfile.TemporaryDirectory() as folder:
        small, back = Path(folder, "small.mtz"), Path(folder, "back")
        common = {"device": options.device, "workers": options.workers}
        compress(source, small, checkpoint, streams=streams, **common)
        decompress(small, back, checkpoint, **common)
        return "the same" if back.read_bytes() == source.read_bytes() else "DIFFERS"


if __name__ == "__main__":
    sys.exit(main())
