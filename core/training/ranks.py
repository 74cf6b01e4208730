"""The processes that train one run together under torchrun: which one this is, and how they communicate.

A rank is one of N processes, each with its own device. It reads B / N rows of every batch; rank 0 alone
decides, writes and takes commands. Checkpoints don't depend on ranks: rows and optimizer are gathered for
them.

`ALONE` stands for a single process; there every method returns at once.

There are two groups for communication. Sums of gradients go from device to device (over NCCL, or gloo on a
CPU). Decisions go from host to host over gloo: they never wait for a device, and hosts may be far ahead of
their devices.
"""

from __future__ import annotations

import datetime
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from core.config.estimates import SHARD_FROM
from core.config.schema import RunConfig
from core.errors import UserError
from core.model import ModelState
from core.runs.lock import process_start
from core.system.hardware import resolve_device
from core.training.launcher import EXIT_LOST
from core.training.requests import StopRequestedError, say

Shared = TypeVar("Shared")

LOOK_SECONDS = 0.25
TIMEOUT_VARIABLE = "MAMBA_TUI_RANK_SECONDS"
TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others' gradients, unless the environment says otherwise."""
SHARD_VARIABLE = "MAMBA_TUI_SHARD_FROM"


class RankLostError(Exception):
    """Another rank has ended or doesn't answer. The message is for the user."""


class Ranks:
    """This process among `size` ranks.

    Attributes:
        rank: 0 for the one that decides, writes and takes commands.
        size: the number of ranks.
        local: which device of its machine this rank uses.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local
        self._hosts: Any = None
        self._watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this rank decides and writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.size > 1

    def device_name(self, config: RunConfig) -> str:
        """This rank's device. Raises UserError if the configuration leaves none for it."""
        wanted = config.hardware.device
        name = resolve_device(wanted)
        if not self.several or name == "cpu":
            return name
        if ":" in name or name == "mps":
            raise UserError(
                f'device is "{wanted}", which is one device, for {self.size} ranks; accepted: cuda, cpu'
            )
        count = torch.cuda.device_count()
        if count and self.local >= count:
            raise UserError(f"ranks ask for more GPUs than this machine has ({count}); each rank needs one")
        return f"cuda:{self.local}"

    def join(self, device: torch.device, on_loss: Callable[[str], None] = say) -> None:
        """Meet the other ranks. From now on this process ends when another rank on this machine ends.

        `on_loss` is told which one, in a thread of its own. Raises RankLostError if the others don't appear.
        """
        if not self.several:
            return
        # Captured collectives aren't timed, and the thread that would time them disturbs the capture.
        # Multicast over NVLink hangs on some machines.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        cuda = device.type == "cuda"
        with self.reporting():
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                rank=self.rank,
                world_size=self.size,
                timeout=datetime.timedelta(seconds=_patience()),
                device_id=device if cuda else None,
            )
            # The others wait here, without a limit, while rank 0 prepares the text, samples or is paused.
            self._hosts = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
            peers: list[Any] = [None] * self.size
            dist.all_gather_object(peers, (platform.node(), os.getpid()), group=self._hosts)
        self._watch = Watch(peers, self.rank, on_loss)

    def leave(self) -> None:
        """Leave in good order. Each rank calls this last; the others don't count such a rank as lost."""
        if self._watch is None:
            return
        self._watch.stop()
        with self.reporting():
            dist.barrier(self._hosts)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn the transports' errors about a lost rank into one sentence."""
        try:
            yield
        except RuntimeError as error:  # torch.distributed.DistError is one
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> RankLostError:
        """The message for a failed exchange. Gives the watch a moment to find out which rank was lost."""
        if self._watch is not None and (who := self._watch.wait()):
            return RankLostError(who)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "timed out" in first.lower() or "timeout" in first.lower():
            return RankLostError(
                f"rank {self.rank} has waited {_patience():g} s for another rank, which does not answer"
            )
        return RankLostError(f"the ranks lost each other ({first[:160]})")

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let rank 0 run the block before the others; if it fails there, the others are asked to leave.

        They raise StopRequestedError then.
        """
        if self.first:
            done = False
            try:
                yield
                done = True
            finally:
                self.from_first(lambda: done)
            return
        if not self.from_first(lambda: False):
            raise StopRequestedError
        yield

    def from_first(self, decide: Callable[[], Shared]) -> Shared:
        """The result of `decide`, which runs on rank 0 only, on every rank. Sent from host to host."""
        if not self.several:
            return decide()
        box: list[Any] = [decide() if self.first else None]
        with self.reporting():
            dist.broadcast_object_list(box, src=0, group=self._hosts)
        shared: Shared = box[0]
        return shared

    def numbers_from_first(self, numbers: Tensor) -> None:
        """Copy rank 0's `numbers`, int64 on the host, to every rank."""
        if self.several:
            with self.reporting():
                dist.broadcast(numbers, src=0, group=self._hosts)

    def sum_on_hosts(self, numbers: Tensor) -> None:
        """Sum `numbers`, on the host, over the ranks."""
        if self.several:
            with self.reporting():
                dist.all_reduce(numbers, group=self._hosts)

    def rows(self, config: RunConfig) -> int:
        """How many rows of a batch this rank has."""
        return config.training.batch_size // self.size

    def share(self, count: int) -> slice:
        """Which of `count` rows this rank has."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gathered(self, state: ModelState) -> ModelState:
        """The state of all rows on rank 0; the other ranks keep theirs."""
        if not self.several:
            return state

        def gather(tensor: Tensor) -> Tensor:
            tensor = tensor.contiguous()
            parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.first else None
            with self.reporting():
                dist.gather(tensor, parts, dst=0)
            return torch.cat(parts) if parts else tensor

        return state.map(gather)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy a tensor on the device from rank `source` to every rank."""
        with self.reporting():
            dist.broadcast(tensor, src=source)

    def reseed(self, seed: int, step: int) -> None:
        """Give ranks other than 0 their own random numbers, which depend only on `step`.

        Called whenever a checkpoint is made or resumed from, so that a run draws the same numbers either way.
        """
        if not self.first:
            torch.manual_seed((seed * 1_000_003 + step * 8191 + self.rank) % (1 << 63))

    def shards(self, parameters: int) -> bool:
        """Whether the optimizer of a model with this many parameters is divided among the ranks."""
        return self.several and parameters >= int(os.environ.get(SHARD_VARIABLE, SHARD_FROM))


