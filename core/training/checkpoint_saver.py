"""Saving during training: the trainer waits only for the copy to host memory; a thread writes to disk."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from core.checkpoint import Payload, save, to_host
from core.config.schema import TrainingConfig
from core.runs.checkpoints import CheckpointInfo, checkpoint_path, find_checkpoints, prune


@dataclass(frozen=True)
class Saved:
    """The result of a save: the manifest on disk, or the reason why there is none."""

    step: int
    info: CheckpointInfo | None
    problem: str
    seconds: float


class CheckpointSaver:
    """Saves one checkpoint at a time. Only the trainer's thread calls it; results are queued in `results`."""

    def __init__(self, folder: Path, policy: TrainingConfig, history: Path | None = None) -> None:
        self.folder = folder
        self.history = history
        self.policy = policy
        self._thread: threading.Thread | None = None
        self._done: list[Saved] = []
        self._newest: tuple[int, bool] | None = None

    def has(self, step: int, *, evaluated: bool) -> bool:
        """Whether this step is saved or being saved, with as much known about it."""
        return self._newest is not None and self._newest in ((step, True), (step, evaluated))

    def submit(self, payload: Payload, losses: dict[str, float | None]) -> None:
        """Copy the payload to host memory and save it in the background, once no other save is running."""
        self.wait()
        step = payload["step"]
        manifest = CheckpointInfo(
            step=step,
            path=checkpoint_path(self.folder, step),
            bytes=0,
            sha256="",
            train_loss=losses.get("train_loss"),
            validation_loss=losses.get("validation_loss"),
            bits_per_byte=losses.get("bits_per_byte"),
            time=0.0,
            best=False,
        )
        self._newest = (step, manifest.validation_loss is not None)
        # A daemon, because a second Ctrl-C must not wait for a slow disk. An unfinished file is no
        # checkpoint.
        self._thread = threading.Thread(
            target=self._save, args=(to_host(payload), manifest), name="saver", daemon=True
        )
        self._thread.start()

    def loaded(self, step: int, *, evaluated: bool) -> None:
        """Remember that this step's checkpoint is already on disk, because the run resumes from it."""
        self._newest = (step, evaluated)

    def _save(self, payload: Payload, manifest: CheckpointInfo) -> None:
        began = time.perf_counter()
        try:
            # The events that lead up to a checkpoint must be in the history before the checkpoint exists.
            if self.history is not None:
                # If somebody removed the history, that is no reason to lose the weights as well.
                with contextlib.suppress(FileNotFoundError), open(self.history, "rb") as file:
                    os.fsync(file.fileno())
            info = save(manifest.path, payload, manifest)
        except Exception as error:  # disks fail in many ways; training survives all of them
            problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._newest = None
            self._done.append(Saved(manifest.step, None, problem, time.perf_counter() - began))
            return
        prune(self.folder, self.policy)
        declared = {info.step: info for info in find_checkpoints(self.folder)}
        seconds = time.perf_counter() - began
        self._done.append(Saved(manifest.step, declared.get(manifest.step, info), "", seconds))

    def results(self) -> list[Saved]:
        """The results of saves since the last call."""
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Wait until no save is running."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
