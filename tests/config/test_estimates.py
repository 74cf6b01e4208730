"""Estimates compared with the built model."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import estimates as budget
from core.config.changes import replace
from core.config.files import preset
from core.config.schema import ATTENTION_TYPES, build
from core.config.speed import Speeds
from core.model import GPT


def built_parameters(config, vocab_size):
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config.model, vocab_size).parameters())


@settings(deadline=None, max_examples=30)
@given(data=st.data(), layers=st.integers(1, 5))
def test_parameters_are_exact(data, layers):
    def per_layer(values):
        return data.draw(st.lists(values, min_size=layers, max_size=layers))

    config = build(
        {
            "n_embd": per_layer(st.sampled_from([8, 24, 40, 64])),
            "n_head": per_layer(st.sampled_from([1, 2, 4])),
            "attention_type": per_layer(st.sampled_from(ATTENTION_TYPES)),
            "position": data.draw(st.sampled_from(["rope", "learned", "none"])),
            "tie_embeddings": data.draw(st.booleans()),
            "d_state": data.draw(st.integers(4, 20)),
            "d_conv": data.draw(st.integers(2, 5)),
            "expand": data.draw(st.integers(1, 3)),
        }
    )
    vocab_size = data.draw(st.integers(2, 300))
    assert budget.parameters(config.model, vocab_size) == built_parameters(config, vocab_size)


def test_operations_of_plain_attention_follow_the_common_formula():
    # 6 N + 12 layers * width * context (PaLM, arXiv 2204.02311, appendix B), N without the embedding.
    model = build({"n_embd": 64, "n_layer": 4, "n_head": 4, "attention_type": "standard"}).model
    weights = 4 * 12 * 64 * 64 + 64 * 320
    expected = 6 * weights + 12 * 4 * 64 * model.block_size
    assert budget.flops_per_token(model, 300) == pytest.approx(expected, rel=1e-9)


def test_memory_advice_computes_the_same_gradient_and_fits():
    config = preset("original")
    need = budget.training_memory(config, 50257)
    advice = budget.lower_memory_advice(config, 50257, need // 3)
    batch, steps = map(int, re.findall(r"to (\d+)", advice))
    assert batch * steps == config.training.batch_size
    assert budget.training_memory(replace(config, batch_size=batch), 50257) <= need // 3
    assert budget.training_memory(replace(config, batch_size=2 * batch), 50257) > need // 3
    assert "n_embd" in budget.lower_memory_advice(replace(config, batch_size=1), 50257, 1)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_ranks_share_rows_in_memory_and_in_time(kind):
    """What Configure shows for N cards: a rank's memory, and the speed of all together."""
    one = build({"batch_size": 64, "n_embd": 256, "n_layer": 4, "block_size": 256, "ranks": 1})
    two = replace(one, ranks=2)
    cuda = kind == "cuda"
    assert budget.training_memory(two, 1024, cuda=cuda) < budget.training_memory(one, 1024, cuda=cuda)
    whole, shared = (Speeds("", kind, 1).formula(config, 1024).step for config in (one, two))
    assert whole / 2 < shared < 0.75 * whole
