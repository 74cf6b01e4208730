"""The reports about layers are true: every figure compared with a slower way to compute it, in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import MAMBA, MAMBA2, STANDARD, build
from core.inspection.attention import attention_map, entropy, mean_distance
from core.inspection.lens import answers_at, lens_logits, lens_losses
from core.inspection.memory import (
    around,
    effective_attention,
    half_lives,
    half_lives_at,
    mean_effective_attention,
    recurrence,
    state_norms,
)
from core.inspection.stream import (
    active_share,
    contribution,
    directions_for,
    effective_rank,
    singular_values,
)
from core.inspection.trace import trace
from core.model import GPT, decay_rates
from core.ops.positions import ROPE_BASE
from tests.ops.reference_ops import conv_loop, scan_loop
from tests.test_invariant import VOCABULARY, awake_model, model_configs

CLOSE = {"atol": 1e-11, "rtol": 1e-11}


@st.composite
def looks(draw, config=model_configs()):  # noqa: B008
    """A model in float64, and a text with documents that begin anywhere."""
    seed = draw(st.integers(0, 1 << 20))
    model = awake_model(draw(config), seed, torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    length = draw(st.integers(1, 14))
    tokens = torch.randint(VOCABULARY, (length,), generator=generator)
    starts = torch.rand(length, generator=generator) < draw(st.sampled_from((0.0, 0.2)))
    return model, trace(model, tokens, starts)


def one_layer(kind):
    """Configurations with a single layer of a kind, anything else at random."""
    return model_configs().map(
        lambda config: (
            build(
                {
                    "n_layer": 1,
                    "n_head": [config.n_head[0]],
                    "n_embd": [config.n_embd[0]],
                    "attention_type": [kind],
                    "block_size": config.block_size,
                    "position": config.position,
                    "d_state": config.d_state,
                    "d_conv": config.d_conv,
                    "expand": config.expand,
                }
            ).model
        )
    )


def documents_of(seen):
    """The text's documents as (first, one after the last)."""
    starts = seen.doc_start.nonzero().flatten().tolist()
    return list(zip(starts, [*starts[1:], len(seen.tokens)]))


@settings(max_examples=8, deadline=None)
@given(looks())
def test_the_lens_says_what_the_model_says_when_the_layers_to_come_add_nothing(look):
    model, seen = look
    for layer in range(-1, len(seen.layers)):
        silenced = copy.deepcopy(model)
        for block in silenced.blocks[layer + 1 :]:
            block.mixer.out.weight.data.zero_()
            block.mlp.down.weight.data.zero_()
        wanted = silenced(seen.tokens[None], None, seen.doc_start[None]).logits[0]
        torch.testing.assert_close(lens_logits(seen, layer), wanted, **CLOSE)
    torch.testing.assert_close(model.logits(seen.features), wanted, **CLOSE)


@settings(max_examples=8, deadline=None)
@given(looks(), st.data())
def test_answers_are_read_off_the_logits(look, data):
    _, seen = look
    token = data.draw(st.integers(0, len(seen.tokens) - 1))
    answers = answers_at(seen, token, 3)
    order = [
        lens_logits(seen, layer)[token].argsort(descending=True) for layer in range(-1, len(seen.layers))
    ]
    assert [one.tokens for one in answers.layers] == [found[:3].tolist() for found in order]
    if token + 1 < len(seen.tokens):
        following = int(seen.tokens[token + 1])
        ranks = [int((found == following).nonzero()) for found in order]
        assert [one.rank for one in answers.layers] == ranks
        assert answers.answer_from == (ranks.index(0) - 1 if 0 in ranks else None)
        shares = [float(lens_logits(seen, one.layer)[token].softmax(0)[following]) for one in answers.layers]
        assert [one.probability for one in answers.layers] == pytest.approx(shares, rel=1e-5)
    else:
        assert answers.following is None
        assert all(one.rank is None for one in answers.layers)
    said = [int(found[0]) for found in order]
    same = next(i for i in range(len(said)) if len(set(said[i:])) == 1)
    assert answers.decided_from == same - 1
    if len(seen.tokens) > 1:
        losses = [
            F.cross_entropy(lens_logits(seen, layer)[:-1], seen.tokens[1:])
            for layer in range(-1, len(seen.layers))
        ]
        assert lens_losses(seen) == pytest.approx([float(loss) for loss in losses], rel=1e-9)


