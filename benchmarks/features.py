"""What features are worth: which book and which author a passage is from, and other studies.

    python -m benchmarks.features --data DIR [--device cuda] [--checkpoint C | --minutes 1.2] [--out DIR]
    python -m benchmarks.features --data DIR --parts width mixer [--steps 400]
    python -m benchmarks.features --speed [--device cuda]

study  passages of 50, 200 and 1,000 words, each read by itself, by nearest neighbor and linear probe;
       splits at random (which book), or with one book of each author left out (which author). The model is
       the `book` preset as an hourglass, trained on DIR for so many minutes, unless a checkpoint is given.
width  bits per byte of the validation text against the width of the waist, as many steps each
mixer  the same with Mamba, Mamba-2 or attention at the waist
speed  tokens a second of `embed` and of the forward alone, in the original project's shape

What is done stands in OUT/results.jsonl and is not done again; OUT/features.md has the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.feature_methods import Labels, Prepare, accuracies, both, dense, tf_idf
from benchmarks.feature_passages import Passages, features, passages
from benchmarks.trained import trained
from core.checkpoint import load_model
from core.model import GPT

WORDS = (50, 200, 1000)
SHAPES: dict[str, dict[str, Any]] = {
    "cuda": {"n_embd": [416, 416, 256, 128, 128, 256, 416, 416], "n_head": 8},
    "cpu": {"n_embd": [128, 128, 64, 64, 128, 128], "n_head": 4},
}
WAISTS = {"cuda": (32, 64, 128, 256, 416), "cpu": (16, 32, 64, 128)}
MIXERS = ("mamba", "mamba2", "standard")
TEST_SHARE = 0.3
Row = dict[str, Any]


def main() -> None:
    options = parse()
    if options.speed:
        from benchmarks.feature_speed import measure

        print(measure(options.device))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "results.jsonl")
    if "study" in options.parts:
        study(options, results)
    for part in ("width", "mixer"):
        if part in options.parts:
            arms(part, options, results)
    (options.out / "features.md").write_text(tables(results.rows))
    print(tables(results.rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of books")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", type=Path, help="the model of the study; default: one is trained")
    parser.add_argument("--minutes", type=float, default=1.2, help="of that training (default 1.2)")
    parser.add_argument("--parts", nargs="+", default=["study"], choices=("study", "width", "mixer"))
    parser.add_argument("--words", nargs="+", type=int, default=list(WORDS), help="lengths of passages")
    parser.add_argument("--passages", type=int, default=60, help="of a book and a length (default 60)")
    parser.add_argument("--splits", type=int, default=5, help="splits at random, for the spread (default 5)")
    parser.add_argument("--steps", type=int, default=400, help="of each training of width and mixer")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each arm of width and mixer")
    parser.add_argument("--out", type=Path, default=Path("features-results"))
    parser.add_argument("--speed", action="store_true", help="measure the speed alone")
    return parser.parse_args()


class Results:
    """Lines of a file, each with a key that is not done twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


# ------------------------------------------------------------------ study


def study(options: argparse.Namespace, results: Results) -> None:
    """All methods on all lengths and splits."""
    cuda = options.device == "cuda"
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint, facts = trained(
            options.out, f"hourglass-{options.device}", options.data, cuda=cuda, device=options.device,
            time_budget=options.minutes, max_iters=0, **SHAPES["cuda" if cuda else "cpu"],
        )  # fmt: skip
        if not results.has(part="model"):
            results.add(part="model", shape=SHAPES["cuda" if cuda else "cpu"]["n_embd"], **facts)
    began = time.monotonic()
    for words in options.words:
        done = [results.has(part="study", words=words, split=split) for split in range(options.splits)]
        if not all(done):
            texts = passages(options.data, words, options.passages, seed=words)
            for split, rows in enumerate(one_length(checkpoint, texts, options, words)):
                if not done[split]:
                    for row in rows:
                        results.add(part="study", words=words, split=split, **row)
            print(f"{words} words: {time.monotonic() - began:.0f} s", flush=True)


def one_length(checkpoint: Path, texts: Passages, options: argparse.Namespace, words: int) -> Any:
    """For each split the accuracies of every method."""
    model, tokenizer, _ = load_model(checkpoint, options.device)
    widths = model.config.n_embd
    waist, last = model.waist, len(widths) - 1
    ours = {layer: features(model, tokenizer, layer, texts.texts) for layer in sorted({0, waist, last})}
    for split in range(options.splits):
        raw = features(untrained(model, split).to(options.device), tokenizer, waist, texts.texts)
        size = widths[waist]
        methods: dict[str, Prepare] = {
            f"waist ({size})": dense(ours[waist]),
            f"first layer ({widths[0]})": dense(ours[0]),
            f"last layer ({widths[last]})": dense(ours[last]),
            f"first layer, PCA to {size}": dense(ours[0], components=size),
            f"last layer, PCA to {size}": dense(ours[last], components=size),
            f"waist of an untrained network ({size})": dense(raw),
            "TF-IDF": tf_idf(texts.texts),
            "TF-IDF and waist": both(tf_idf(texts.texts), dense(ours[waist])),
        }
        rows: list[Row] = []
        for task, (labels, train, test) in splits(texts, split).items():
            for name, prepare in methods.items():
                nearest, probed = accuracies(prepare, labels, train, test, split)
                rows.append({"task": task, "method": name, "nearest": nearest, "probe": probed,
                             "classes": len(set(labels[train].tolist())), "tests": len(test)})  # fmt: skip
        yield rows


