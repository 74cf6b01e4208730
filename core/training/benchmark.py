"""`python -m core.training.benchmark`: how fast a configuration trains and generates on this machine.

Reads one JSON object from standard input ({"config": flat values, "seconds": number}) and prints one JSON
object. The text is random tokens, because speed doesn't depend on what the tokens say.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.config import estimates as budget
from core.config.preflight import check_divides, ranks_wanted
from core.config.run_time import Costs
from core.config.sampling import SamplingSettings
from core.config.schema import RunConfig, build
from core.config.speed import remember
from core.data.loader import SequentialLoader
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.errors import UserError
from core.generation.decoder import Decoder
from core.generation.generation import Generation
from core.model import GPT
from core.ops.linear_cross_entropy import linear_cross_entropy
from core.system.hardware import peak_process_memory
from core.training.arithmetic import autocast
from core.training.build import open_device
from core.training.compilation import compiled, compiles
from core.training.launcher import end_process, start_ranks, torchrun_place
from core.training.make_step import make_step
from core.training.optimizer import make_optimizer
from core.training.ranks import ALONE, Ranks

VOCABULARIES = {"char": 96, "byte": 257, "gpt2": 50257, "auto": 4096}
PARTS = ("data wait", "forward", "loss head", "backward", "optimizer")
WARM_UP_STEPS = 3
STREAM_CHUNKS = 64
DECODE_TOKENS = 128
MATMUL_SIZE = {"cpu": 1024, "mps": 2048, "cuda": 8192}


class RandomStream:
    """Random tokens in place of a corpus; now and then the last id starts a new document."""

    def __init__(self, length: int, vocab_size: int) -> None:
        random = np.random.default_rng(0)
        self._tokens = random.integers(0, vocab_size, length, dtype=np.int64)
        self.documents = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self._tokens)

    def gather(self, starts: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        """Rows of tokens, (len(starts), count)."""
        return np.stack([self._tokens[start : start + count] for start in starts])

    def read(self, start: int, count: int) -> np.ndarray[Any, Any]:
        """Tokens start to start + count, (count,)."""
        return self._tokens[start : start + count]


def vocabulary(config: RunConfig) -> int:
    """The vocabulary size to measure with: the tokenizer's, or a typical one of its kind."""
    return config.data.vocab_size or VOCABULARIES.get(config.data.tokenizer, VOCABULARIES["auto"])


