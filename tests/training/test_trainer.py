"""The trainer in this process: what it says, does when told, and survives."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

import core.training.build
from core.checkpoint import load
from core.config.schema import build
from core.data.loader import EvaluationLoader
from core.model import GPT
from core.runs import EventReader, Run, log_tail, prepare_run, status
from core.runs.control import post_command
from core.training.evaluation import SplitLoss, evaluate
from core.training.out_of_memory import memory_advice, out_of_memory
from core.training.step import EagerStep
from tests.run_tools import curve, evaluations, history, new_run, tiny, train_here, write_text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def events(run: Run, kind: str):
    return [event for event in EventReader(run.events_path).poll() if event.kind == kind]


def test_a_whole_run_tells_its_story(tmp_path, dataset):
    run = new_run(tmp_path, dataset)
    assert train_here(run) == 0
    reader = EventReader(run.events_path)
    story = reader.poll()
    assert reader.skipped == 0
    assert story[0].kind == "run"
    assert story[-1].kind == "end"
    first, second = events(run, "run")
    assert (first.parameters, first.resumed_from) == (0, None)
    assert second.parameters > 0
    assert second.vocab_size == 257
    assert second.tokens_per_step == 48
    assert [step for step, _ in curve(run)] == list(range(1, 25))
    assert [step for step, *_ in evaluations(run)] == [8, 16, 24]
    assert [event.step for event in events(run, "sample")] == [8, 16, 24]
    assert [event.step for event in events(run, "checkpoint")] == [8, 16, 24]
    assert [info.step for info in run.checkpoints()] == [8, 16, 24]
    assert story[-1].checkpoint == "checkpoint_step_24.pt"
    assert events(run, "step")[-1].tokens == 24 * 48
    losses = [loss for _, loss in curve(run)]
    assert losses[0] == pytest.approx(math.log(257), rel=0.05)
    assert losses[-1] < losses[0] - 0.5
    validation = events(run, "eval")[-1]
    per_byte = validation.validation_loss / math.log(2)  # but marks between documents have no bytes
    assert validation.bits_per_byte == pytest.approx(per_byte, rel=0.05)
    best = min(run.checkpoints(), key=lambda info: info.validation_loss)
    assert best.best
    assert status(run).state == "finished"


def test_looking_changes_nothing_that_is_learned(tmp_path, dataset):
    often = new_run(tmp_path, dataset, "often", eval_interval=1, sample_tokens=5)
    seldom = new_run(tmp_path, dataset, "seldom", eval_interval=100, sample_tokens=0)
    assert train_here(often) == train_here(seldom) == 0
    assert curve(often) == curve(seldom)
    assert len(events(often, "sample")) == 24
    assert events(seldom, "sample") == []


def test_accumulated_batches_are_one_larger_batch(tmp_path, dataset):
    run = new_run(tmp_path, dataset, gradient_accumulation_steps=3, max_iters=4)
    assert train_here(run) == 0
    assert events(run, "step")[-1].tokens == 4 * 3 * 48
    epoch = events(run, "step")[-1].epoch
    single = new_run(tmp_path, dataset, "single", max_iters=12)
    assert train_here(single) == 0
    assert events(single, "step")[-1].epoch == epoch


def test_intervals_of_checkpoints_and_samples_of_their_own(tmp_path, dataset):
    run = new_run(tmp_path, dataset, checkpoint_interval=5, sample_interval=7, keep_last=2, max_iters=22)
    assert train_here(run) == 0
    assert [event.step for event in events(run, "checkpoint")] == [5, 10, 15, 20, 22]
    assert [event.step for event in events(run, "sample")] == [7, 14, 21]
    assert [info.step for info in run.checkpoints()] == [20, 22]
    assert events(run, "checkpoint")[0].validation_loss is None
    assert not events(run, "checkpoint")[0].best


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "standard"])
def test_every_kind_of_layer_learns_in_bfloat16(tmp_path, dataset, kind):
    run = new_run(tmp_path, dataset, attention_type=kind, dtype="bfloat16")
    assert train_here(run) == 0, status(run).message
    losses = [loss for _, loss in curve(run)]
    assert losses[-1] < losses[0] - 0.5
    assert evaluations(run)[-1][2] < losses[0]


class Sick(EagerStep):
    """A step whose loss or gradient is not finite at chosen steps."""

    bad: ClassVar[dict[int, str]] = {}

    def run(self, step: int) -> None:
        forward, kind = self.forward, self.bad.get(step)

        def sick(*arguments: object) -> object:
            output = forward(*arguments)
            factor = torch.tensor(math.inf if kind == "inf" else math.nan)
            if kind == "gradient":
                output.loss.register_hook(lambda gradient: gradient * math.nan)
                return output
            return output._replace(loss=output.loss * factor)

        self.forward = sick if kind else forward
        try:
            super().run(step)
        finally:
            self.forward = forward


@pytest.fixture
def sick(monkeypatch):
    monkeypatch.setattr(core.training.build, "make_step", Sick)
    monkeypatch.setattr(Sick, "bad", {})
    return Sick


def test_steps_that_are_not_finite_are_skipped_and_told(tmp_path, dataset, sick):
    sick.bad |= {5: "nan", 6: "inf", 10: "gradient"}
    run = new_run(tmp_path, dataset)
    assert train_here(run) == 0
    losses = dict(curve(run))
    assert not math.isfinite(losses[5])
    assert not math.isfinite(losses[6])
    assert all(math.isfinite(loss) for step, loss in losses.items() if step not in (5, 6))
    warnings = [event.message for event in events(run, "warning")]
    assert [message.split()[1] for message in warnings] == ["5", "10"]
    payload = load(run.checkpoints()[-1].path)
    assert all(torch.isfinite(tensor).all() for tensor in payload["model"].values())
    assert all(torch.isfinite(tensor.float()).all() for tensor in payload["model_state"].values())


def test_divergence_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, dataset, sick):
    sick.bad |= dict.fromkeys(range(12, 24), "nan")
    run = new_run(tmp_path, dataset, max_bad_steps=4)
    assert train_here(run) == 1
    folded = history(run).history
    assert folded.step == 15
    assert "4 steps in a row up to step 15" in folded.error.message
    assert "checkpoint_step_8.pt" in folded.error.message
    assert "learning_rate" in folded.error.advice
    assert (folded.end.reason, folded.end.checkpoint) == ("failed", "checkpoint_step_8.pt")
    assert [info.step for info in run.checkpoints()] == [8]
    # What was learned is still there: the cause removed, the run goes on.
    sick.bad.clear()
    assert train_here(run) == 0
    assert [step for step, _ in curve(run)] == list(range(1, 25))


def test_memory_running_out_is_told_with_what_to_lower(tmp_path, dataset, monkeypatch):
    def run_out(self, step):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(EagerStep, "run", run_out)
    run = new_run(tmp_path, dataset, batch_size=8)
    assert train_here(run) == 1
    (error,) = events(run, "error")
    assert "memory ran out on cpu" in error.message
    assert "lower batch_size from 8 to" in error.advice
    assert "OutOfMemoryError" in error.traceback
    assert status(run).state == "failed"
    assert "lower batch_size" in status(run).message


def test_what_counts_as_memory_running_out():
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))
    message, advice = memory_advice(build({"batch_size": 64, "device": "cpu"}), 50_000)
    assert "GiB" in message
    assert "batch_size from 64 to" in advice
    _, advice = memory_advice(build({"n_embd": [65536], "n_head": 1, "device": "cpu"}), 50_000)
    assert "lower n_embd or n_layer" in advice


def test_an_unknown_failure_is_told_with_its_traceback(tmp_path, dataset, monkeypatch):
    def fail(self, step):
        raise KeyError("x")

    monkeypatch.setattr(EagerStep, "run", fail)
    run = new_run(tmp_path, dataset)
    assert train_here(run) == 1
    (error,) = events(run, "error")
    assert error.message == "training failed: KeyError: 'x'"
    assert "in fail" in error.traceback
    assert events(run, "end")[0].reason == "failed"


def test_a_compiler_that_fails_costs_only_the_compiling(tmp_path, dataset, monkeypatch):
    def broken(model):
        def call(*arguments):
            torch.rand(3)  # a try that draws random numbers before it fails
            raise RuntimeError("no C compiler\nlong story")

        return call

    monkeypatch.setattr("core.training.compilation.can_compile", lambda device: True)
    monkeypatch.setattr("core.training.compilation.keep_what_is_compiled", lambda: None)
    monkeypatch.setattr(torch, "compile", broken)
    run, plain = new_run(tmp_path, dataset, compile=True), new_run(tmp_path, dataset, "plain")
    assert train_here(run) == train_here(plain) == 0
    assert [event.message for event in events(run, "warning")] == [
        "torch.compile failed (no C compiler); training continues without it"
    ]
    assert [event.state for event in events(run, "state")].count("compiling") == 1
    assert curve(run) == curve(plain)


def test_a_cpu_does_not_compile_and_says_so(tmp_path, dataset):
    run = new_run(tmp_path, dataset, compile=True, device="cpu")
    assert train_here(run) == 0
    assert "compiling takes longer" in events(run, "warning")[0].message
    assert "compiling" not in [event.state for event in events(run, "state")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda"}, "does not have"),
        ({"block_size": 60_000}, "fewer than"),
        ({"dataset_dir": "/none"}, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, dataset, changes, words):
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    run = new_run(tmp_path, dataset, **changes)
    assert train_here(run) == 2
    (error,) = events(run, "error")
    assert words in error.message
    assert error.traceback is None
    assert events(run, "run")
    assert status(run).state == "failed"


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(tmp_path, dataset):
    run = new_run(tmp_path, dataset, max_iters=4, eval_interval=4)
    assert train_here(run) == 0
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("block_size = 16", "block_size = 8"))
    assert train_here(run) == 2
    message = events(run, "error")[0].message
    assert "block_size is 16 in the run, 8 asked for" in message
    assert "--fresh" in message
    assert [info.step for info in run.checkpoints()] == [4]


def test_another_text_is_noticed(tmp_path):
    dataset = write_text(tmp_path / "text")
    run = new_run(tmp_path / "runs", dataset)
    assert train_here(run, stop_at=10) == 130
    (dataset / "book9.txt").write_text("something new to read " * 400)
    assert train_here(run) == 0
    assert any("the text has changed" in event.message for event in events(run, "warning"))
    assert [step for step, _ in curve(run)] == list(range(1, 25))


def test_commands_are_served_between_steps(tmp_path, dataset, monkeypatch):
    run = new_run(tmp_path, dataset)
    at_step = {
        3: [("evaluate", {}), ("sample", {"prompt": "word"})],
        5: [("save", {})],
        6: [("pause", {}), ("save", {}), ("resume", {})],
    }
    original = EagerStep.run

    def run_and_send(self, step):
        original(self, step)
        for command, arguments in at_step.get(step, []):
            post_command(run.control_path, command, arguments)

    monkeypatch.setattr(EagerStep, "run", run_and_send)
    assert train_here(run) == 0
    answers = events(run, "command")
    assert [event.command for event in answers] == [
        "evaluate",
        "sample",
        "save",
        "pause",
        "save",
        "resume",
    ]
    assert all(event.accepted for event in answers)
    assert [step for step, *_ in evaluations(run)] == [3, 8, 16, 24]
    assert (events(run, "sample")[0].step, events(run, "sample")[0].prompt) == (3, "word")
    assert [event.step for event in events(run, "checkpoint")] == [5, 6, 8, 16, 24]
    plain = new_run(tmp_path, dataset, "plain")
    monkeypatch.undo()
    assert train_here(plain) == 0
    assert curve(run) == curve(plain)


def test_a_stop_before_training_saves_nothing_and_breaks_nothing(tmp_path, dataset):
    run = new_run(tmp_path, dataset)
    assert train_here(run, stop_at=0) == 130
    assert events(run, "end")[0].reason == "stopped"
    assert run.checkpoints() == []
    assert train_here(run) == 0


def test_evaluation_weighs_tokens_and_leaves_the_model_as_it_was(dataset):
    config = tiny(dataset)
    torch.manual_seed(1)
    model = GPT(config.model, 257).train()
    with torch.no_grad():  # a new model's layers are silent, and its state would not matter
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)

    class Stream:
        files = (("a.txt", 0), ("empty.txt", 4), ("b.txt", 4))

        def __init__(self, tokens):
            self.tokens = torch.tensor(tokens).numpy()

        def __len__(self):
            return len(self.tokens)

        def gather(self, starts, count):
            return self.tokens[starts[:, None] + range(count)]

    class Text:
        train = Stream([i * 7 % 256 for i in range(400)])
        validation = Stream([i * 5 % 256 for i in range(7)])

    state = torch.get_rng_state()
    shares = []
    lengths = np.full(257, 4)
    found = evaluate(model, Text, 256, lengths, config, torch.device("cpu"), shares.append)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert shares[-1] == 1.0
    assert len(shares) == 3
    validation = found.validation
    assert (validation.tokens, validation.bytes, found.validation_share) == (6, 24, 1.0)
    assert validation.bits_per_byte == pytest.approx(validation.loss / math.log(2) / 4)
    model.eval()
    first, second = validation.files
    assert [(one.name, one.tokens) for one in validation.files] == [("a.txt", 3), ("b.txt", 3)]
    assert (first.loss + second.loss) / 2 == pytest.approx(validation.loss)
    assert first.bits_per_byte == pytest.approx(first.loss / math.log(2) / 4)
    with torch.no_grad():
        tokens = torch.from_numpy(Text.validation.tokens)[None]
        alone = float(model(tokens[:, :3], targets=tokens[:, 1:4]).loss)
    assert first.loss == pytest.approx(alone, rel=1e-5)
    assert not found.train.files
    losses, state = [], model.initial_state(1)
    with torch.no_grad():
        for batch in EvaluationLoader(Text.train, 256, 3, 16, 2):
            x, y, doc_start = map(torch.from_numpy, batch)
            output = model(x, state, doc_start, y)
            assert output.loss != model(x, None, doc_start, y).loss or not losses
            losses.append(float(output.loss))
            state = output.state
        assert found.train.loss == pytest.approx(sum(losses) / 2)
        error = abs(losses[0] - losses[1]) / 2
        assert found.train.standard_error == pytest.approx(error, rel=1e-4)
        tokens = torch.from_numpy(Text.validation.tokens)[None]
        assert validation.loss == pytest.approx(
            float(model(tokens[:, :-1], targets=tokens[:, 1:]).loss), rel=1e-5
        )
    assert math.isnan(SplitLoss(1.0, 0.1, 5, 0).bits_per_byte)


def test_the_log_is_empty_when_all_is_well(tmp_path, dataset):
    run = prepare_run(tmp_path, "run", tiny(dataset, max_iters=2))
    assert train_here(run) == 0
    assert log_tail(run.log_path) == ""
