"""Sampling on CUDA: the device chooses the next token, so that many can be sampled before the host looks.

`DeviceSampler` launches the kernels of `core/ops/triton/sample_kernels.py`, which filter and sample like
`core.generation.sampler.next_token_probabilities`, and leaves a record of each token. Random numbers come
from the seed, the number of the sample and the token's id: the same seed gives the same text, though not the
one that the host would sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from core.config.sampling import SamplingSettings
from core.generation.sampler import SampledToken
from core.ops.triton import sample_kernels as kernels

MOST_ALTERNATIVES = 1024
"""How many most probable tokens a record can hold."""
HEADER = 3
RECORDS = 1 << 17
"""Numbers that a batch row's records may take."""


class Filters(NamedTuple):
    """Which kernels sample a token. Everything else is determined by numbers on the device."""

    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    alternatives: bool = False
    """Whether the most probable tokens are to be reported."""

    @property
    def searches(self) -> list[list[int]]:
        """The jobs of each search through the logits."""
        jobs = [[job] for job, wanted in enumerate((self.top_k, self.top_p)) if wanted]
        if self.alternatives:
            jobs = [[*jobs[0], 2], *jobs[1:]] if jobs else [[2]]
        return jobs


class DeviceSampler:
    """Samples tokens for a batch of `rows` texts."""

    def __init__(self, vocab_size: int, rows: int, device: torch.device) -> None:
        self.vocab_size, self._rows = vocab_size, rows
        self._pieces = pieces = triton.cdiv(vocab_size, kernels.PIECE)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.filters = Filters()
        self.record_length = HEADER
        self.next_record = zeros(rows)
        """The index of the next record, (rows,)."""
        self.sampled = zeros(rows)
        """How many tokens were sampled, (rows,): random numbers depend on it and the seed."""
        self.seen = zeros(rows, vocab_size, dtype=torch.int8)
        """Which tokens occur in the text, (rows, V)."""
        self.records = zeros(rows, RECORDS, dtype=torch.int32)
        self._seeds = zeros(rows)
        self._numbers = zeros(8, dtype=torch.float32)
        self._limits = zeros(4)
        self._peaks = zeros(2, rows, pieces, dtype=torch.float32)
        self._best = zeros(4, rows, pieces, dtype=torch.float32)
        self._best_token = zeros(rows, pieces, dtype=torch.int32)
        self._histograms = zeros(rows, kernels.JOBS, len(kernels.PASSES), 256)
        self._states = zeros(rows, kernels.JOBS, len(kernels.PASSES), 4)
        self._ties = zeros(rows, kernels.JOBS, pieces, 64, dtype=torch.int32)
        self._collected = zeros(rows, dtype=torch.int32)
        self._ids = zeros(rows, MOST_ALTERNATIVES, dtype=torch.int32)
        self._values = zeros(rows, MOST_ALTERNATIVES, dtype=torch.float32)

    @property
    def record_room(self) -> int:
        """How many records fit."""
        return RECORDS // self.record_length

    def prepare(self, settings: SamplingSettings, sampled: int = 0) -> None:
        """Set how to sample from now on; the next sample is number `sampled`."""
        warm = settings.temperature > 0
        alternatives = min(settings.alternatives, self.vocab_size, MOST_ALTERNATIVES)
        self.filters = Filters(
            top_k=warm and 0 < settings.top_k < self.vocab_size,
            top_p=warm and settings.top_p < 1,
            min_p=warm and settings.min_p > 0,
            alternatives=alternatives > 0,
        )
        self.record_length = HEADER + 2 * alternatives
        factor = 1 / settings.temperature if warm else 1.0
        numbers = [factor, float(warm), settings.repetition_penalty, settings.min_p, settings.top_p, 0, 0, 0]
        top_k = min(settings.top_k, self.vocab_size)
        self._numbers.copy_(torch.tensor(numbers))
        self._limits.copy_(torch.tensor([top_k, int(self.filters.top_k), alternatives, self.record_length]))
        # Every row has its own seed; the first has the given one.
        seeds = [(settings.seed ^ row * 0x9E3779B97F4A7C15) & ((1 << 63) - 1) for row in range(self._rows)]
        self._seeds.copy_(torch.tensor(seeds))
        self.sampled.fill_(sampled)
        self.next_record.zero_()

    def changing(self) -> list[Tensor]:
        """Everything that `launch` changes and the next one depends on."""
        return [self.next_record, self.sampled, self.seen]

    def launch(self, logits: Tensor, tokens: Tensor) -> None:
        """Sample a token for each row from logits (rows, V) into `tokens` (rows,), and write its record."""
        filters, pieces, rows = self.filters, self._pieces, self._rows
        padded: dict[str, Any] = {"PIECE": kernels.PIECE, "PIECES": triton.next_power_of_2(pieces)}
        inputs = (logits, self.seen, self._numbers)
        searched = (self._peaks, self._histograms, self._states, self._ties)
        filtered = filters.top_k or filters.top_p or filters.min_p
        if filtered or filters.alternatives:
            size = self._histograms[0].numel()
            kernels.peak_kernel[(pieces, rows)](
                *inputs, self._peaks, self._histograms, self._collected, self.vocab_size, pieces, rows, size,
                PIECE=kernels.PIECE, CLEAR=triton.next_power_of_2(triton.cdiv(size, pieces)),
            )  # fmt: skip
        for jobs in filters.searches:
            step = jobs[1] - jobs[0] if len(jobs) > 1 else 1
            for number, (shift, bits) in enumerate(kernels.PASSES):
                kernels.histogram_kernel[(pieces, len(jobs), rows)](
                    *inputs, self._limits, *searched, self.vocab_size, pieces, rows, jobs[0], step, number,
                    shift, BITS=bits, FIRST=number == 0, num_warps=8, **padded,
                )  # fmt: skip
        kernels.sample_kernel[(pieces, rows)](
            *inputs, self._seeds, self.sampled, *searched, self._best, self._best_token, self.vocab_size,
            pieces, int(filters.top_p), FILTERED=filtered, SEARCHED=filters.top_k or filters.top_p, **padded,
        )  # fmt: skip
        if filters.alternatives:
            kernels.collect_kernel[(pieces, rows)](
                *inputs, *searched, self._collected, self._ids, self._values, self.vocab_size, pieces, rows,
                MOST_ALTERNATIVES, **padded,
            )  # fmt: skip
        kernels.record_kernel[(rows,)](
            self._best, self._best_token, self._limits, tokens, self.seen, self.sampled, self.next_record,
            self.records, self._ids, self._values, self.vocab_size, pieces, MOST_ALTERNATIVES, RECORDS,
            PIECES=padded["PIECES"], ROOM=MOST_ALTERNATIVES, ALTERNATIVES=filters.alternatives,
        )  # fmt: skip


def read_records(records: np.ndarray[Any, Any]) -> list[SampledToken]:
    """The tokens of records (N, record length) int32."""
    count = (records.shape[1] - HEADER) // 2
    tokens, finite = records[:, 0].tolist(), records[:, 2].tolist()
    probabilities = records.view(np.float32)[:, 1].tolist()
    alternatives: list[list[tuple[int, float]]] = [[]] * len(tokens)
    if count:
        ids = records[:, HEADER : HEADER + count]
        shares = np.ascontiguousarray(records[:, HEADER + count :]).view(np.float32)
        order = np.lexsort((ids, -shares))
        ids, shares = np.take_along_axis(ids, order, 1), np.take_along_axis(shares, order, 1)
        alternatives = [list(zip(*both)) for both in zip(ids.tolist(), shares.tolist())]
    return [SampledToken(*each) for each in zip(tokens, probabilities, map(bool, finite), alternatives)]
