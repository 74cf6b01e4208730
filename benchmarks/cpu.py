"""Speed on CPU compared with the original project, mamba.py and transformers: `python -m benchmarks.cpu`.

Everything that is compared takes turns in one run, so that a busy machine slows all of it equally; the
fastest turn counts. The packages mambapy (mamba.py) and transformers are left out if they aren't installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch

from benchmarks.cpu_peers import mambapy_scan, transformers_models, transformers_step
from benchmarks.original_model import Original, loop_scan
from core.config.files import preset
from core.config.schema import ModelConfig, build
from core.model import GPT
from core.ops.selective_scan import selective_scan
from core.system.allocator import keep_freed_memory

Work = Callable[[], object]
PARTS = ("scan", "models", "transformers", "decode", "original")


clock = time.perf_counter


def in_turns(works: dict[str, Work], repeats: dict[str, int]) -> dict[str, float]:
    """The fastest run of each function in seconds, after one run to warm up (unless it runs only once)."""
    best: dict[str, float] = {}
    for name, work in works.items():
        if repeats[name] > 1:
            work()
    for turn in range(max(repeats.values())):
        for name, work in works.items():
            if turn >= repeats[name]:
                continue
            began = clock()
            work()
            seconds = clock() - began
            best[name] = min(seconds, best.get(name, seconds))
    return best


def scans(batch: int, length: int, width: int, states: int, turns: int) -> dict[str, float]:
    """Forward and backward of one scan, with gradients of all inputs."""
    torch.manual_seed(0)
    shapes = {
        "x": (batch, length, width), "dt": (batch, length, width), "A": (width, states),
        "B": (batch, length, states), "C": (batch, length, states), "D": (width,),
    }  # fmt: skip
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].exp()
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def run(scan: Callable[..., torch.Tensor]) -> Work:
        return lambda: torch.autograd.grad(scan(*leaves).sum(), leaves)

    works = {"ours": run(lambda *tensors: selective_scan(*tensors)[0]), "the original's loop": run(loop_scan)}
    repeats = {"ours": turns, "the original's loop": min(turns, 3)}
    if parallel := mambapy_scan():
        works["mamba.py pscan"] = run(parallel)
        repeats["mamba.py pscan"] = turns
    return in_turns(works, repeats)


def our_step(config: ModelConfig, vocab_size: int, batch: int) -> Work:
    """A whole training step of ours, as in the trainer: state carried, clipping, fused AdamW."""
    torch.manual_seed(0)
    model = GPT(config, vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(vocab_size, (batch, config.block_size + 1))
    starts = torch.zeros(batch, config.block_size, dtype=torch.bool)
    starts[0, 0] = True
    state = model.initial_state(batch)

    def step() -> None:
        nonlocal state
        out = model(tokens[:, :-1], state, starts, tokens[:, 1:])
        assert out.loss is not None
        out.loss.backward()
        state = out.state.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def original_step(config: ModelConfig, vocab_size: int, batch: int) -> Work:
    """A whole training step of the original project's model."""
    torch.manual_seed(0)
    model = Original(
        config.n_embd, config.n_head, config.attention_type, vocab_size, config.block_size, config.dropout
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(vocab_size, (batch, config.block_size + 1))

    def step() -> None:
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def small_models(turns: int) -> dict[str, float]:
    """nanoGPT's CPU recipe, 4 layers x 128, context 64, batch 12, with three sets of mixers."""
    kinds = {
        "attention": "standard", "S6 hybrid": ["mamba", "standard"] * 2,
        "mamba2 hybrid": ["mamba2", "standard"] * 2,
    }  # fmt: skip
    shape = {"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64}
    works = {
        name: our_step(build({**shape, "attention_type": kind}).model, 65, 12) for name, kind in kinds.items()
    }
    return in_turns(works, dict.fromkeys(works, turns))


def beside_transformers(turns: int) -> dict[str, float]:
    """The same shape with one kind of mixer throughout, ours and transformers'."""
    shape = {"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64}
    kinds = {"ours, attention": "standard", "ours, S6": "mamba", "ours, mamba2": "mamba2"}
    works = {
        name: our_step(build({**shape, "attention_type": kind}).model, 65, 12) for name, kind in kinds.items()
    }
    for name, model in transformers_models(65, 4, 128, 4, 64).items():
        works[name] = transformers_step(model, 65, 12, 64)
    return in_turns(works, dict.fromkeys(works, turns))


def original_preset_step(batch: int, turns: int) -> dict[str, float]:
    """The preset `original`: the original project's widths, layer types and vocabulary."""
    config = preset("original").model
    works = {
        "ours": our_step(config, 50257, batch),
        "the original": original_step(config, 50304, batch),
    }
    return in_turns(works, {"ours": turns, "the original": 1})


def decoding(tokens: int) -> dict[str, float]:
    """Seconds per token, batch 1, early and late in a text."""
    config = preset("original").model
    model = GPT(config, 50257).eval()
    state, token, marks = None, torch.zeros(1, 1, dtype=torch.int64), []
    with torch.inference_mode():
        for _ in range(tokens):
            began = clock()
            out = model(token, state)
            assert out.logits is not None
            state, token = out.state, out.logits.argmax(2)
            marks.append(clock() - began)
    fifth = tokens // 5
    return {
        "first fifth": sorted(marks[:fifth])[fifth // 2],
        "last fifth": sorted(marks[-fifth:])[fifth // 2],
    }


def show(title: str, seconds: dict[str, float], base: str, rate: float = 0.0) -> None:
    """A table of one comparison; `rate` is tokens per run, for tokens per second."""
    print(f"\n{title}")
    for name, value in seconds.items():
        speed = f"{rate / value:12,.0f} tok/s" if rate else ""
        print(f"  {name:24s}{value * 1e3:12,.1f} ms{speed}   {seconds[base] / value:8.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns of each work (default 15)")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's choice (default)")
    parser.add_argument("--original-batch", type=int, default=64, help="its batch size (default 64)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--plain-allocator",
        action="store_true",
        help="leave glibc's settings alone",
    )
    parser.add_argument(
        "--cpu-clock", action="store_true", help="one thread, timed by its CPU time: for a busy machine"
    )
    options = parser.parse_args()
    if not options.plain_allocator:  # as the trainer does; everything compared benefits
        keep_freed_memory()
    if options.cpu_clock:
        global clock
        clock, options.threads = time.process_time, 1
    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, dict[str, float]] = {}
    kind = "CPU time" if options.cpu_clock else "wall time"
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}, {kind}", flush=True)
    if "scan" in options.parts:
        results["scan"] = scans(16, 128, 256, 16, options.turns)
        show("selective scan, forward + backward, B16 L128 D256 N16", results["scan"], "the original's loop")
    if "models" in options.parts:
        results["models"] = small_models(options.turns)
        show("training step, 4 x 128, context 64, batch 12", results["models"], "attention", 12 * 64)
    if "transformers" in options.parts:
        results["transformers"] = beside_transformers(options.turns)
        title = "the same shape, one kind of mixer throughout"
        show(title, results["transformers"], "ours, attention", 12 * 64)
    if "decode" in options.parts:
        results["decode"] = decoding(500)
        show("one token, preset original, batch 1, greedy", results["decode"], "first fifth", 1)
    if "original" in options.parts:
        results["original"] = original_preset_step(options.original_batch, 3)
        title = f"training step, preset original, batch {options.original_batch} x 128"
        show(title, results["original"], "the original", options.original_batch * 128)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
