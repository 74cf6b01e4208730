"""Sampling on CUDA: the device chooses the next token, so many can be sampled before the host looks.

`Drawer` launches the kernels of `core/ops/triton/sample_kernels.py`, which keep and choose what
`core.generation.sampling.candidates` and a draw from it do, and leaves a record of each token. Random
numbers come from the seed, the number of the draw and the token's id: the same seed gives the same text,
though not the one that the host would draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from core.ops.triton import sample_kernels as kernels

REPORTS = 1024
"""The most probable tokens that a record has room for."""
HEADER = 3
RECORDS = 1 << 17
"""Numbers that the records of a lane may take."""
COLDEST = 1e-30
"""The temperature that lower ones are taken for; its inverse is still a float32."""


class Plan(NamedTuple):
    """Which kernels draw a token. All else is told by numbers that lie on the device."""

    counted: bool = False
    """Whether there is a top_k."""
    weighed: bool = False
    """Whether there is a top_p."""
    bounded: bool = False
    """Whether there is a min_p."""
    reported: bool = False
    """Whether the most probable tokens are asked for."""

    @property
    def rounds(self) -> list[list[int]]:
        """The jobs of each search through the logits."""
        jobs = [[job] for job, wanted in enumerate((self.counted, self.weighed)) if wanted]
        if self.reported:
            jobs = [[*jobs[0], 2], *jobs[1:]] if jobs else [[2]]
        return jobs


@dataclass(frozen=True)
class Options:
    """How tokens are chosen: the fields of `core.generation.sampling.SamplingConfig` that say it."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    alternatives: int = 0


class Drawn(NamedTuple):
    """A token, as the device drew it. Probabilities are the model's own, before temperature and filters."""

    token: int
    probability: float
    finite: bool
    """Whether the logits were numbers."""
    alternatives: list[tuple[int, float]]
    """The most probable tokens and their probabilities, the best first."""


