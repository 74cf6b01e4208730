"""The model's parts: shapes, initialization, state handling, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from core.config.schema import ATTENTION_TYPES, build
from core.model import DT_MAX, DT_MIN, GPT, MIXERS, MambaBlock, ModelState
from tests.test_invariant import awake_model


def hourglass(**changes):
    values = {
        "n_embd": [24, 16, 8, 16, 24],
        "n_head": [2, 2, 1, 2, 4],
        "attention_type": ["mamba", "standard", "mamba2", "mamba", "standard"],
        "block_size": 16,
    }
    return build(values | changes).model


def test_every_kind_of_the_configuration_has_a_mixer():
    assert tuple(MIXERS) == ATTENTION_TYPES


@pytest.mark.parametrize("kind", ATTENTION_TYPES)
@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_any_layer_may_change_the_width(kind, position):
    config = build(
        {"n_embd": [8, 16, 4], "n_head": 2, "attention_type": kind, "position": position, "block_size": 8}
    ).model
    model = GPT(config, 70)
    out = model(torch.randint(70, (3, 8)))
    assert out.loss is None
    assert out.logits.shape == (3, 8, 70)
    assert model.embedding.weight.shape == (128, 8)


def test_loss_is_the_cross_entropy_of_the_logits():
    model = awake_model(hourglass(), 0, torch.float64)
    tokens, targets = torch.randint(11, (2, 16)), torch.randint(11, (2, 16))
    targets[0, :5] = -100
    out = model(tokens, targets=targets)
    assert out.logits is None
    expected = F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(out.loss, expected)


def test_a_new_model_is_nearly_uniform():
    torch.manual_seed(0)
    loss = GPT(hourglass(), 300)(torch.randint(300, (4, 16)), targets=torch.randint(300, (4, 16))).loss
    assert abs(loss.item() - math.log(300)) < 0.1


def test_padding_rows_get_no_gradient_and_change_nothing():
    model = awake_model(hourglass(tie_embeddings=False), 0, torch.float32)
    tokens = torch.randint(11, (2, 8))
    model(tokens, targets=tokens).loss.backward()
    assert not model.head.weight.grad[11:].any()
    before = model(tokens, targets=tokens).loss
    with torch.no_grad():
        model.head.weight[11:] = 1e3
    assert torch.equal(model(tokens, targets=tokens).loss, before)


def test_head_is_tied_unless_told():
    tied, untied = GPT(hourglass(), 11), GPT(hourglass(tie_embeddings=False), 11)
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight


def test_step_sizes_and_decay_start_as_mamba_says():
    block = MambaBlock(hourglass(expand=8), 0)
    dt = F.softplus(block.dt_bias)
    assert (dt >= DT_MIN * 0.99).all()
    assert (dt <= DT_MAX * 1.01).all()
    assert dt.log().std() > 1  # spread over the magnitudes, not bunched at one end
    torch.testing.assert_close(-torch.exp(block.A_log)[0], -torch.arange(1.0, 17.0))


def test_encode_gives_the_waist():
    model = awake_model(hourglass(), 0, torch.float64)
    tokens = torch.randint(11, (2, 12))
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, 7] = True
    whole = model.encode(tokens, doc_start=starts)
    assert whole.shape == (2, 12, 8)
    state = model(tokens[:, :5], doc_start=starts[:, :5]).state
    torch.testing.assert_close(model.encode(tokens[:, 5:], state, starts[:, 5:]), whole[:, 5:])


def test_encode_of_a_model_of_one_width():
    model = awake_model(hourglass(n_embd=[8] * 5, n_head=1), 0, torch.float32)
    assert model.encode(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 8)


def test_state_survives_its_tensors_and_picks_batch_rows():
    model = awake_model(hourglass(), 0, torch.float64)
    tokens = torch.randint(11, (3, 9))
    state = model(tokens).state
    again = ModelState.from_tensors({name: tensor.clone() for name, tensor in state.tensors().items()})
    more = torch.randint(11, (3, 4))
    expected = model(more, state).logits
    assert torch.equal(model(more, again).logits, expected)
    index = torch.tensor([2, 0, 2])
    torch.testing.assert_close(model(more[index], state.batch_rows(index)).logits, expected[index])


def test_detached_state_carries_values_but_no_graph():
    model = awake_model(hourglass(), 0, torch.float64)
    state = model(torch.randint(11, (1, 6))).state
    assert any(tensor.requires_grad for tensor in state.tensors().values())
    detached = state.detach()
    for name, tensor in detached.tensors().items():
        assert not tensor.requires_grad
        assert torch.equal(tensor, state.tensors()[name])


def test_forward_does_not_write_into_the_state_it_is_given():
    model = awake_model(hourglass(), 0, torch.float32)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for length in (1, 20):
                state = model(torch.randint(11, (2, 7))).state
                copy = state.map(torch.clone)
                model(torch.randint(11, (2, length)), state, torch.rand(2, length) < 0.3)
                for name, tensor in state.tensors().items():
                    assert torch.equal(tensor, copy.tensors()[name]), name


def test_activation_checkpointing_changes_memory_only():
    gradients = []
    for checkpointing in (False, True):
        model = awake_model(hourglass(dropout=0.2), 0, torch.float64)
        model.activation_checkpointing = checkpointing
        torch.manual_seed(1)
        tokens = torch.randint(11, (2, 16))
        out = model(tokens, model.initial_state(2), targets=tokens)
        out.loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain)


def test_dropout_only_in_training():
    model = awake_model(hourglass(dropout=0.5), 0, torch.float32)
    tokens = torch.randint(11, (1, 8))
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind", ATTENTION_TYPES)
def test_each_mixer_learns_to_look_back(kind):
    """A copy task no layer can solve from the current token: repeat what stood three steps before."""
    torch.manual_seed(0)
    config = build({"n_layer": 1, "n_embd": 32, "n_head": 2, "attention_type": kind, "block_size": 16}).model
    model = GPT(config, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        pattern = torch.randint(8, (32, 3), generator=generator)
        tokens = pattern.repeat(1, 6)
        loss = model(tokens[:, :-1], targets=tokens[:, 1:].clone().index_fill_(1, torch.arange(3), -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 < math.log(8)
