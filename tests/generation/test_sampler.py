"""The device's samples compared with the host's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.kernels import DEVICE

import triton  # isort: skip
import triton.language as tl  # isort: skip

from core.generation.cuda.sampler import DeviceSampler, read_records  # isort: skip
from core.ops.triton import sample_kernels as kernels  # isort: skip
from core.config.sampling import SamplingSettings  # isort: skip
from core.generation.sampler import next_token_probabilities  # isort: skip

kept = kernels._selected


@triton.jit
def keeping_kernel(
    keys, out, tables, states, ties, numbers, job, pieces, vocab_size,
    PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    real = column < vocab_size
    key = tl.load(keys + column, mask=real, other=0)
    mask = kept(key, real, tables, states, ties, numbers, job, tl.program_id(0), pieces, PIECES)
    tl.store(out + column, mask.to(tl.int32), mask=real)


def sample(logits, settings, seen=None, sampled=0):
    """A record of one sample of logits (V,), and who sampled it."""
    sampler = DeviceSampler(len(logits), 1, torch.device(DEVICE))
    sampler.prepare(settings, sampled)
    if seen is not None:
        sampler.seen[0].copy_(seen)
    tokens = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    sampler.launch(logits[None].to(DEVICE), tokens)
    (record,) = read_records(sampler.records[:, : sampler.record_length].cpu().numpy())
    assert record.token == tokens[0]
    assert sampler.seen[0, record.token] == 1
    return record, sampler


def kept_by(sampler, logits, job):
    """The tokens (V,) that a job keeps."""
    keys = (logits.max() - logits).view(torch.int32).to(DEVICE)
    out = torch.zeros_like(keys)
    pieces = triton.cdiv(len(logits), kernels.PIECE)
    keeping_kernel[(pieces,)](
        keys, out, sampler._histograms, sampler._states, sampler._ties, sampler._numbers, job, pieces,
        len(logits), PIECE=kernels.PIECE, PIECES=triton.next_power_of_2(pieces),
    )  # fmt: skip
    return out.bool().cpu()


def some_logits(size, kind, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=random) * 3
    if kind == "tied":
        logits = (logits * 2).round() / 2
    elif kind == "flat":
        logits *= 1e-3
    elif kind == "equal":
        logits = torch.full((size,), -2.5)
    return logits


@pytest.mark.parametrize("kind", ["plain", "tied", "flat", "equal"])
@pytest.mark.parametrize(
    "choice",
    [
        {"top_k": 1},
        {"top_k": 300, "temperature": 0.3},
        {"top_p": 0.9},
        {"top_p": 0.05, "temperature": 2.0},
        {"top_k": 40, "top_p": 0.7, "min_p": 0.05},
        {"top_p": 0.98, "min_p": 0.3},
    ],
)
def test_the_same_tokens_are_kept_as_on_the_host(kind, choice):
    logits = some_logits(600, kind)
    choice = {"temperature": 1.0} | choice
    _, sampler = sample(logits, SamplingSettings(**choice))
    found = kept_by(sampler, logits, int("top_p" in choice))
    distance = (logits.max() - logits).double() / choice["temperature"]
    found &= (-distance).exp() >= choice.get("min_p", 0)

    def expected(**changes):
        config = SamplingSettings(**choice | changes)
        return int((next_token_probabilities(logits.double(), config) > 0).sum())

    # The last digit of a sum of probabilities may be another: at most that one token more or less.
    top_p = choice.get("top_p", 1.0)
    least = expected(top_p=top_p * (1 - 1e-6)) if top_p < 1 else expected()
    most = expected(top_p=min(1.0, top_p * (1 + 1e-6)))
    assert least <= found.sum() <= most <= least + 1
    # They are the most probable ones, and of equal ones the first.
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    assert set(order[: int(found.sum())]) == set(found.nonzero().flatten().tolist())


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_a_record_has_the_models_own_probabilities(penalty, kind):
    logits = some_logits(600, kind)
    seen = torch.zeros(600, dtype=torch.bool)
    seen[logits.topk(5).indices] = True
    options = SamplingSettings(temperature=0.7, top_k=30, repetition_penalty=penalty, alternatives=7)
    record, _ = sample(logits, options, seen)
    own = logits.softmax(0)
    assert record.finite
    assert record.probability == pytest.approx(float(own[record.token]), rel=1e-5)
    ids, shares = zip(*record.alternatives)
    assert len(set(ids)) == 7
    torch.testing.assert_close(torch.tensor(shares), own.topk(7).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(own[list(ids)], torch.tensor(shares), rtol=1e-5, atol=0)


def test_more_alternatives_than_tokens():
    record, _ = sample(
        torch.tensor([0.5, 2.0, 1.0]), SamplingSettings(alternatives=1000, top_k=5, top_p=0.999)
    )
    assert [token for token, _ in record.alternatives] == [1, 2, 0]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_takes_what_the_host_takes(penalty):
    options = {"temperature": 0.0, "repetition_penalty": penalty}
    for seed in range(6):
        logits = some_logits(600, ("plain", "tied", "flat")[seed % 3], seed)
        seen = logits > logits.topk(20).values[-1]
        expected = next_token_probabilities(logits, SamplingSettings(**options), seen).argmax()
        assert sample(logits, SamplingSettings(**options, seed=seed), seen)[0].token == expected


def test_a_temperature_near_zero_is_greedy():
    logits = some_logits(600, "plain")
    for temperature in (1e-300, 1e-46, 1e-12, 1e-9):
        for top_p in (1.0, 0.9):
            record, _ = sample(logits, SamplingSettings(temperature=temperature, top_p=top_p))
            assert record.token == logits.argmax()


@pytest.mark.parametrize("choice", [{}, {"temperature": 2.0, "min_p": 0.15, "repetition_penalty": 2.0}])
def test_samples_in_proportion(choice):
    """Compared with the host's distribution: the chance that a correct sampler fails is below 1e-6."""
    logits, count = torch.tensor([1.0, 0.2, -0.4, 0.9, -1.5, 0.0]), 200
    seen = torch.tensor([True, False, True, False, False, False])
    sampler = DeviceSampler(6, 1, torch.device(DEVICE))
    sampler.prepare(SamplingSettings(**{"temperature": 1.0, "seed": 5} | choice))
    tokens = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for _ in range(count):
        sampler.seen[0].copy_(seen)
        sampler.launch(logits[None].to(DEVICE), tokens)
    records = sampler.records[0, : count * sampler.record_length].cpu().numpy().reshape(count, -1)
    found = torch.bincount(torch.from_numpy(records[:, 0]), minlength=6)
    weights = next_token_probabilities(logits, SamplingSettings(**{"temperature": 1.0} | choice), seen)
    expected = weights / weights.sum() * count
    assert (found[expected == 0] == 0).all()
    real = expected > 0
    squares = float(((found - expected)[real] ** 2 / expected[real]).sum())
    assert squares < 37  # chi-squared with at most 5 degrees of freedom


