"""What the device draws, against what the host draws from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.kernels import DEVICE

import triton  # isort: skip
import triton.language as tl  # isort: skip

from core.generation.cuda.sampler import Drawer, Options, understood  # isort: skip
from core.ops.triton import sample_kernels as kernels  # isort: skip
from core.generation.sampling import SamplingConfig, candidates  # isort: skip

kept = kernels._kept


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


def draw(logits, options, seen=None, seed=0, drawn=0):
    """A record of one draw from logits (V,), and who drew it."""
    drawer = Drawer(len(logits), 1, torch.device(DEVICE))
    drawer.prepare(options, seed, drawn)
    if seen is not None:
        drawer.seen[0].copy_(seen)
    tokens = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    drawer.launch(logits[None].to(DEVICE), tokens)
    (record,) = understood(drawer.records[:, : drawer.length].cpu().numpy())
    assert record.token == tokens[0]
    assert drawer.seen[0, record.token] == 1
    return record, drawer


def kept_by(drawer, logits, job):
    """The tokens (V,) that a job keeps."""
    keys = (logits.max() - logits).view(torch.int32).to(DEVICE)
    out = torch.zeros_like(keys)
    pieces = triton.cdiv(len(logits), kernels.PIECE)
    keeping_kernel[(pieces,)](
        keys, out, drawer._tables, drawer._states, drawer._ties, drawer._numbers, job, pieces, len(logits),
        PIECE=kernels.PIECE, PIECES=triton.next_power_of_2(pieces),
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
    _, drawer = draw(logits, Options(**choice))
    found = kept_by(drawer, logits, int("top_p" in choice))
    distance = (logits.max() - logits).double() / choice["temperature"]
    found &= (-distance).exp() >= choice.get("min_p", 0)

    def expected(**changes):
        config = SamplingConfig(**choice | changes)
        return int((candidates(logits.double(), config) > 0).sum())

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
    options = Options(temperature=0.7, top_k=30, repetition_penalty=penalty, alternatives=7)
    record, _ = draw(logits, options, seen)
    own = logits.softmax(0)
    assert record.finite
    assert record.probability == pytest.approx(float(own[record.token]), rel=1e-5)
    ids, shares = zip(*record.alternatives)
    assert len(set(ids)) == 7
    torch.testing.assert_close(torch.tensor(shares), own.topk(7).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(own[list(ids)], torch.tensor(shares), rtol=1e-5, atol=0)


def test_more_alternatives_than_tokens():
    record, _ = draw(torch.tensor([0.5, 2.0, 1.0]), Options(alternatives=1000, top_k=5, top_p=0.999))
    assert [token for token, _ in record.alternatives] == [1, 2, 0]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_takes_what_the_host_takes(penalty):
    options = {"temperature": 0.0, "repetition_penalty": penalty}
    for seed in range(6):
        logits = some_logits(600, ("plain", "tied", "flat")[seed % 3], seed)
        seen = logits > logits.topk(20).values[-1]
        expected = candidates(logits, SamplingConfig(**options), seen).argmax()
        assert draw(logits, Options(**options), seen, seed=seed)[0].token == expected


def test_a_temperature_near_zero_is_greedy():
    logits = some_logits(600, "plain")
    for temperature in (1e-300, 1e-9):
        for top_p in (1.0, 0.9):
            record, _ = draw(logits, Options(temperature=temperature, top_p=top_p))
            assert record.token == logits.argmax()


@pytest.mark.parametrize("choice", [{}, {"temperature": 2.0, "min_p": 0.15, "repetition_penalty": 2.0}])
def test_draws_in_proportion(choice):
    """Against the host's distribution: the chance that a right one fails is below 1e-6."""
    logits, count = torch.tensor([1.0, 0.2, -0.4, 0.9, -1.5, 0.0]), 200
    seen = torch.tensor([True, False, True, False, False, False])
    drawer = Drawer(6, 1, torch.device(DEVICE))
    drawer.prepare(Options(**choice), seed=5)
    tokens = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for _ in range(count):
        drawer.seen[0].copy_(seen)
        drawer.launch(logits[None].to(DEVICE), tokens)
    records = drawer.records[0, : count * drawer.length].cpu().numpy().reshape(count, -1)
    found = torch.bincount(torch.from_numpy(records[:, 0]), minlength=6)
    weights = candidates(logits, SamplingConfig(**{"temperature": 1.0} | choice), seen)
    expected = weights / weights.sum() * count
    assert (found[expected == 0] == 0).all()
    real = expected > 0
    squares = float(((found - expected)[real] ** 2 / expected[real]).sum())
    assert squares < 37  # chi-squared with at most 5 degrees of freedom


def test_draws_only_what_is_kept():
    logits = some_logits(600, "flat")
    options = {"top_k": 2, "temperature": 1.0}
    allowed = candidates(logits, SamplingConfig(**options)).nonzero().flatten().tolist()
    assert {draw(logits, Options(**options), seed=seed)[0].token for seed in range(12)} == set(allowed)


def test_the_seed_and_the_number_of_the_draw_decide():
    logits = some_logits(600, "flat")

    def tokens(**which):
        return draw(logits, Options(), **which)[0].token

    assert tokens(seed=3) == tokens(seed=3)
    assert tokens(seed=(1 << 63) - 1, drawn=2) == tokens(seed=(1 << 63) - 1, drawn=2)
    assert len({tokens(seed=seed, drawn=drawn) for seed in (3, 4, 3 << 32) for drawn in (0, 1)}) == 6


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(value, top_p):
    logits = some_logits(600, "plain")
    logits[333] = value
    record, _ = draw(logits, Options(top_p=top_p, alternatives=2))
    assert not record.finite
    assert 0 <= record.token < 600
    assert not draw(torch.full((600,), -torch.inf), Options(top_p=top_p))[0].finite


def test_an_impossible_token_is_no_error():
    logits = some_logits(600, "plain")
    logits[10:] = -torch.inf
    record, _ = draw(logits, Options(top_p=0.99, alternatives=20))
    assert record.finite
    assert record.token < 10
    assert np.isclose(sum(share for _, share in record.alternatives), 1)
