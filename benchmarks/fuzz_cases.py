"""Generated inputs for `benchmarks/fuzz.py`: each function makes one case from a random generator.

A case may write into `folder`, which is its own, and returns the command line to call. It never changes the
content of other files or folders. To add a kind, write a function and add it to `KINDS`.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import math
import os
import random
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config.schema import SETTINGS
from core.runs.events import KINDS as EVENT_KINDS

# The model of the runs and checkpoints that are damaged.
MODEL = {"n_embd": [16, 12], "n_head": 2, "attention_type": ["mamba", "standard"], "block_size": 16,
         "batch_size": 3, "tokenizer": "byte", "device": "cpu", "max_iters": 24, "threads": 1}  # fmt: skip
SENTENCE = "The old man walked home and the rain fell.\n"
WORDS = [
    "", "-", "--", "..", ".", "/", "texts", "old", "r", "nan", "1e309", "-0", "1_0", "٣", "x" * 300,
    "9" * 400, "[", "=", "~", "a\0b", "\udcff", "\x1b]0;x\x07", "null", "true", "/dev/null",
    "/proc/self/mem", "cuda:9", "auto", "-1", "[32]", "[16,16]", "2", "0", "0.5", "mamba",
    "notes.txt", "checkpoints", "best",
]  # fmt: skip
OPTIONS = [
    "--run", "--checkpoints", "--dataset", "--device", "--max-iters", "--config", "--preset", "--resume",
    "--fresh", "--detach", "--no-ui", "--read-only", "--lines", "--seconds", "--json", "--all", "--at",
    "--tokens", "--prompt", "--prompt-file", "--stop", "--temperature", "--top-k", "--top-p", "--min-p",
    "--repetition-penalty", "--seed", "--max-new-tokens", "--checkpoint", "--newest", "--sweep", "--random",
    "--prune", "--at-once", "--tag", "--after", "--forget-split", "--help", "--set", "--version", "-h",
]  # fmt: skip
COMMANDS = [
    "launch", "train", "generate", "attach", "runs", "stop", "pause", "resume", "finish", "save", "logs",
    "data", "bench", "sweep", "completion",
]  # fmt: skip
ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1251", "shift_jis", "utf-8-sig",
             "koi8-r", "gb18030", "big5"]  # fmt: skip
ALPHABETS = [
    "abc xyz\n\t",
    "Она шла домой. ",
    "春の雨がふる。",
    "\0\x07\x1b\r\n",
    "\U0001f600\u200d\u0301é",
    "0123456789eE+-._",
]

MARKS = ["<|endoftext|>", "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n", "\f", "\ufeff",
         "*** END OF THIS PROJECT GUTENBERG EBOOK\n"]  # fmt: skip
PATTERNS = ["(?s:.)", r"\w+|\W+", "x", "(", "(a+)+$", ".", "", "(?s:.)(?s:.)?", "[^\\x00]", r"\p{L}+|\P{L}"]

Arguments = list[str]


def text(r: random.Random, longest: int = 12) -> str:
    """A few characters of one of several alphabets, or any Unicode."""
    count = r.randrange(longest + 1)
    if r.random() < 0.2:
        return "".join(chr(r.randrange(0x110000)) for _ in range(count))
    return "".join(r.choices(r.choice(ALPHABETS), k=count))


def anything(r: random.Random) -> str:
    """A word as it might appear on a command line."""
    kind = r.randrange(5)
    if kind < 2:
        return r.choice(WORDS)
    if kind == 2:
        return text(r)
    if kind == 3:
        return str(r.choice([1, -1]) * r.randrange(10 ** r.randrange(1, 30)))
    return repr(r.choice([r.random(), r.gauss(0, 1e6), 10.0 ** r.randrange(-320, 308), math.inf, -0.0]))


def value(r: random.Random, depth: int = 0) -> Any:
    """A JSON value, with integers of any length and strings that no file can contain."""
    kind = r.randrange(10 if depth < 3 else 7)
    if kind == 0:
        return r.choice([None, True, False])
    if kind == 1:
        return r.randrange(-10, 1000)
    if kind == 2:
        return 10 ** r.choice([3, 18, 19, 40, 400, 10_000]) * r.choice([1, -1])
    if kind == 3:
        return r.choice([0.0, 1.5, -1e300, 1e-300, math.nan, math.inf, -math.inf])
    if kind < 6:
        return text(r, 8)
    if kind == 6:
        return r.choice(["mamba", "mamba2", "standard", "auto", "cpu", "byte", "\0", "\ud800", "x" * 5000])
    if kind == 7:
        return [value(r, depth + 1) for _ in range(r.randrange(5))]
    return {text(r, 5): value(r, depth + 1) for _ in range(r.randrange(4))}


def as_json(thing: Any) -> bytes:
    """JSON with integers of any length."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(thing).encode()
    finally:
        sys.set_int_max_str_digits(limit)


