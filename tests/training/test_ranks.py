"""Several ranks compute what one computes: the same losses, weights, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from core.checkpoint import load
from core.config.preflight import ranks_wanted
from core.config.schema import build
from core.data.loader import EvaluationLoader, SequentialLoader
from core.errors import UserError
from core.runs import Run, RunLock, start_trainer, trainer_exit_code
from core.runs.event_file import read_tail
from core.runs.events import WarningEvent
from core.training.ranks import ALONE, TIMEOUT_VARIABLE, RankLostError, Ranks
from tests.data.test_loader import ArrayStream
from tests.run_tools import curve, evaluations, history, new_run, train_here, wait_for, write_text

MIXED = {
    "n_embd": [8, 4, 8],
    "n_head": 2,
    "attention_type": ["mamba", "standard", "mamba2"],
    "block_size": 8,
    "batch_size": 4,
    "dropout": 0.0,
    "dtype": "float32",
    "learning_rate": 3e-4,
    "max_iters": 50,
    "eval_interval": 25,
    "sample_tokens": 0,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, dataset) -> Run:
    """The run of one process that others are compared with."""
    run = new_run(tmp_path_factory.mktemp("alone"), dataset, **MIXED)
    assert train_here(run) == 0
    return run


def be_rank(rank: int, size: int, folder: Path, stop_at: int, environment: dict[str, str]) -> None:
    """One rank of a run, in a process of its own; ends with the rank's exit code."""
    os.environ |= environment | {"MAMBA_TUI_EVENT_SECONDS": "0", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    from core.training.follow import follow
    from core.training.process import TrainerProcess
    from tests.run_tools import StopAt

    torch.set_num_threads(1)
    run = Run(folder)
    if rank:
        os._exit(follow(run, run.config(), Ranks(rank, size, rank)))
    with RunLock(run.lock_path):
        trainer = TrainerProcess(run, run.config(), size)
        trainer.requests = StopAt(run, trainer.writer)
        trainer.requests.step = stop_at
        os._exit(trainer.run())


def train_together(run: Run, size: int, stop_at: int = 1 << 60, **environment: str) -> list[int | None]:
    """Train a run with so many ranks, as torchrun would start them; their exit codes."""
    with contextlib.closing(socket.create_server(("localhost", 0))) as free:
        port = free.getsockname()[1]
    environment |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    # A server that has torch loaded already: a rank begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.training.follow", "core.training.process", __name__])
    ranks = [
        context.Process(target=be_rank, args=(rank, size, run.path, stop_at, environment))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def assert_close(run: Run, other: Run) -> None:
    """Losses to 1e-6 of themselves, the final checkpoint to 1e-5; the same text, step by step."""
    ours, theirs = dict(curve(run)), dict(curve(other))
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[step] - theirs[step]) <= 1e-6 * theirs[step] for step in theirs)
    for mine, its in zip(evaluations(run), evaluations(other), strict=True):
        assert mine == pytest.approx(its, rel=1e-6)
    a, b = (load(one.checkpoints()[-1].path) for one in (run, other))
    assert a["loader"] == b["loader"]
    assert list(a["optimizer"]) == list(b["optimizer"])
    for part in ("model", "model_state"):
        assert a[part].keys() == b[part].keys()
        for name, tensor in b[part].items():
            assert torch.allclose(a[part][name], tensor, atol=1e-5, rtol=1e-5), name
    for name, entry in b["optimizer"].items():
        for key, tensor in entry.items():
            assert torch.allclose(a["optimizer"][name][key], tensor, atol=1e-5, rtol=1e-5), (name, key)


@pytest.mark.parametrize(("size", "environment"), [(2, {}), (4, {"MAMBA_TUI_SHARD_FROM": "0"})])
def test_ranks_compute_what_one_process_computes(tmp_path, dataset, alone, size, environment):
    run = new_run(tmp_path, dataset, **MIXED)
    assert train_together(run, size, **environment) == [0] * size
    assert_close(run, alone)


def test_a_run_goes_on_with_more_ranks_and_back(tmp_path, dataset):
    run, whole = (new_run(tmp_path, dataset, name, **MIXED | {"max_iters": 15}) for name in ("run", "whole"))
    assert train_here(whole) == 0
    assert train_here(run, stop_at=4) == 130
    # Ranks end with 0 when they were asked to stop: torchrun would start them again otherwise.
    assert train_together(run, 2, stop_at=10, MAMBA_TUI_SHARD_FROM="0") == [0, 0]
    assert [info.step for info in run.checkpoints()][-1] == 10
    assert train_here(run) == 0
    assert_close(run, whole)


def test_accumulation_dropout_and_resuming_repeat_themselves(tmp_path, dataset):
    changes = MIXED | {"dropout": 0.2, "gradient_accumulation_steps": 2, "max_iters": 8, "eval_interval": 4}
    first, second = (new_run(tmp_path, dataset, name, **changes) for name in ("first", "second"))
    assert train_together(first, 2) == [0, 0]
    assert train_together(second, 2, stop_at=6) == [0, 0]
    for path in second.path.glob("checkpoint_step_6.*"):  # as if a rank had died after step 6
        path.unlink()
    assert train_together(second, 2) == [0, 0]
    assert curve(first) == curve(second)