def test_samples_only_what_is_kept():
    logits = some_logits(600, "flat")
    options = {"top_k": 2, "temperature": 1.0}
    allowed = next_token_probabilities(logits, SamplingSettings(**options)).nonzero().flatten().tolist()
    assert {sample(logits, SamplingSettings(**options, seed=seed))[0].token for seed in range(12)} == set(
        allowed
    )


def test_the_seed_and_the_number_of_the_sample_decide():
    logits = some_logits(600, "flat")

    def tokens(seed, sampled=0):
        return sample(logits, SamplingSettings(seed=seed), sampled=sampled)[0].token

    assert tokens(seed=3) == tokens(seed=3)
    assert tokens(seed=1 << 53, sampled=2) == tokens(seed=1 << 53, sampled=2)
    assert len({tokens(seed, sampled) for seed in (3, 4, 3 << 32) for sampled in (0, 1)}) == 6


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(value, top_p):
    logits = some_logits(600, "plain")
    logits[333] = value
    record, _ = sample(logits, SamplingSettings(top_p=top_p, alternatives=2))
    assert not record.finite
    assert 0 <= record.token < 600
    assert not sample(torch.full((600,), -torch.inf), SamplingSettings(top_p=top_p))[0].finite


def test_an_impossible_token_is_no_error():
    logits = some_logits(600, "plain")
    logits[10:] = -torch.inf
    record, _ = sample(logits, SamplingSettings(top_p=0.99, alternatives=20))
    assert record.finite
    assert record.token < 10
    assert np.isclose(sum(share for _, share in record.alternatives), 1)