def noise(r: random.Random) -> bytes:
    """Bytes that are hardly ever valid."""
    if r.random() < 0.1:
        return r.choice([b"[", b'{"a":', b"\xff", b"1", b"\0"]) * r.choice([900, 5000, 100_000])
    return r.randbytes(r.randrange(200)) if r.random() < 0.5 else text(r, 80).encode("utf-8", "replace")


def damaged(r: random.Random, data: bytes) -> bytes:
    """Bytes with a few changed, removed or doubled."""
    damaged = bytearray(data)
    for _ in range(r.randrange(1, 5)):
        place = r.randrange(len(damaged) + 1)
        kind = r.randrange(4)
        if kind == 0 and place < len(damaged):
            damaged[place] = r.randrange(256)
        elif kind == 1:
            del damaged[place : place + r.randrange(1, 50)]
        elif kind == 2:
            damaged[place:place] = damaged[place : place + r.randrange(1, 50)]
        else:
            damaged[place:place] = r.choice([b"9" * 50, b"\0", b"-", b"1e999", b"]", b"\xff\xfe", b"null"])
    return bytes(damaged[: r.randrange(len(damaged) + 1)] if r.random() < 0.1 else damaged)


def mutated(r: random.Random, thing: Any) -> Any:
    """A copy of nested values, some of which are replaced or missing."""
    if isinstance(thing, dict):
        copy = {key: mutated(r, entry) for key, entry in thing.items() if r.random() > 0.03}
        if r.random() < 0.05:
            copy[text(r, 5)] = value(r)
        return copy
    if isinstance(thing, list) and len(thing) < 40:
        return [mutated(r, entry) for entry in thing if r.random() > 0.02]
    return value(r) if r.random() < 0.06 else thing


def special(r: random.Random, path: Path, home: Path) -> None:
    """Something that isn't a file where a file should be."""
    kind = r.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(home / r.choice(["notes.txt", "nothing", "texts", "current_configuration.json"]))
    elif kind == 2:
        path.symlink_to(r.choice(["/dev/zero", "/dev/null", "/proc/self/environ", "/proc/self/fd/0", "/"]))
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.touch(0)
    else:
        os.link(home / "notes.txt", path)


def write(r: random.Random, path: Path, content: bytes, home: Path, odd: float = 0.05) -> None:
    """A file, or now and then something special, in place of what was there."""
    if path.is_symlink() or path.exists():
        path.unlink()
    if r.random() < odd:
        special(r, path, home)
    else:
        path.write_bytes(content)


def command_line(r: random.Random, folder: Path, home: Path) -> Arguments:
    """Commands, options and values in any order."""
    line = [r.choice(COMMANDS) if r.random() < 0.9 else anything(r)]
    if line[0] == "data":
        line.append(r.choice(["info", "prepare", "sample", "clean", anything(r)]))
    for _ in range(r.randrange(6)):
        kind = r.random()
        if kind < 0.3:
            line += [r.choice(OPTIONS), anything(r)]
        elif kind < 0.5:
            line.append(r.choice(OPTIONS))
        elif kind < 0.75:
            key = r.choice(sorted(SETTINGS)) if r.random() < 0.9 else text(r, 6)
            line += [r.choice(["--set", "--set", "--set", "--sweep"]), f"{key}={anything(r)}"]
        elif kind < 0.9:
            line.append(anything(r))
        else:
            line += r.choice([["--checkpoints", "checkpoints"], ["--run", "old"], ["--dataset", "texts"]])
    return line


def configuration(r: random.Random, folder: Path, home: Path) -> Arguments:
    """A configuration file, JSON or TOML, more or less valid."""
    keys = sorted(SETTINGS)
    path = folder / r.choice(["c.json", "c.toml"])
    table = {r.choice(keys) if r.random() < 0.9 else text(r, 5): value(r) for _ in range(r.randrange(6))}
    right = {key: item.default for key, item in SETTINGS.items() if r.random() < 0.5}
    groups = ["config", "model", "training", "data", "hardware"]
    contents: list[Callable[[], bytes]] = [
        lambda: noise(r),
        lambda: as_json(table),
        lambda: as_json({r.choice(groups): table if r.random() < 0.7 else value(r), **table}),
        lambda: as_json({"configuration_version": 1, "config": right | table}),
        lambda: damaged(r, as_json({"config": right})),
        lambda: "\n".join(f"{key} = {anything(r)}" for key in table).encode("utf-8", "replace"),
        lambda: f"[{r.choice(groups)}]\n{r.choice(keys)} = {anything(r)}".encode("utf-8", "replace"),
    ]
    write(r, path, r.choice(contents)(), home)
    command = r.choice([["bench", "--json"], ["train", "--detach"], ["data", "info", "--dataset", "texts"]])
    return [*command, "--config", str(path)]


