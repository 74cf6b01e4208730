"""The validation loss of each file, added up while the whole text is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.runs.events import FilesEvent
from core.training.ranks import Ranks

MOST_FILES = 200
"""Files in one event: a history has many such events."""
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FileLoss:
    """The loss over what was read of one file.

    Attributes:
        name: of the file.
        tokens: how many were predicted.
        loss: their mean in nats.
        bits_per_byte: of the text that they stand for; nan without text.
    """

    name: str
    tokens: int
    loss: float
    bits_per_byte: float


def files_event(step: int, losses: Sequence[FileLoss]) -> FilesEvent:
    """What the history keeps of them: at most MOST_FILES, those of which most was read, by name."""
    most = sorted(losses, key=lambda one: -one.tokens)[:MOST_FILES]
    rows = [(one.name, one.tokens, round(one.loss, 4), round(one.bits_per_byte, 4)) for one in most]
    return FilesEvent(step=step, files=tuple(sorted(rows)))


class FileLosses:
    """Sums of losses by file. Losses stay on their device until `figures` asks for them.

    Attributes:
        files: names with the position in the stream at which each begins, in order.
    """

    def __init__(self, files: Sequence[tuple[str, int]], lengths: Int64) -> None:
        """`lengths` (V,) are the bytes of each token."""
        self.files = files
        self._starts = np.array([start for _, start in files], np.int64)
        self._lengths = lengths
        self._tokens = np.zeros(len(files), np.int64)
        self._bytes = np.zeros(len(files), np.int64)
        self._owners: list[Int64] = []
        self._losses: list[Tensor] = []

    def add(self, positions: Int64, targets: Int64, losses: Tensor) -> None:
        """Add the losses (B, T) of `targets` (B, T), of which row b begins at stream position positions[b].

        Targets below 0 are none.
        """
        there = targets >= 0
        at = positions[:, None] + np.arange(targets.shape[1])
        owners = np.searchsorted(self._starts, at[there], "right") - 1
        count = len(self.files)
        self._tokens += np.bincount(owners, minlength=count)
        sizes = np.bincount(owners, self._lengths[targets[there]], minlength=count)
        self._bytes += np.rint(sizes).astype(np.int64)
        self._owners.append(owners)
        self._losses.append(losses[torch.from_numpy(there).to(losses.device)])

    def figures(self, ranks: Ranks) -> tuple[FileLoss, ...]:
        """The files of which something was read, over all ranks, in the order of the text."""
        count = len(self.files)
        nats: npt.NDArray[Any] = np.zeros(count)
        if self._losses:
            losses = torch.cat(self._losses).float().cpu().numpy().astype(np.float64)
            nats = np.bincount(np.concatenate(self._owners), losses, minlength=count)
        sums = torch.from_numpy(np.stack((nats, self._tokens.astype(float), self._bytes.astype(float))))
        ranks.sum_on_hosts(sums)
        return tuple(
            FileLoss(
                name,
                int(tokens),
                float(total / tokens),
                float(total / math.log(2) / size) if size else math.nan,
            )
            for (name, _), total, tokens, size in zip(self.files, *sums.numpy(), strict=True)
            if tokens
        )
