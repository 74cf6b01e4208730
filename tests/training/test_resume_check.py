"""A checkpoint from elsewhere with a crafted state: one sentence, before anything of the run changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from core.errors import UserError
from core.runs import CheckpointInfo, prepare_run
from core.training.build import build_parts, payload_of, restore
from tests.run_tools import tiny, write_text

INFO = CheckpointInfo(2, Path("checkpoint_step_2.pt"), 0, "", None, None, None, 0.0, False)
WEIGHT = "embedding.weight"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    config = tiny(write_text(tmp_path_factory.mktemp("text")))
    run = prepare_run(tmp_path_factory.mktemp("runs"), "r", config)
    parts = build_parts(run, config, None, lambda words, share: None)
    for step in (1, 2):
        parts.training_step.run(step)
    return parts


@pytest.fixture(scope="module")
def whole(parts):
    return copy.deepcopy(payload_of(parts, parts.config, 2, {"train_loss": 1.0}, 96, 0))


# (where in the payload, what is there instead, words of the sentence)
CRAFTED = [
    ("step", 10**12, "its step is 1,000,000,000,000"),
    ("step", -1, "its step is -1"),
    (f"optimizer/{WEIGHT}", None, f"optimizer state of {WEIGHT} is missing"),
    (f"optimizer/{WEIGHT}/average", torch.zeros(3), f"optimizer average of {WEIGHT} is 3 there"),
    (f"optimizer/{WEIGHT}/average", torch.zeros(1).expand(10**12), "larger than its stored data"),
    (f"optimizer/{WEIGHT}/square", "x", "of type str"),
    (f"optimizer/{WEIGHT}/square", torch.eye(3).to_sparse(), "sparse"),
    (f"optimizer/{WEIGHT}/step", torch.tensor(1e30), "accepted: 0 to 1,000,000,000"),
    (f"optimizer/{WEIGHT}/step", torch.tensor(float("nan")), "accepted: 0 to 1,000,000,000"),
    (f"optimizer/{WEIGHT}/step", torch.zeros(2), "is not a number"),
    ("loader/cursor", -1, "loader's cursor"),
    ("loader/epoch", 1 << 64, "loader's epoch"),
    ("loader/spare", -5, "loader's spare"),
    ("loader/seed", torch.zeros(2), "loader's seed"),
    ("loader/rows/0", [10**9, 1, 0], "position 1,000,000,000 with 1 chunks is outside"),
    ("loader/rows/0", [0, 10**9, 0], "outside of the text"),
    ("loader/rows/0", [-16, 1, 0], "position -16"),
    ("loader/rows/0", [0, 0, 0], "outside of the text"),
    ("loader/rows/0", ["a", 1, 0], "two whole numbers"),
    ("loader/rows", 5, "rows are missing"),
    ("loader/rests", [[0, 1 << 40]], "outside of the text"),
    ("loader/pending", [[1]], "two whole numbers"),
    ("rng/cpu", torch.zeros(16, dtype=torch.uint8), "random state (cpu) is not 5,056 bytes"),
    ("rng/cpu", torch.zeros(5056), "random state (cpu)"),
    ("rng/cpu", torch.full((5056,), 255, dtype=torch.uint8), "random state (cpu) is not one of"),
    ("rng", {}, "random state (cpu)"),
    ("model_state/position", torch.full((3,), -1), "positions are out of range"),
    ("model_state/position", torch.zeros(3), "positions are not a row"),
    ("model_state/position", torch.zeros(4, dtype=torch.int64), "different numbers of batch rows"),
    ("model_state/layers.0.ssm_state", torch.zeros(3, 1), "model state layers.0.ssm_state is 3x1"),
    ("model_state/layers.9.keys", torch.zeros(3), "another model"),
    ("progress/tokens", -3, "its tokens is -3"),
    ("progress/schedule", {"begin": 1, "steps": 0}, "schedule's steps is 0"),
    ("progress/schedule", [], "schedule is missing"),
    ("progress/best", {"loss": "x", "step": 1, "since": 0}, "loss is not a number"),
    ("losses/train_loss", "x", "losses are not numbers"),
    ("data", {"train_tokens": torch.zeros(2)}, "record of the text"),
]  # fmt: skip


def put(payload, place, value):
    *folders, name = place.split("/")
    for folder in folders:
        payload = payload[folder]
    payload[int(name) if isinstance(payload, list) else name] = value


def state_of(parts):
    return copy.deepcopy(payload_of(parts, parts.config, 2, {}, 0, 0))


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize(
    ("place", "value", "words"),
    CRAFTED,
    ids=[f"{place}-{number}" for number, (place, *_) in enumerate(CRAFTED)],
)
def test_a_crafted_state_is_one_sentence(parts, whole, place, value, words):
    payload, before = copy.deepcopy(whole), state_of(parts)
    put(payload, place, value)
    with pytest.raises(UserError) as refused:
        restore(parts, payload, INFO)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert same(state_of(parts), before)


def test_a_whole_state_is_restored(parts, whole):
    parts.training_step.run(3)
    restore(parts, copy.deepcopy(whole), INFO)
    assert parts.step == 2
    assert same(state_of(parts)["optimizer"], whole["optimizer"])
    assert same(state_of(parts)["loader"], whole["loader"])


@pytest.mark.parametrize("key", ["tokens", "block_size", "carry_chunks"])
def test_a_huge_spare_of_another_text_begins_a_new_epoch(parts, whole, key):
    payload = copy.deepcopy(whole)
    payload["loader"] |= {key: 7, "spare": 1 << 50}
    restore(parts, payload, INFO)
    assert parts.loader.epoch >= 1
    restore(parts, copy.deepcopy(whole), INFO)