def rank_process(launcher: int, rank: int) -> int:
    """The process of a rank that a launcher has started; 0 if there is none."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if f"PPid:\t{launcher}\n" in (folder / "status").read_text() and (
                f"LOCAL_RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0")
            ):
                return int(folder.name)
    return 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_rank_ends_the_others_and_training_goes_on_by_itself(tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("MAMBA_TUI_EVENT_SECONDS", "0")
    changes = MIXED | {
        "batch_size": 2,
        "n_embd": 8,
        "attention_type": "mamba",
        "checkpoint_interval": 5,
        "max_iters": 30,
    }
    run = new_run(tmp_path, dataset, **changes, ranks=2)
    pid = start_trainer(run)
    # One that dies while all still load torch: the run begins again, as nobody has asked it to stop.
    wait_for(lambda: history(run).history.run is not None, "rank 0")
    second = wait_for(lambda: rank_process(pid, 1), "rank 1")
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: history(run).history.step >= 7, "steps")
    victim = history(run).history.run.pid  # rank 0, which writes the history
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: trainer_exit_code(pid) is not None, "the end", 120)
    assert trainer_exit_code(pid) == 0
    said = [event.message for event in read_tail(run.events_path) if isinstance(event, WarningEvent)]
    assert any(
        f"rank 0 (process {victim}) was killed by SIGKILL; training resumes from" in one for one in said
    )
    assert any(f"rank 1 (process {second}) was killed by SIGKILL; training " in one for one in said)
    whole = new_run(tmp_path, dataset, "whole", **changes)
    assert train_together(whole, 2) == [0, 0]
    assert curve(run) == curve(whole)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("environment", [{}, {"MAMBA_TUI_SHARD_FROM": "0"}], ids=["whole", "divided"])
def test_two_devices_compute_what_one_does(tmp_path, dataset, environment):
    changes = MIXED | {"device": "cuda", "max_iters": 20, "eval_interval": 10}
    run, one = (new_run(tmp_path, dataset, name, **changes) for name in ("run", "one"))
    assert train_here(one) == 0
    assert train_together(run, 2, **environment) == [0, 0]
    ours, theirs = dict(curve(run)), dict(curve(one))
    assert ours == pytest.approx(theirs, rel=1e-4)
    for mine, its in zip(evaluations(run), evaluations(one), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


def wait_in_vain(rank: int, port: int, meeting: Barrier, answer: SimpleQueue) -> None:
    """Two ranks meet; then rank 0 waits for rank 1, which lives on and does not answer."""
    os.environ |= {TIMEOUT_VARIABLE: "4", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = Ranks(rank, 2, rank)
    meeting.wait(120)  # whoever starts later must not use up the time
    ranks.join(torch.device("cpu"))
    if rank == 0:
        try:
            ranks.broadcast(torch.zeros(3), 1)
        except RankLostError as error:
            answer.put(str(error))
    meeting.wait(120)
    os._exit(0)


def test_a_rank_that_does_not_answer_is_a_sentence():
    with contextlib.closing(socket.create_server(("localhost", 0))) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.training.follow", "core.training.process", __name__])
    meeting, answer = context.Barrier(2), context.SimpleQueue()
    for rank in range(2):
        context.Process(target=wait_in_vain, args=(rank, port, meeting, answer), daemon=True).start()
    assert answer.get() == "rank 0 has waited 4 s for another rank, which does not answer"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ranks": 3, "batch_size": 4}, "batch_size is 4, which 3 ranks cannot divide evenly"),
        ({"ranks": 64, "batch_size": 32}, "a multiple of 64, such as 64"),
    ],
)
def test_a_batch_that_ranks_cannot_divide_is_refused(values, says):
    with pytest.raises(UserError, match=says):
        ranks_wanted(build({"device": "cpu"} | values))


def test_rows_of_all_ranks_are_the_batch():
    stream = ArrayStream(4000)
    whole = SequentialLoader(stream, 0, 8, 16, 4, 1)
    parts = [SequentialLoader(stream, 0, 8, 16, 4, 1, rows=Ranks(rank, 4).share(8)) for rank in range(4)]
    for _ in range(40):
        x = whole.next_batch().x
        assert (torch.tensor(x) == torch.cat([torch.tensor(part.next_batch().x) for part in parts])).all()
    assert all(part.state_dict() == whole.state_dict() for part in parts)


@pytest.mark.parametrize("size", [2, 3, 40])
def test_evaluation_rows_are_shared_out_without_a_rest(size):
    stream = ArrayStream(16 * 16 * 7 + 5)
    whole = EvaluationLoader(stream, 0, 32, 16)
    parts = [EvaluationLoader(stream, 0, 32, 16, share=Ranks(rank, size).share) for rank in range(size)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert (torch.tensor(batch.y) == torch.cat([torch.tensor(share.y) for share in shares])).all()


def test_one_process_has_nothing_to_share():
    ALONE.leave()
    assert ALONE.first
    assert not ALONE.several
    assert ALONE.from_first(lambda: 7) == 7
    assert ALONE.share(5) == slice(0, 5)