@settings(max_examples=8, deadline=None)
@given(looks(one_layer(STANDARD)))
def test_attention_is_what_a_loop_over_queries_and_keys_gives(look):
    model, seen = look
    mixer, length = model.blocks[0].mixer, len(seen.tokens)
    weights = attention_map(seen, 0)
    q, k, v = mixer.qkv(seen.layers[0].mixer_input).view(length, 3, mixer.heads, -1).unbind(1)
    size, window = q.shape[2], model.config.block_size
    wanted = torch.zeros_like(weights)
    outputs = torch.zeros_like(q)

    def rotated(x, position):
        half = size // 2
        angles = position * ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
        turn = torch.polar(torch.ones(half, dtype=torch.float64), angles)
        out = torch.complex(x[:half], x[half:]) * turn
        return torch.cat((out.real, out.imag))

    for first, end in documents_of(seen):
        for t in range(first, end):
            seen_by = range(max(first, t - window + 1), t + 1)
            for head in range(mixer.heads):
                query = rotated(q[t, head], t - first) if mixer.rope else q[t, head]
                scores = torch.stack([
                    query @ (rotated(k[s, head], s - first) if mixer.rope else k[s, head]) / math.sqrt(size)
                    for s in seen_by
                ])  # fmt: skip
                shares = scores.softmax(0)
                wanted[head, t, list(seen_by)] = shares
                outputs[t, head] = shares @ v[list(seen_by), head]
    torch.testing.assert_close(weights, wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(mixer.out(outputs.flatten(1)), seen.layers[0].mixed, atol=1e-9, rtol=1e-9)
    for head in range(mixer.heads):
        for t in range(length):
            row = wanted[head, t]
            nats = -sum(w * math.log(w) for w in row.tolist() if w > 0)
            assert float(entropy(weights)[head, t]) == pytest.approx(nats, abs=1e-8)
            back = sum(float(row[s]) * (t - s) for s in range(length))
            assert float(mean_distance(weights)[head, t]) == pytest.approx(back, abs=1e-8)


def slow_recurrence(model, seen):
    """x (T, G, P), delta (T, G), rates (G, N) and B, C (T, N) of the only layer, by plain loops."""
    mixer, one = model.blocks[0].mixer, seen.layers[0]
    reset, projected = seen.doc_start[None], one.mixer_input @ mixer.in_proj.weight.t()

    def normed(x, norm):
        return x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight

    if hasattr(mixer, "x_proj"):
        inner = mixer.D.shape[0]
        x, _ = conv_loop(projected[None, :, :inner], mixer.conv_weight, mixer.conv_bias, reset=reset)
        dt, B, C = (x[0] @ mixer.x_proj.weight.t()).split(mixer.split, 1)
        dt, B, C = normed(dt, mixer.dt_norm), normed(B, mixer.B_norm), normed(C, mixer.C_norm)
        raw, rates, x = dt @ mixer.dt_proj.weight.t(), decay_rates(mixer.A_log), x[0].unsqueeze(2)
    else:
        inner, states = mixer.inner, mixer.states
        mixed, _ = conv_loop(
            projected[None, :, inner : 2 * inner + 2 * states],
            mixer.conv_weight,
            mixer.conv_bias,
            reset=reset,
        )
        x, B, C = mixed[0].split((inner, states, states), 1)
        raw, x = projected[:, 2 * inner + 2 * states :], x.view(len(x), mixer.heads, -1)
        rates = decay_rates(mixer.A_log)[:, None].expand(-1, states)
    return x, torch.log1p(torch.exp(raw + mixer.dt_bias)), rates, B, C


@settings(max_examples=8, deadline=None)
@given(st.one_of(looks(one_layer(MAMBA)), looks(one_layer(MAMBA2))))
def test_effective_attention_is_what_an_input_alone_leaves_in_every_output(look):
    model, seen = look
    memory, length = recurrence(seen, 0), len(seen.tokens)
    x, delta, rates, B, C = slow_recurrence(model, seen)
    whole = effective_attention(memory, torch.arange(memory.groups))
    raw = torch.log(torch.expm1(delta))[None]  # scan_loop takes step sizes before their softplus
    for s in range(length):
        pulse = torch.zeros(1, length, memory.groups, dtype=torch.float64)
        pulse[0, s] = 1.0
        left, _ = scan_loop(pulse, raw, rates, B[None], C[None], reset=seen.doc_start[None])
        torch.testing.assert_close(whole[:, :, s].t(), left[0], atol=1e-9, rtol=1e-8)
    # Applied to the inputs it gives what the layer adds to the stream.
    mixer = model.blocks[0].mixer
    y = torch.einsum("gts,sgp->tgp", whole, x) + mixer.D[:, None] * x
    gate = seen.layers[0].mixer_input @ mixer.in_proj.weight.t()
    if hasattr(mixer, "x_proj"):
        out = y.flatten(1) * F.silu(gate[:, mixer.D.shape[0] :])
    else:
        out = mixer.norm(y.flatten(1) * F.silu(gate[:, : mixer.inner]))
    torch.testing.assert_close(mixer.out(out), seen.layers[0].mixed, atol=1e-9, rtol=1e-8)
    part = slice(length // 3, length), slice(length // 4, length)
    torch.testing.assert_close(
        mean_effective_attention(memory, *part), whole.abs().mean(0)[part], atol=1e-12, rtol=1e-9
    )
    norms = state_norms(memory)
    for t in range(length):
        columns = x.flatten(1).shape[1] // memory.groups
        wide_delta = raw.repeat_interleave(columns, 2)[:, : t + 1]
        _, state = scan_loop(
            x.flatten(1)[None, : t + 1], wide_delta, rates.repeat_interleave(columns, 0),
            B[None, : t + 1], C[None, : t + 1], reset=seen.doc_start[None, : t + 1],
        )  # fmt: skip
        assert float(norms[t]) == pytest.approx(float(state.norm()), rel=1e-8)


@settings(max_examples=8, deadline=None)
@given(st.one_of(looks(one_layer(MAMBA)), looks(one_layer(MAMBA2))), st.data())
def test_half_of_a_state_is_left_after_its_half_life(look, data):
    model, seen = look
    memory = recurrence(seen, 0)
    _, delta, rates, _, _ = slow_recurrence(model, seen)
    rates = rates if memory.rates.shape[1] > 1 else rates[:, :1]
    left = torch.exp(delta.mean(0)[:, None] * rates * half_lives(memory))
    torch.testing.assert_close(left, torch.full_like(left, 0.5), atol=1e-9, rtol=0)
    starts = seen.doc_start.nonzero().flatten()
    offset = data.draw(st.integers(-2, 3))
    tokens = around(memory, starts, offset)
    wanted = [
        first + offset
        for first, end in documents_of(seen)
        if first <= first + offset < end
    ]  # fmt: skip
    assert tokens.tolist() == wanted
    if wanted:
        left = torch.exp(delta[wanted].mean(0)[:, None] * rates * half_lives_at(memory, tokens))
        torch.testing.assert_close(left, torch.full_like(left, 0.5), atol=1e-9, rtol=0)


@settings(max_examples=8, deadline=None)
@given(looks())
def test_contributions_and_units_are_counted_token_by_token(look):
    model, seen = look
    for layer, one in enumerate(seen.layers):
        adds, shares = contribution(one), active_share(one)
        block = model.blocks[layer]
        fires = torch.zeros_like(shares)
        for t in range(len(seen.tokens)):
            fires += block.mlp.up.weight @ block.mlp_norm(one.middle[t]) > 0
            passed = block.skip(one.before[t])
            assert float(adds.mixer[t]) == pytest.approx(
                float((one.middle[t] - one.before[t]).norm() / one.before[t].norm()), rel=1e-6
            )
            assert float(adds.mlp[t]) == pytest.approx(
                float((one.after[t] - block.skip(one.middle[t])).norm() / block.skip(one.middle[t]).norm()),
                rel=1e-6,
            )
            assert float(adds.layer[t]) == pytest.approx(
                float((one.after[t] - passed).norm() / passed.norm()), rel=1e-6
            )
        torch.testing.assert_close(shares, fires / len(seen.tokens))
        encoded, _ = model.encode_layer(layer, seen.tokens[None], None, seen.doc_start[None])
        torch.testing.assert_close(one.middle, encoded[0], **CLOSE)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 1 << 20))
