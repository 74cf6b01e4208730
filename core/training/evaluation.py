"""How good a model is: the mean loss of both splits, read in order with the state carried along."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from core.config.schema import RunConfig
from core.data.loader import EvaluationLoader, Stream
from core.model import GPT
from core.training.step import autocast


class Text(Protocol):
    """What an evaluation needs of a corpus."""

    @property
    def train(self) -> Stream:
        """The tokens that are trained on."""

    @property
    def validation(self) -> Stream:
        """The tokens that never are."""


@dataclass(frozen=True)
class Evaluation:
    """Losses in nats per token, the same in bits per byte of text, and how long it took."""

    train_loss: float
    validation_loss: float
    bits_per_byte: float
    train_bits_per_byte: float
    seconds: float


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Nats per token to bits per byte, which compares across tokenizers."""
    return loss / math.log(2) / bytes_per_token if bytes_per_token > 0 else math.nan


@contextlib.contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Whatever happens inside, training draws the same random numbers afterwards."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


@torch.no_grad()
def split_loss(
    model: GPT,
    loader: EvaluationLoader,
    config: RunConfig,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """The mean loss over a split's evaluation batches, each lane's state carried from one to the next."""
    state = model.initial_state(loader.batch_size, device)
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count = 0
    for batch in loader:
        x, y, doc_start = (torch.from_numpy(item).to(device) for item in batch)
        with autocast(config, device):
            output = model(x, state, doc_start, y)
        assert output.loss is not None
        # The loss is a mean over real targets: weigh it by them, a short text's batch has missing ones.
        tokens = int((batch.y >= 0).sum())
        total += output.loss * tokens
        count += tokens
        state = output.state
        tick()
    return float(total) / max(count, 1)


def evaluate(
    model: GPT,
    text: Text,
    eot: int,
    bytes_per_token: tuple[float, float],
    config: RunConfig,
    device: torch.device,
    tick: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Both splits' losses. `bytes_per_token` is (training's, validation's); `tick` hears the share done.

    Leaves the model in the mode it was in, and the random numbers of training as they were.
    """
    began = time.perf_counter()
    training = config.training
    loaders = [
        EvaluationLoader(stream, eot, training.batch_size, config.model.block_size, training.eval_iters)
        for stream in (text.train, text.validation)
    ]
    batches, done = sum(map(len, loaders)), 0

    def count() -> None:
        nonlocal done
        done += 1
        tick(done / batches)

    was_training = model.training
    model.eval()
    try:
        with untouched_randomness(device):
            train_loss, validation_loss = (
                split_loss(model, loader, config, device, count) for loader in loaders
            )
    finally:
        model.train(was_training)
    return Evaluation(
        train_loss=train_loss,
        validation_loss=validation_loss,
        bits_per_byte=bits_per_byte(validation_loss, bytes_per_token[1]),
        train_bits_per_byte=bits_per_byte(train_loss, bytes_per_token[0]),
        seconds=time.perf_counter() - began,
    )