class Bench:
    """One configuration on one device, and the measurements on it."""

    def __init__(self, config: RunConfig, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.ranks = ranks
        self.parted = False
        self.vocab_size = vocabulary(config)
        self.device = open_device(config, ranks)
        ranks.join(self.device)
        torch.manual_seed(config.training.seed)
        self.model = GPT(config.model, self.vocab_size).to(self.device)
        self.model.activation_checkpointing = config.hardware.activation_checkpointing
        self.optimizer = make_optimizer(self.model, config.training, ranks)
        training, block = config.training, config.model.block_size
        self.tokens_per_step = training.batch_size * block * training.gradient_accumulation_steps
        length = max(STREAM_CHUNKS * training.batch_size * block, 1 << 16) + 1
        self.loader = SequentialLoader(
            RandomStream(length, self.vocab_size), self.vocab_size - 1,
            training.batch_size, block, config.data.carry_chunks, training.seed,
            rows=ranks.share(training.batch_size),
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def seconds_each(self, work: Callable[[], object], seconds: float, warm_up: int) -> list[float]:
        """Durations of repeated calls for about `seconds`, after `warm_up` calls that don't count."""
        for _ in range(warm_up):
            work()
        durations: list[float] = []
        self.synchronize()
        while self._again(sum(durations) < seconds or len(durations) < 3):
            began = time.perf_counter()
            work()
            self.synchronize()
            durations.append(time.perf_counter() - began)
        return durations

    def _again(self, wanted: bool) -> bool:
        return wanted if self.parted else self.ranks.from_first(lambda: wanted)

    def training(self, seconds: float) -> dict[str, Any]:
        """Optimizer steps as the trainer runs them. Milliseconds are medians."""
        compiling = compiles(self.config, self.device)
        forward = compiled(self.model) if compiling else self.model
        step = make_step(
            self.model, forward, self.optimizer, self.loader, self.config, self.device, self.ranks
        )
        number = 0
        waited: list[float] = []

        def run() -> None:
            nonlocal number
            number += 1
            step.run(number)
            waited.extend(metrics.waited for metrics in step.read(wait=False))

        began = time.perf_counter()
        run()
        self.synchronize()
        first = time.perf_counter() - began
        durations = self.seconds_each(run, seconds, WARM_UP_STEPS)
        middle = statistics.median(durations)
        waited.extend(metrics.waited for metrics in step.read(wait=True))
        per_token = budget.flops_per_token(self.config.model, self.vocab_size)
        return {
            "step_ms": middle * 1e3,
            "tokens_per_second": self.tokens_per_second(middle),
            "compiled": compiling,
            "first_step_seconds": first,
            "steps_measured": len(durations),
            "data_wait_share": statistics.median(waited) / middle,
            "flops_per_second": per_token * self.tokens_per_second(middle),
        }

    def tokens_per_second(self, step_seconds: float) -> float:
        """Training tokens per second if a step takes this long."""
        return self.tokens_per_step / step_seconds

    def parts(self, seconds: float) -> dict[str, float]:
        """Milliseconds of each part of one plain, uncaptured step, waiting for the device after each part."""
        state = self.model.initial_state(self.ranks.rows(self.config), self.device)
        times: dict[str, list[float]] = {part: [] for part in PARTS}
        training = self.config.training
        repeats = training.gradient_accumulation_steps

        def one_step() -> None:
            nonlocal state
            marks = [time.perf_counter()]

            def mark() -> None:
                self.synchronize()
                marks.append(time.perf_counter())

            x, y, doc_start = (torch.from_numpy(item).to(self.device) for item in self.loader.next_batch())
            mark()
            with autocast(self.config, self.device):
                features, state = self.model.features(x, state, doc_start)
                mark()
                loss = linear_cross_entropy(
                    features.flatten(0, 1), self.model.head.weight, y.flatten(), vocab_size=self.vocab_size
                )
            mark()
            loss.backward()
            state = state.detach()
            mark()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.grad_clip or 1e9)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            mark()
            for part, start, stop in zip(PARTS, marks, marks[1:]):
                times[part].append((stop - start) * 1e3 * (1 if part == "optimizer" else repeats))

        self.seconds_each(one_step, seconds, 0)
        return {part: statistics.median(values[1:]) for part, values in times.items()}

    def decoding(self) -> dict[str, float]:
        """Batch-1 decoding with the state carried, token by token."""
        self.model.eval()
        decoder = Decoder(self.model, self.vocab_size - 1)
        decoder.eot = -1  # a random model must not end the text
        config = SamplingSettings(max_new_tokens=DECODE_TOKENS, temperature=1.0)
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            count = sum(1 for _ in Generation(decoder, byte_tokenizer(), config))
            rates.append(count / (time.perf_counter() - began))
        self.model.train()
        return {"tokens_per_second": max(rates)}

    def matrix_ceiling(self) -> float:
        """Floating-point operations per second of a large matrix product in the run's arithmetic."""
        size = MATMUL_SIZE[self.device.type]
        with autocast(self.config, self.device):
            half = torch.is_autocast_enabled(self.device.type)
        a, b = (
            torch.randn(size, size, device=self.device, dtype=torch.bfloat16 if half else torch.float32)
            for _ in range(2)
        )
        durations = self.seconds_each(lambda: a @ b, 0.5, 2)
        return 2 * size**3 / min(durations)

    def memory(self) -> int:
        """Peak memory in bytes so far: the device's, or this process's on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_process_memory()

    def device_name(self) -> str:
        """The device's own name."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{self.device.type}, {torch.get_num_threads()} threads"


def run(config: RunConfig, seconds: float, ranks: Ranks = ALONE) -> dict[str, Any]:
    """All measurements of one configuration. Raises UserError if the device doesn't exist.

    With several ranks they train together, and rank 0 alone measures the rest.
    """
    bench = Bench(config, ranks)
    training = bench.training(seconds)
    ranks.leave()
    if not ranks.first:
        return {}
    bench.parted = True
    memory = bench.memory()
    costs = Costs(step=training["step_ms"] / 1e3, memory=float(memory))
    if training["steps_measured"] >= 3:  # these measurements improve later estimates
        remember(config, bench.vocab_size, costs)
    ceiling = bench.matrix_ceiling()
    return {
        "device": bench.device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in bench.model.parameters()),
        "vocab_size": bench.vocab_size,
        "ranks": ranks.size,
        "tokens_per_step": bench.tokens_per_step,
        "training": training | {"utilization": training["flops_per_second"] / ceiling / ranks.size},
        "parts_ms": bench.parts(seconds / 2),
        "memory_bytes": memory,
        "matrix_flops_per_second": ceiling,
        "decoding": bench.decoding(),
    }


def main() -> int:
    """Read a request, measure, print the result. Exit code 2 with one sentence for bad input.

    Several ranks read the request from their command line.
    """
    ranks = Ranks(*torchrun_place())
    try:
        request = json.loads(sys.argv[1] if ranks.several else sys.stdin.read())
        config = build(request["config"])
        if not ranks.several and (count := ranks_wanted(config)) > 1:
            return measure_together(count, request)
        check_divides(config, ranks.size)
        figures = run(config, float(request["seconds"]), ranks)
        if ranks.first:
            print(json.dumps(figures))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def measure_together(count: int, request: dict[str, Any]) -> int:
    """Measure with several ranks, of which rank 0 prints the result. Returns the exit code."""
    failures = start_ranks(count, "-m", "core.training.benchmark", json.dumps(request))
    return max((1 if failure.exitcode != 2 else 2 for failure in failures.values()), default=0)


if __name__ == "__main__":
    end_process(main())
