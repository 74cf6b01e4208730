"""How good a model is: its mean loss over a text that is read in order, with the state carried along."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from core.config.schema import RunConfig
from core.data.loader import EvaluationLoader, Stream
from core.model import GPT
from core.ops.linear_cross_entropy import token_cross_entropy
from core.training.arithmetic import autocast
from core.training.file_losses import FileLoss, FileLosses
from core.training.ranks import ALONE, Ranks


class FileStream(Stream, Protocol):
    """A stream that knows which files it consists of."""

    @property
    def files(self) -> Sequence[tuple[str, int]]:
        """Names, each with the position at which it begins, in order."""


class Text(Protocol):
    """What an evaluation needs from a corpus."""

    @property
    def train(self) -> Stream:
        """The tokens of the training side."""

    @property
    def validation(self) -> FileStream:
        """The tokens of the validation side."""


@dataclass(frozen=True)
class SplitLoss:
    """The loss over some text.

    Attributes:
        loss: mean nats per token.
        standard_error: of that mean, from the spread of the batches' means; nan if there is one batch.
        tokens: how many tokens were predicted.
        bytes: of the text of these tokens.
        files: the loss of each file of it, if that was asked for.
    """

    loss: float
    standard_error: float
    tokens: int
    bytes: int
    files: tuple[FileLoss, ...] = ()

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of text, which can be compared across tokenizers; nan without text."""
        return self.loss * self.tokens / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Evaluation:
    """The losses on both splits, and how long computing them took."""

    train: SplitLoss
    validation: SplitLoss
    validation_share: float
    """How much of the validation text was read."""
    seconds: float


def token_lengths(tokens: tuple[bytes, ...]) -> npt.NDArray[np.int64]:
    """The number of bytes of each token id, (V,); 0 for the mark that starts a document."""
    return np.array([*(len(token) for token in tokens), 0], np.int64)


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
    lengths: npt.NDArray[np.int64],
    config: RunConfig,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks = ALONE,
    files: Sequence[tuple[str, int]] = (),
) -> SplitLoss:
    """The mean loss over a loader's batches, with each row's state carried from one batch to the next.

    With `files`, names and the positions where they begin in the loader's stream, also the loss of each.

    If ranks share the rows, every rank returns the loss over all of them.
    """
    state = model.initial_state(loader.rows, device)
    means, counts, text_bytes = [], [], 0
    by_file = FileLosses(files, lengths) if files else None
    for number, batch in enumerate(loader):
        counts.append(int((batch.y >= 0).sum()))
        text_bytes += int(lengths[batch.y[batch.y >= 0]].sum())
        if loader.rows == 0:  # there are fewer rows than ranks
            means.append(torch.zeros((), device=device))
            tick()
            continue
        x, y, doc_start = (torch.from_numpy(item).to(device) for item in batch)
        with autocast(config, device):
            features, state = model.features(x, state, doc_start)
            if by_file is None:
                loss = model.loss(features, y)
            else:
                each = token_cross_entropy(
                    features.flatten(0, 1), model.head.weight, y.flatten(), vocab_size=model.vocab_size
                )
                loss = each.sum() / max(1, counts[-1])
                by_file.add(loader.target_positions(number), batch.y, each.view(y.shape))
        # The loss is a mean over real targets, so it is weighted by their number: the last batches lack some.
        means.append(loss.float())
        tick()
    losses = (
        torch.stack(means).double().cpu().numpy()
        if device.type != "mps"
        else torch.stack(means).cpu().numpy()
    )
    weights = np.array(counts, np.float64)
    if ranks.several:
        sums = torch.from_numpy(np.concatenate((losses * weights, weights, [text_bytes])))
        ranks.sum_on_hosts(sums)
        weighted, weights = sums[: len(weights)].numpy(), sums[len(weights) : -1].numpy()
        losses, text_bytes = weighted / np.maximum(weights, 1.0), int(sums[-1])
    total = max(weights.sum(), 1.0)
    mean = float((losses * weights).sum() / total)
    error = math.nan
    if len(losses) > 1:
        error = float(
            np.sqrt((weights**2 * (losses - mean) ** 2).sum() * len(losses) / (len(losses) - 1)) / total
        )
    return SplitLoss(mean, error, int(total), text_bytes, by_file.figures(ranks) if by_file else ())


def evaluate(
    model: GPT,
    text: Text,
    eot: int,
    lengths: npt.NDArray[np.int64],
    config: RunConfig,
    device: torch.device,
    tick: Callable[[float], None] = lambda share: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """The losses on both splits. `lengths` (V,) are the bytes per token; `tick` is told how far it is.

    Leaves the model in its mode, and training's random numbers unchanged.
    """
    began = time.perf_counter()
    training = config.training
    loaders = [
        EvaluationLoader(
            stream,
            eot,
            training.batch_size,
            config.model.block_size,
            training.eval_iters,
            share=ranks.share if ranks.several else None,
        )
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
            train, validation = (
                split_loss(model, loader, lengths, config, device, count, ranks, files)
                for loader, files in zip(loaders, ((), text.validation.files), strict=True)
            )
    finally:
        model.train(was_training)
    return Evaluation(train, validation, loaders[1].share, time.perf_counter() - began)