def example_of(kind: str) -> dict[str, Any]:
    """A plain event of a kind, as it is written."""
    plain = {int: 3, float: 1.0, str: "m", bool: True}
    hints = typing.get_type_hints(EVENT_KINDS[kind])
    fields = {item.name: plain.get(hints[item.name]) for item in dataclasses.fields(EVENT_KINDS[kind])}
    defaults: dict[str, Any] = {"versions": {}, "config": {}, "changes": {}, "resumed_from": None}
    return {**fields, **{name: defaults[name] for name in fields if name in defaults}, "kind": kind}


def event(r: random.Random) -> bytes:
    """One line of a history, more or less valid."""
    if r.random() < 0.15:
        return noise(r)
    fields = example_of(r.choice([*EVENT_KINDS, "run", "step", "end"]))
    for _ in range(r.randrange(3)):
        fields[r.choice([*fields, "kind", "time"])] = value(r)
    for _ in range(r.randrange(2)):
        fields.pop(r.choice(list(fields)), None)
    line = as_json(fields)
    return damaged(r, line) if r.random() < 0.1 else line


def run_folder(r: random.Random, folder: Path, home: Path) -> Arguments:
    """A foreign run: every file in it may be anything."""
    root, run = folder, folder / "r"
    (run / "control").mkdir(parents=True)
    frozen = (home / "checkpoints" / "old" / "config.toml").read_bytes()
    write(r, run / "config.toml", damaged(r, frozen) if r.random() < 0.2 else frozen, home)
    lines = b"\n".join(event(r) for _ in range(r.randrange(8))) + r.choice([b"", b"\n"])
    write(r, run / "events.jsonl", lines, home)
    step = r.randrange(30)
    manifest = {"format": 1, "step": step, "file": "x", "bytes": 3, "sha256": "0" * 64, "train_loss": 1.0,
                "validation_loss": 2.0, "bits_per_byte": 1.0, "time": 3.0}  # fmt: skip
    holder = {"pid": 1, "host": "h", "boot_id": "b", "started": 1.0}
    plan = {"format": 1, "prune": True, "at_once": 0, "after": "", "pruned": {}, "restarts": {},
            "variants": [{"run": "r", "changes": {"dropout": 0.1}}]}  # fmt: skip
    (root / ".sweeps").mkdir()
    others = {
        f"r/checkpoint_step_{step}.json": manifest,
        f"r/checkpoint_step_{step}.pt": 1,
        "r/run.lock": holder,
        "r/trainer.log": "x",
        "r/tokenizer.json": {"format": 1, "kind": "byte", "pattern": "x", "tokens": []},
        "r/split.json": {"format": 1, "validation": [], "seed": 1},
        "r/control/1-ab.json": {"command": "stop"},
        ".sweeps/s.json": plan,
    }
    for name, right in others.items():
        if r.random() < 0.4:
            kind = r.randrange(4)
            content = noise(r) if kind == 0 else as_json(mutated(r, right) if kind < 3 else value(r))
            write(r, root / name, content, home)
    commands = ["runs", "runs --json", "logs r", "attach r --no-ui", "stop r", "sweep s", "sweep", "finish r",
                "train --run r --resume --detach", "generate --run r --prompt x"]  # fmt: skip
    command = r.choice(commands).split(" ")
    return [*command, "--checkpoints", str(root)]