def untrained(model: GPT, seed: int) -> GPT:
    """A network of the same shape with random weights, in the layers that begin at zero too."""
    torch.manual_seed(seed)
    fresh = GPT(model.config, model.vocab_size).eval()
    for parameter in fresh.parameters():
        if parameter.dim() == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return fresh


def splits(texts: Passages, seed: int) -> dict[str, tuple[Labels, Labels, Labels]]:
    """Task -> labels, training passages, test passages."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(texts.book))
    tests = round(TEST_SHARE * len(order))
    tasks = {"book": (texts.book, order[tests:], order[:tests])}
    held = []
    for author in range(int(texts.author.max(initial=-1)) + 1):
        held.append(generator.choice(np.unique(texts.book[texts.author == author])))
    if len(held) > 1:
        test = np.isin(texts.book, held)
        train = (texts.author >= 0) & ~test
        tasks["author"] = (texts.author, np.flatnonzero(train), np.flatnonzero(test))
    return tasks


# ------------------------------------------------------------------- arms


def arms(part: str, options: argparse.Namespace, results: Results) -> None:
    """Short trainings that differ in one thing."""
    cuda = options.device == "cuda"
    kind = "cuda" if cuda else "cpu"
    shape = SHAPES[kind]["n_embd"]
    depth = len(shape)
    mixers = [("mamba", "standard")[layer % 2] for layer in range(depth)]
    for seed in range(1, options.seeds + 1):
        for arm in WAISTS[kind] if part == "width" else MIXERS:
            if results.has(part=part, arm=arm, seed=seed, steps=options.steps):
                continue
            widths, types = list(shape), list(mixers)
            if part == "width":
                widths = hourglass(shape[0], int(arm), depth)
            for layer in (depth // 2 - 1, depth // 2):
                types[layer] = str(arm) if part == "mixer" else types[layer]
            _, facts = trained(
                options.out, f"{part}-{arm}-{seed}-{options.steps}", options.data, cuda=cuda,
                device=options.device, n_embd=widths, n_head=SHAPES[kind]["n_head"], attention_type=types,
                max_iters=options.steps, eval_interval=max(1, options.steps // 4), eval_iters=100, seed=seed,
            )  # fmt: skip
            facts["steps"] = options.steps
            results.add(part=part, arm=arm, seed=seed, shape=widths, mixers=types, **facts)


def hourglass(wide: int, waist: int, depth: int) -> list[int]:
    """Widths that shrink to a waist of two layers in even ratios, all of them multiples of 8."""
    half = depth // 2 - 1
    shrink = [wide * (waist / wide) ** (layer / half) for layer in range(half)] + [waist]
    rounded = [max(8, 8 * round(width / 8)) for width in shrink]
    return rounded + rounded[::-1]


# ----------------------------------------------------------------- tables


def tables(rows: list[Row]) -> str:
    """Everything as markdown."""
    lines = []
    for row in (row for row in rows if row["part"] == "model"):
        lines.append(
            f"Model {row['shape']}, {row['parameters']:,} parameters, {row['steps']:,} steps in "
            f"{row['seconds']:.0f} s: {row['bits_per_byte']:.3f} bits/byte."
        )
    for task in ("book", "author"):
        for words in sorted({row["words"] for row in rows if row["part"] == "study"}):
            lines += study_table(
                [row for row in rows if row.get("words") == words and row["task"] == task], task, words
            )
    for part, title in (("width", "width of the waist"), ("mixer", "mixer at the waist")):
        mine = [row for row in rows if row["part"] == part]
        if mine:
            lines += ["", f"| {title} | widths | parameters | steps | bits/byte |", "| --- " * 5 + "|"]
        grouped: dict[Any, list[Row]] = defaultdict(list)
        for row in mine:
            grouped[row["arm"], row["steps"]].append(row)
        for (arm, steps), same in grouped.items():
            figure = spread([row["bits_per_byte"] for row in same], 3)
            lines.append(f"| {arm} | {same[0]['shape']} | {same[0]['parameters']:,} | {steps:,} | {figure} |")
    return "\n".join(lines) + "\n"


def study_table(rows: list[Row], task: str, words: int) -> list[str]:
    """One task at one length: mean and standard deviation over the splits, in percent."""
    if not rows:
        return []
    first = rows[0]
    lines = [
        "",
        f"Which {task} of {first['classes']}, passages of {words:,} words, "
        f"{len({row['split'] for row in rows})} splits of {first['tests']:,} passages or so:",
        "",
        "| features | nearest neighbor | linear probe |",
        "| --- | --- | --- |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        same = [row for row in rows if row["method"] == method]
        figures = [spread([100 * row[key] for row in same], 1) for key in ("nearest", "probe")]
        lines.append(f"| {method} | {figures[0]} % | {figures[1]} % |")
    return lines


def spread(values: list[float], digits: int) -> str:
    """`12.3 ± 0.4`: mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