ALONE = Ranks()


def _patience() -> float:
    try:
        return float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
    except ValueError:
        return TIMEOUT_SECONDS


class Watch:
    """Ends this process soon after another rank on this machine, or the process that started both, has ended.

    A rank that waits on its device for a lost rank waits forever and handles no signals meanwhile.
    """

    def __init__(self, peers: list[tuple[str, int]], rank: int, on_loss: Callable[[str], None]) -> None:
        here = platform.node()
        self._peers = {
            f"rank {other} (process {pid})": (pid, process_start(pid))
            for other, (host, pid) in enumerate(peers)
            if host == here and other != rank
        }
        self._parent = os.getppid()
        self._on_loss = on_loss
        self._stopped = threading.Event()
        self._detected = threading.Event()
        self._who = ""
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def stop(self) -> None:
        """From now on other ranks may end."""
        self._stopped.set()

    def wait(self, seconds: float = 2.0) -> str:
        """Which rank has ended, as text; "" if none is missing after `seconds`."""
        if self._detected.wait(seconds):
            return self._who
        return ""

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            if os.getppid() != self._parent:
                os._exit(EXIT_LOST)  # the holder of the run's lock is gone, so write nothing more
            gone = [name for name, (pid, start) in self._peers.items() if process_start(pid) != start]
            if gone and not self._stopped.is_set():
                self._who = f"{gone[0]} has died"
                self._detected.set()
                break
        else:
            return
        # On a CPU the main thread notices as well and reports it itself. On a device it may never return.
        time.sleep(3.0)
        self._on_loss(self._who)
        os._exit(EXIT_LOST)
