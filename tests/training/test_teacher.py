"""Runs whose model also learns from another model's predictions."""

from __future__ import annotations

import json

import pytest
import torch

from core.checkpoint import load
from core.config.schema import build
from core.model import GPT
from core.runs import EventReader
from core.runs.checkpoints import choose_checkpoint
from core.training.cuda_graph_step import CUDAGraphStep
from core.training.step import EagerStep
from core.training.teacher import Teacher
from tests.run_tools import evaluations, new_run, train_here, write_text
from tests.training.test_cuda_graph_step import assert_alike, make_step


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A finished run, and the folder of its text."""
    root = tmp_path_factory.mktemp("teacher")
    dataset = write_text(root / "text")
    run = new_run(root / "runs", dataset, "teacher", max_iters=16, average_decay=0.5)
    assert train_here(run) == 0
    return run, dataset


def test_a_student_takes_over_tokenizer_and_split_and_resumes_exactly(tmp_path, taught):
    teacher, dataset = taught
    settings = {"teacher": str(teacher.path), "mixer_dropout": 0.2, "seed": 7}
    whole = new_run(tmp_path / "whole", dataset, **settings)
    assert train_here(whole) == 0
    assert whole.tokenizer_path.read_bytes() == teacher.tokenizer_path.read_bytes()
    assert json.loads(whole.split_path.read_text()) == json.loads(teacher.split_path.read_text())
    best = choose_checkpoint(teacher.path)
    kept, original = load(whole.teacher_path, unverified=True), load(best.path)
    for name, tensor in kept["model"].items():
        assert torch.equal(tensor, original["averaged"][name]), name

    parts = new_run(tmp_path / "parts", dataset, **settings)
    assert train_here(parts, stop_at=11) == 130
    assert train_here(parts) == 0
    assert evaluations(parts) == evaluations(whole)
    one, two = (load(run.checkpoints()[-1].path) for run in (whole, parts))
    for part in ("model", "teacher_state"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, two[part][name]), name

    alone = new_run(tmp_path / "alone", dataset, mixer_dropout=0.2, seed=7)
    assert train_here(alone) == 0
    assert evaluations(alone)[-1] != evaluations(whole)[-1]


def test_a_student_goes_on_without_its_teachers_run(tmp_path, taught):
    teacher, dataset = taught
    moved = tmp_path / "elsewhere"
    run = new_run(tmp_path / "runs", dataset, teacher=str(choose_checkpoint(teacher.path).path))
    assert train_here(run, stop_at=5) == 130
    teacher.path.rename(moved)
    try:
        assert train_here(run) == 0
    finally:
        moved.rename(teacher.path)


def test_a_folder_without_a_checkpoint_is_refused_in_one_sentence(tmp_path, taught):
    run = new_run(tmp_path / "runs", taught[1], teacher=str(tmp_path))
    assert train_here(run) == 2
    (error,) = [event for event in EventReader(run.events_path).poll() if event.kind == "error"]
    assert error.message == (
        f"teacher is {tmp_path}, which has no checkpoint; accepted: a run that has saved one"
    )


@pytest.mark.parametrize("batches", [1, 3])
def test_every_step_learns_the_same_from_a_teacher(batches):
    steps = []
    for kind in (EagerStep, CUDAGraphStep):
        model, step = make_step(kind, gradient_accumulation_steps=batches)
        config = build({"n_embd": [24, 16], "n_head": 2, "attention_type": ["mamba", "standard"],
                        "block_size": 16, "dtype": "float32"})  # fmt: skip
        torch.manual_seed(1)
        teacher = GPT(config.model, 50)
        torch.nn.init.normal_(teacher.head.weight)
        step._teacher = Teacher(teacher, 4, config, torch.device("cpu"))
        steps.append((model, step))
    for _, step in steps:
        for number in range(1, 9):
            step.run(number)
    assert_alike(*steps)
