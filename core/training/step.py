"""One optimizer step: read a batch, learn from it, and store its numbers to be read later.

The trainer knows only the `TrainingStep` protocol, so a step captured in a CUDA graph can replace the plain
one. Numbers stay on the device until somebody reads them: `read` never waits for running steps unless told
to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.config.schema import RunConfig
from core.data.loader import SequentialLoader
from core.model import GPT, ModelState
from core.training.arithmetic import autocast
from core.training.gradient_buckets import GradientBuckets
from core.training.optimizer import AdamW
from core.training.ranks import ALONE, Ranks
from core.training.schedule import Schedule
from core.training.teacher import Teacher


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one optimizer step. `good` is False if it was skipped because they weren't finite."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    waited: float
    good: bool


class TrainingStep(Protocol):
    """One optimizer step, however it is computed."""

    state: ModelState
    """The model's state for each batch row after the last step."""
    forward: Callable[..., object]
    """The model, or the compiled model."""
    plain: Callable[..., object]
    """`forward` without compiling."""
    schedule: Schedule
    """The learning rate of each step."""
    notices: list[str]
    """Messages for the user about how steps are computed; whoever shows them clears the list."""

    def run(self, step: int) -> None:
        """Run the optimizer step of this number (the first is 1)."""

    def read(self, *, wait: bool) -> list[StepMetrics]:
        """The metrics of steps that haven't been read yet, in order; all of them with `wait`."""

    def load_state(self, state: ModelState) -> None:
        """Continue from this model state."""

    def weights_changed(self) -> None:
        """The model's weights were replaced: use the new ones from the next step on."""


class EagerStep:
    """The plain step: forward and backward for each accumulated batch, clip, update.

    If the loss or gradient isn't finite, the update is skipped and the rows' state returns to that before the
    step, on the device itself, so that the host doesn't need to know.
    """

    def __init__(
        self,
        model: GPT,
        forward: Callable[..., object],
        optimizer: AdamW,
        loader: SequentialLoader,
        config: RunConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        teacher: Teacher | None = None,
    ) -> None:
        self.schedule = Schedule(config.training)
        self._teacher = teacher
        self.state = model.initial_state(ranks.rows(config), device)
        self.forward = forward
        self.plain: Callable[..., object] = model
        self.notices: list[str] = []
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer
        self._loader = loader
        self._config = config
        self._device = device
        self._ranks = ranks
        self._buckets = GradientBuckets(ranks, self._parameters) if ranks.several else None
        self._unread = Unread()

    def load_state(self, state: ModelState) -> None:
        """Continue from this model state."""
        self.state = state.to(self._device)

    def weights_changed(self) -> None:
        """Nothing to do: the step reads the model's own weights."""

    def run(self, step: int) -> None:
        """Run the optimizer step of this number (the first is 1)."""
        training = self._config.training
        rate = self.schedule.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        count = training.gradient_accumulation_steps
        state, total, waited = self.state, torch.zeros((), device=self._device), 0.0
        for batch in range(count):
            began = time.perf_counter()
            x, y, doc_start = (self._to_device(torch.from_numpy(item)) for item in self._loader.next_batch())
            waited += time.perf_counter() - began
            with autocast(self._config, self._device):
                lesson = () if self._teacher is None else (self._teacher.lesson(x, doc_start),)
                output = self.forward(x, state, doc_start, y, *lesson)
            loss = output.loss / (count * self._ranks.size)  # type: ignore[attr-defined]
            total += loss.detach()
            if self._buckets is not None and batch == count - 1:
                self._buckets.begin(total)
            loss.backward()
            state = output.state.detach()  # type: ignore[attr-defined]
        if self._buckets is not None:
            total = self._buckets.finish().clone()
            for parameter, mean in zip(self._parameters, self._buckets.means):
                parameter.grad = mean
        norm = self._update(total)
        self._keep_if_finite(state, torch.isfinite(total) & torch.isfinite(norm))
        self._unread.add(step, rate, waited, torch.stack((total.float(), norm.float())))

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return tensor
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _update(self, loss: Tensor) -> Tensor:
        """Clip, update and clear the gradients. Returns their norm before clipping."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._config.training.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.training.grad_clip, norm)
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self._optimizer.found_inf = bad.float()
        self._optimizer.step()
        self._optimizer.exchange()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _keep_if_finite(self, state: ModelState, good: Tensor) -> None:
        if self._device.type == "cpu":
            self.state = state if good else self.state
            return
        before = self.state.tensors()
        self.state = ModelState.from_tensors(
            {name: torch.where(good, tensor, before[name]) for name, tensor in state.tensors().items()}
        )

    def read(self, *, wait: bool) -> list[StepMetrics]:
        """The metrics of steps that haven't been read yet, in order; all of them with `wait`."""
        return self._unread.read(wait=wait)


class Unread:
    """The numbers of steps that nobody has read yet; they stay on the device until then."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float, float, Tensor]] = []
        self._arriving: Transfer | None = None

    def __len__(self) -> int:
        """The number of steps whose numbers are only on the device."""
        return len(self._steps)

    def add(self, step: int, rate: float, waited: float, numbers: Tensor) -> None:
        """Add a step; `numbers` (2,) are its loss and gradient norm."""
        self._steps.append((step, rate, waited, numbers))

    def read(self, *, wait: bool) -> list[StepMetrics]:
        """The numbers that have arrived, in order; with `wait`, all of them."""
        metrics: list[StepMetrics] = []
        if self._arriving is not None and (wait or self._arriving.done):
            metrics += self._arriving.metrics()
            self._arriving = None
        if self._arriving is None and self._steps:
            transfer = Transfer(self._steps)
            self._steps = []
            if wait or transfer.done:
                metrics += transfer.metrics()
            else:
                self._arriving = transfer
        return metrics


class Transfer:
    """Numbers on their way from the device; on CUDA, without making anybody wait."""

    def __init__(self, steps: list[tuple[int, float, float, Tensor]]) -> None:
        self._steps = [(step, rate, waited) for step, rate, waited, _ in steps]
        numbers = torch.stack([pair for *_, pair in steps])
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            target = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            target.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
            self._numbers = target
        else:
            self._numbers = numbers.cpu()

    @property
    def done(self) -> bool:
        """Whether the numbers have arrived."""
        return self._arrived is None or bool(self._arrived.query())

    def metrics(self) -> list[StepMetrics]:
        """The numbers of each step, after waiting for them if necessary."""
        if self._arrived is not None:
            self._arrived.synchronize()
        finite = torch.isfinite(self._numbers).all(1).tolist()
        return [
            StepMetrics(step, loss, norm, rate, waited, good)
            for (step, rate, waited), (loss, norm), good in zip(self._steps, self._numbers.tolist(), finite)
        ]