class Drawer:
    """Draws tokens for `lanes` texts."""

    def __init__(self, vocab_size: int, lanes: int, device: torch.device) -> None:
        self.vocab_size, self._lanes = vocab_size, lanes
        self._pieces = pieces = triton.cdiv(vocab_size, kernels.PIECE)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.plan = Plan()
        self.length = HEADER
        self.slots = zeros(lanes)
        """Where the next record goes, (lanes,)."""
        self.drawn = zeros(lanes)
        """How many tokens were drawn, (lanes,): the number of the next draw."""
        self.seen = zeros(lanes, vocab_size, dtype=torch.int8)
        """The tokens that the text has, (lanes, V)."""
        self.records = zeros(lanes, RECORDS, dtype=torch.int32)
        self._seeds = zeros(lanes)
        self._numbers = zeros(8, dtype=torch.float32)
        self._whole = zeros(4)
        self._peaks = zeros(2, lanes, pieces, dtype=torch.float32)
        self._best = zeros(4, lanes, pieces, dtype=torch.float32)
        self._where = zeros(lanes, pieces, dtype=torch.int32)
        self._tables = zeros(lanes, kernels.JOBS, len(kernels.PASSES), 256)
        self._states = zeros(lanes, kernels.JOBS, len(kernels.PASSES), 4)
        self._ties = zeros(lanes, kernels.JOBS, pieces, 64, dtype=torch.int32)
        self._found = zeros(lanes, dtype=torch.int32)
        self._ids = zeros(lanes, REPORTS, dtype=torch.int32)
        self._values = zeros(lanes, REPORTS, dtype=torch.float32)

    @property
    def room(self) -> int:
        """How many records there is room for."""
        return RECORDS // self.length

    def prepare(self, options: Options, seed: int, drawn: int = 0) -> None:
        """What the next draws are like, the first of them being number `drawn`."""
        warm = options.temperature > 0
        reports = min(options.alternatives, self.vocab_size, REPORTS)
        self.plan = Plan(
            counted=warm and 0 < options.top_k < self.vocab_size,
            weighed=warm and options.top_p < 1,
            bounded=warm and options.min_p > 0,
            reported=reports > 0,
        )
        self.length = HEADER + 2 * reports
        factor = 1 / max(options.temperature, COLDEST) if warm else 1.0
        numbers = [factor, float(warm), options.repetition_penalty, options.min_p, options.top_p, 0, 0, 0]
        top_k = min(options.top_k, self.vocab_size)
        self._numbers.copy_(torch.tensor(numbers))
        self._whole.copy_(torch.tensor([top_k, int(self.plan.counted), reports, self.length]))
        # Every lane has a seed of its own, the first the given one.
        seeds = [(seed ^ lane * 0x9E3779B97F4A7C15) & ((1 << 63) - 1) for lane in range(self._lanes)]
        self._seeds.copy_(torch.tensor(seeds))
        self.drawn.fill_(drawn)
        self.slots.zero_()

    def changing(self) -> list[Tensor]:
        """What `launch` changes that the next one depends on."""
        return [self.slots, self.drawn, self.seen]

    def launch(self, logits: Tensor, tokens: Tensor) -> None:
        """Draw a token for each lane from logits (lanes, V) into `tokens` (lanes,), and make its record."""
        plan, pieces, lanes = self.plan, self._pieces, self._lanes
        padded: dict[str, Any] = {"PIECE": kernels.PIECE, "PIECES": triton.next_power_of_2(pieces)}
        inputs = (logits, self.seen, self._numbers)
        searched = (self._peaks, self._tables, self._states, self._ties)
        filtered = plan.counted or plan.weighed or plan.bounded
        if filtered or plan.reported:
            size = self._tables[0].numel()
            kernels.survey_kernel[(pieces, lanes)](
                *inputs, self._peaks, self._tables, self._found, self.vocab_size, pieces, lanes, size,
                PIECE=kernels.PIECE, CLEAR=triton.next_power_of_2(triton.cdiv(size, pieces)),
            )  # fmt: skip
        for jobs in plan.rounds:
            step = jobs[1] - jobs[0] if len(jobs) > 1 else 1
            for number, (shift, bits) in enumerate(kernels.PASSES):
                kernels.narrow_kernel[(pieces, len(jobs), lanes)](
                    *inputs, self._whole, *searched, self.vocab_size, pieces, lanes, jobs[0], step, number,
                    shift, BITS=bits, FIRST=number == 0, num_warps=8, **padded,
                )  # fmt: skip
        kernels.draw_kernel[(pieces, lanes)](
            *inputs, self._seeds, self.drawn, *searched, self._best, self._where, self.vocab_size, pieces,
            int(plan.weighed), FILTERED=filtered, SEARCHED=plan.counted or plan.weighed, **padded,
        )  # fmt: skip
        if plan.reported:
            kernels.collect_kernel[(pieces, lanes)](
                *inputs, *searched, self._found, self._ids, self._values, self.vocab_size, pieces, lanes,
                REPORTS, **padded,
            )  # fmt: skip
        kernels.choose_kernel[(lanes,)](
            self._best, self._where, self._whole, tokens, self.seen, self.drawn, self.slots, self.records,
            self._ids, self._values, self.vocab_size, pieces, REPORTS, RECORDS,
            PIECES=padded["PIECES"], ROOM=REPORTS, REPORTS=plan.reported,
        )  # fmt: skip


def understood(records: np.ndarray[Any, Any]) -> list[Drawn]:
    """What records (N, length) int32 say."""
    reports = (records.shape[1] - HEADER) // 2
    tokens, finite = records[:, 0].tolist(), records[:, 2].tolist()
    probabilities = records.view(np.float32)[:, 1].tolist()
    alternatives: list[list[tuple[int, float]]] = [[]] * len(tokens)
    if reports:
        ids = records[:, HEADER : HEADER + reports]
        shares = np.ascontiguousarray(records[:, HEADER + reports :]).view(np.float32)
        order = np.lexsort((ids, -shares))
        ids, shares = np.take_along_axis(ids, order, 1), np.take_along_axis(shares, order, 1)
        alternatives = [list(zip(*both)) for both in zip(ids.tolist(), shares.tolist())]
    return [Drawn(*each) for each in zip(tokens, probabilities, map(bool, finite), alternatives)]