def dataset(r: random.Random, folder: Path, home: Path) -> Arguments:
    """A foreign dataset."""
    for number in range(r.randrange(1, 4)):
        name = (
            text(r, 20)
            .replace("/", "")
            .replace("\0", "")
            .encode("utf-8", "replace")[:60]
            .decode("utf-8", "ignore")
        )
        path = folder / (name + r.choice([".txt", ".txt", ".txt", ".txt.gz", ".md", ""]) or f"{number}.txt")
        if path.name in ("", ".", "..") or path.exists():
            path = folder / f"{number}.txt"
        kind = r.randrange(5)
        if kind == 0:
            content = noise(r)
        elif kind == 1:
            content = text(r, 400).encode("utf-8", "surrogatepass") * r.randrange(1, 40)
        elif kind == 2:
            content = (text(r, 60) or "x").encode(r.choice(ENCODINGS), "replace") * 30
        elif kind == 3:
            content = damaged(r, (SENTENCE * 50).encode())
        else:
            content = (SENTENCE * 20 + r.choice(MARKS)).encode() * r.randrange(1, 20)
        if path.suffix == ".gz":
            content = r.choice([content, gzip.compress(content, 1), damaged(r, gzip.compress(content, 1))])
        write(r, path, content, home)
    command = r.choice([["info"], ["info", "--json"], ["prepare"], ["sample", "--tokens", "5"], ["clean"]])
    line = ["data", *command, "--dataset", str(folder), "--set", "tokenizer=byte"]
    if r.random() < 0.3:
        line += ["--set", r.choice(["strip_gutenberg=false", "unwrap_lines=true", "encoding=cp1251",
                                    "outside_links=true"])]  # fmt: skip
    return line


def tokenizer(r: random.Random, folder: Path, home: Path) -> Arguments:
    """A tokenizer.json, more or less valid."""
    tokens = [base64.b64encode(bytes((byte,))).decode() for byte in range(256)]
    tokens += [base64.b64encode(word.encode()).decode() for word in ("he", "the", " the", "é")]
    right = {"format": 1, "kind": "bpe", "tokens": tokens, "pattern": r.choice(PATTERNS)}
    kind = r.randrange(5)
    if kind == 0:
        content = noise(r)
    elif kind == 1:
        content = damaged(r, as_json(right))
    elif kind == 2:
        r.shuffle(tokens)
        content = as_json(right)
    else:
        content = as_json(mutated(r, right))
    path = folder / "tokenizer.json"
    write(r, path, content, home)
    command = r.choice([["sample", "--tokens", "5"], ["prepare"], ["info"]])
    return ["data", *command, "--dataset", "texts", "--set", f"tokenizer={path}"]


def checkpoint(r: random.Random, folder: Path, home: Path) -> Arguments:
    """A foreign checkpoint, copied alone: `load CHECKPOINT`, the fuzzer's own command."""
    import torch

    right = torch.load(home / "checkpoints" / "right.pt", weights_only=True)
    path = folder / "checkpoint_step_2.pt"
    if r.random() < 0.3:
        content = damaged(r, (home / "checkpoints" / "right.pt").read_bytes())
    else:
        buffer = io.BytesIO()
        torch.save(_other_tensors(r, right), buffer, _use_new_zipfile_serialization=r.random() > 0.05)
        content = buffer.getvalue()
    write(r, path, content, home)
    return ["load", str(path)]


def _other_tensors(r: random.Random, thing: Any, depth: int = 0) -> Any:
    """A checkpoint's values, some of them replaced by other tensors or values, or missing."""
    import torch

    share = (0.05, 0.06, 0.03, 0.03)[min(depth, 3)]
    if r.random() < share and depth:
        kind = r.randrange(7)
        if kind == 0:
            return torch.zeros([r.randrange(5) for _ in range(r.randrange(4))])
        if kind == 1:
            return torch.zeros(1).expand(*[r.choice([1, 3, 10**6, 10**9]) for _ in range(r.randrange(1, 3))])
        if kind == 2:
            return torch.full((r.randrange(1, 6000),), r.randrange(256), dtype=torch.uint8)
        if kind == 3:
            return torch.eye(3).to_sparse()
        if kind == 4:
            return torch.zeros(4, dtype=r.choice([torch.complex64, torch.int64, torch.bool, torch.float64]))
        if kind == 5 and isinstance(thing, torch.Tensor):
            return thing.flatten()[: r.randrange(1, 4)].clone() if thing.numel() else thing
        made = value(r)
        return str(made) if isinstance(made, str) and "\ud800" in made else made
    if isinstance(thing, dict):
        return {key: _other_tensors(r, entry, depth + 1) for key, entry in thing.items() if r.random() > 0.01}
    if isinstance(thing, list) and len(thing) < 50:
        return [_other_tensors(r, entry, depth + 1) for entry in thing]
    return thing


# kind -> (its share of all cases, the function that makes one)
KINDS: dict[str, tuple[float, Callable[[random.Random, Path, Path], Arguments]]] = {
    "command lines": (0.25, command_line),
    "configurations": (0.2, configuration),
    "run folders": (0.25, run_folder),
    "datasets": (0.12, dataset),
    "tokenizers": (0.08, tokenizer),
    "checkpoints": (0.1, checkpoint),
}