@settings(max_examples=8, deadline=None)
def test_the_spectrum_is_that_of_the_covariance(length, width, seed):
    stream = torch.randn(length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = singular_values(stream)
    centered = stream - stream.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centered.t() @ centered).flip(0)[: len(values)].clamp(min=0)
    torch.testing.assert_close(values.square(), eigenvalues, atol=1e-9, rtol=1e-9)
    shares = values / values.sum() if values.sum() > 0 else values
    wanted = math.exp(-sum(float(p) * math.log(float(p)) for p in shares if p > 0)) if values.sum() > 0 else 0
    assert effective_rank(values) == pytest.approx(wanted)
    variance = values.square() / values.square().sum() if values.sum() > 0 else values
    if values.sum() > 1e-9:
        count = directions_for(values, 0.9)
        assert float(variance[:count].sum()) >= 0.9 - 1e-12
        assert float(variance[: count - 1].sum()) < 0.9
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert directions_for(torch.zeros(3), 0.9) == 0
    assert effective_rank(torch.zeros(3)) == 0


def test_a_model_that_drops_out_is_not_looked_at():
    model = GPT(build({"n_layer": 1, "n_embd": [8], "n_head": [2], "attention_type": [MAMBA]}).model, 11)
    with pytest.raises(ValueError, match="eval"):
        trace(model.train(), torch.zeros(3, dtype=torch.int64))
