"""The training step as one CUDA graph: the host sends positions and a learning rate, no more.

At these sizes, launching kernels one by one from Python takes longer than running them. So the first steps
run normally (which also compiles the kernels), and then a step is recorded once and replayed. The token
stream is kept on the device if it fits, so that a step's input is a few numbers per row. Loss and gradient
norm go to a ring buffer on the device and are read when they are needed.

If recording isn't possible, the same code runs without it (and on CPU, for the tests); `notices` says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.config.schema import RunConfig
from core.data.loader import SequentialLoader
from core.model import GPT, MambaState, ModelState
from core.ops.dispatch import takes_triton
from core.training.arithmetic import autocast
from core.training.bf16_weights import WorkingWeights
from core.training.compilation import compiled
from core.training.gradient_buckets import GradientBuckets
from core.training.optimizer import AdamW
from core.training.ranks import ALONE, Ranks
from core.training.schedule import Schedule
from core.training.step import StepMetrics, Unread
from core.training.teacher import Teacher

if TYPE_CHECKING:
    from core.ops.triton.adamw import FusedUpdate

WARM_UP_STEPS = 2
RING = 1024
"""How many steps' numbers the device holds; the host never runs further ahead."""
SLOTS = 32
"""How many inputs can be on their way to the device at a time."""
RESIDENT_BYTES = 4 << 30
"""A longer token stream stays on the host."""


class CUDAGraphStep:
    """A `TrainingStep` that computes what `EagerStep` does, replayed from a graph."""

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
        working = _working_type(config, device)
        self._working = None if working is None else WorkingWeights(model, working)
        self.plain: Callable[..., object] = model
        self.forward = forward
        if self._working is not None:
            self.plain = self._working.model
            self.forward = self.plain if forward is model else compiled(self._working.model)
        self.notices: list[str] = []
        self._optimizer = optimizer
        self._config = config
        self._device = device
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._ranks = ranks
        self._buckets: GradientBuckets | None = None
        if ranks.several:
            formed = [self._copy_of(parameter) for parameter in self._parameters]
            leaves = [
                parameter if copy is None or not copy.requires_grad else copy
                for parameter, copy in zip(self._parameters, formed)
            ]
            self._buckets = GradientBuckets(ranks, leaves)
        self._feed = Feed(loader, config, device, ranks.rows(config))
        # Cached keys and values are stored in the type in which attention computes.
        state = model.initial_state(ranks.rows(config), device, working)
        self.state = _laid_out_for_scans(state)
        self._batches = config.training.gradient_accumulation_steps
        self._fused = self._fused_update(optimizer, config.training.grad_clip)
        self._proposed = self.state
        """The state after the batch; it becomes the state if the step is good."""
        self._before = self.state.map(torch.clone) if self._batches > 1 else self.state
        """The state before the first of several batches, to return to."""
        self._loss = torch.zeros((), device=device)
        self._ring = torch.zeros(RING, 2, device=device)
        self._rate = torch.zeros((), device=device)
        self._unread = Unread()
        self._recorded: list[StepMetrics] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._may_capture = device.type == "cuda"
        self._taken = 0

    def load_state(self, state: ModelState) -> None:
        """Continue from this model state."""
        _copy(state, into=self.state)
        _copy(state, into=self._before)

    def weights_changed(self) -> None:
        """Copy the model's weights to the bf16 working weights."""
        if self._working is not None:
            self._working.refresh()

    def run(self, step: int) -> None:
        """Run the optimizer step of this number (the first is 1)."""
        if self._taken == 0:
            self.weights_changed()
        if self._may_capture and self._taken >= WARM_UP_STEPS:
            self._capture()
        if len(self._unread) >= RING // 2:
            self._recorded = self.read(wait=True)
        rate = self.schedule.rate(step)
        slot, waited = step % RING, 0.0
        for batch in range(self._batches):
            began = time.perf_counter()
            self._feed.send(rate, slot)
            waited += time.perf_counter() - began
            if self._graphs:
                self._graphs[0].replay()
            else:
                self._learn(first=batch == 0)
        if not self._graphs:
            self._update()
        elif len(self._graphs) > 1:
            self._graphs[1].replay()
        self._taken += 1
        self._unread.add(step, rate, waited, self._ring[slot])

    def read(self, *, wait: bool) -> list[StepMetrics]:
        """The metrics of steps that haven't been read yet, in order; all of them with `wait`."""
        metrics, self._recorded = self._recorded, []
        return metrics + self._unread.read(wait=wait)

    def _learn(self, *, first: bool) -> None:
        """Forward and backward of one batch; gradients and loss are accumulated, the state advances."""
        x, y, doc_start = self._feed.batch()
        if first:
            self._optimizer.zero_grad(set_to_none=True)
            self._loss.zero_()
        if self._working is not None:
            self._working.forget()
        with autocast(self._config, self._device):
            lesson = () if self._teacher is None else (self._teacher.lesson(x, doc_start),)
            output = self.forward(x, self.state, doc_start, y, *lesson)
        loss: Tensor = output.loss  # type: ignore[attr-defined]
        parts = self._batches * self._ranks.size
        share = loss / parts if parts > 1 else loss
        self._loss += share.detach()
        if self._buckets is not None and self._batches == 1:
            self._buckets.begin(self._loss)
        share.backward()
        if self._working is not None and not (self._fused and self._batches == 1):
            self._working.gather()
        self._proposed = output.state.detach()  # type: ignore[attr-defined]
        if self._batches > 1:
            _copy(self._proposed, into=self.state)

    def _fused_update(self, optimizer: AdamW, clip: float) -> FusedUpdate | None:
        """The update in three launches, if the kernels support it."""
        if not all(
            takes_triton(weight, "adamw") and weight.dtype == torch.float32 for weight in self._parameters
        ):
            return None
        from core.ops.triton.adamw import FusedUpdate

        return FusedUpdate(optimizer.param_groups, clip, self._copy_of, optimizer.others)

    def _copy_of(self, parameter: Tensor) -> Tensor | None:
        """A parameter's working weight, if it has one."""
        return None if self._working is None else self._working.copies.get(id(parameter))

    @torch.no_grad()
    def _update(self) -> None:
        """Clip, update and store the numbers, or change nothing if they aren't finite."""
        rate, slot = self._feed.schedule()
        self._average()
        if self._fused is not None:
            self._fused.step(self._arrived(self._fused.parameters), self._loss, rate, slot, self._ring)
            self._exchange()
            self._keep_if_finite(self._fused.good)
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        good = torch.isfinite(self._loss) & torch.isfinite(norm)
        clip = self._config.training.grad_clip
        # The optimizer divides by this; dividing the gradients separately would take as long as the
        # optimizer.
        self._optimizer.grad_scale = ((norm + 1e-6) / clip).clamp(min=1.0) if clip > 0 else None
        self._optimizer.found_inf = (~good).float()
        self._rate.copy_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self._optimizer.step()
        self._optimizer.exchange()
        if self._working is not None:
            self._working.refresh()
        self._keep_if_finite(good)
        self._ring.index_copy_(0, slot, torch.stack((self._loss, norm.float())).unsqueeze(0))

    def _average(self) -> None:
        """Average loss and gradients over the ranks."""
        if self._buckets is None:
            return
        if self._batches == 1:
            loss = self._buckets.finish()
        else:
            loss = self._buckets.send_all(self._loss, [parameter.grad for parameter in self._parameters])
        self._loss.copy_(loss)
        if self._fused is None:
            for parameter, mean in zip(self._parameters, self._buckets.means):
                assert parameter.grad is not None
                parameter.grad.copy_(mean)

    def _exchange(self) -> None:
        """Copy the weights that other ranks have updated."""
        if self._optimizer.sharded:
            self._optimizer.exchange()
            self.weights_changed()

    def _arrived(self, parameters: list[Tensor]) -> list[Tensor]:
        """Each parameter's gradient, where it is now: a working weight's may still be separate."""
        if self._buckets is not None:
            means = {id(weight): mean for weight, mean in zip(self._parameters, self._buckets.means)}
            return [means[id(parameter)] for parameter in parameters]
        gradients = []
        for parameter in parameters:
            copy = self._copy_of(parameter) if self._batches == 1 else None
            gradient = copy.grad if copy is not None and copy.requires_grad else parameter.grad
            if gradient is None:
                raise RuntimeError("a parameter took no part in the backward pass")
            gradients.append(gradient)
        return gradients

    def _keep_if_finite(self, good: Tensor) -> None:
        """Accept the proposed state, or return to the one before all batches."""
        proposed = list(self._proposed.tensors().values())
        state = list(self.state.tensors().values())
        if self._batches == 1 and takes_triton(state[-1], "conditional_copy"):
            from core.ops.triton.conditional_copy import conditional_copy

            conditional_copy(proposed, state, good)
            return
        for new, current, before in zip(proposed, state, self._before.tensors().values()):
            current.copy_(torch.where(good, new, before))
            if before is not current:
                before.copy_(current)

    def _capture(self) -> None:
        """Record the step: all of it if it has one batch, otherwise a batch and the update separately.

        If that fails, say why and continue without recording.
        """
        self._may_capture = False
        torch.cuda.synchronize(self._device)
        graphs = [torch.cuda.CUDAGraph() for _ in range(min(self._batches, 2))]
        several = len(graphs) > 1
        # NCCL's threads may do anything while this thread records.
        mode = "thread_local" if self._ranks.several else "global"
        stream, random = torch.cuda.current_stream(self._device), torch.cuda.get_rng_state(self._device)
        try:
            if several:
                # From here on, gradients are accumulated in place.
                self._optimizer.zero_grad(set_to_none=False)
                self._loss.zero_()
            with torch.cuda.graph(graphs[0], capture_error_mode=mode):
                self._learn(first=not several)
                if not several:
                    self._update()
            if several:
                with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode=mode):
                    self._update()
                    self._optimizer.zero_grad(set_to_none=False)
                    self._loss.zero_()
        except Exception as error:
            torch.cuda.set_stream(stream)  # torch stays on the stream that it recorded
            torch.cuda.synchronize(self._device)
            _free_generator(self._device, random)
            self._optimizer.zero_grad(set_to_none=True)
            first_line = (str(error).strip().splitlines() or [""])[0][:200]
            self.notices.append(
                "the training step could not be captured in a CUDA graph "
                f"({type(error).__name__}: {first_line}); training continues without it, slower"
            )
            return
        if self._fused is not None:
            self._fused.find_gradients()
        self._graphs = graphs


class Feed:
    """Sends a batch's inputs to the device: positions in a stream that is already there, or tokens."""

    def __init__(self, loader: SequentialLoader, config: RunConfig, device: torch.device, rows: int) -> None:
        self._loader = loader
        self._rows, self._length = rows, config.model.block_size
        self._device = device
        self._stream: Tensor | None = None
        if 4 * len(loader.stream) <= RESIDENT_BYTES and hasattr(loader.stream, "read"):
            self._stream = _resident(loader.stream, device)
        # For each batch row its position and whether it jumped (or its tokens); then the learning rate and
        # the slot.
        width = 2 if self._stream is not None else self._length + 2
        shape = (self._rows * width + 2,)
        pinned = device.type == "cuda"
        self._packed = torch.zeros(shape, dtype=torch.int64, device=device)
        self._slots = [torch.zeros(shape, dtype=torch.int64, pin_memory=pinned) for _ in range(SLOTS)]
        self._gone: list[torch.cuda.Event | None] = [None] * SLOTS
        self._next = 0
        self._offsets = torch.arange(self._length + 1, device=device)

    def send(self, rate: float, slot: int) -> None:
        """Start sending the next batch to the device, with the step's learning rate and slot."""
        index, self._next = self._next, (self._next + 1) % SLOTS
        event = self._gone[index]
        if event is not None:
            event.synchronize()
        numbers = self._slots[index].numpy()
        rows = numbers[:-2].reshape(self._rows, -1)
        starts, jumped = self._loader.next_positions()
        rows[:, 0] = jumped
        if self._stream is None:
            rows[:, 1:] = self._loader.stream.gather(starts, self._length + 1)
        else:
            rows[:, 1] = starts
        numbers[-2:-1] = np.array([rate], np.float64).view(np.int64)
        numbers[-1] = slot
        self._packed.copy_(self._slots[index], non_blocking=True)
        if self._device.type == "cuda":
            gone = torch.cuda.Event()
            gone.record()
            self._gone[index] = gone

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, targets and document starts of the last batch sent, (B, T) each, computed on the device."""
        rows = self._packed[:-2].view(self._rows, -1)
        if self._stream is None:
            window = rows[:, 1:]
        else:
            window = self._stream[rows[:, 1:] + self._offsets].long()
        x, y = window[:, :-1].contiguous(), window[:, 1:].contiguous()
        jumped = (rows[:, :1] != 0) & (self._offsets[:-1] == 0)
        return x, y, (x == self._loader.eot) | jumped

    def schedule(self) -> tuple[Tensor, Tensor]:
        """The step's learning rate, float64, and its slot, (1,) int64."""
        return self._packed[-2:-1].view(torch.float64)[0], self._packed[-1:]


def _free_generator(device: torch.device, random: Tensor) -> None:
    """Reset the device's random generator to its state before a recording that failed.

    Otherwise it would keep waiting for the end of the recording, and refuse to generate numbers outside of
    one.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    fresh = torch.Generator(device)
    fresh.set_state(random)
    torch.cuda.default_generators[index].graphsafe_set_state(fresh)


def _resident(stream: object, device: torch.device) -> Tensor:
    """A token stream on the device, int32, copied in pieces."""
    length = len(stream)  # type: ignore[arg-type]
    tokens = torch.empty(length, dtype=torch.int32, device=device)
    piece = 1 << 24
    for start in range(0, length, piece):
        read = stream.read(start, min(piece, length - start))  # type: ignore[attr-defined]
        tokens[start : start + len(read)] = torch.from_numpy(np.asarray(read).astype(np.int32)).to(device)
    return tokens


def _working_type(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """The 16-bit type of products, or None if they are in fp32."""
    with autocast(config, device):
        half = torch.is_autocast_enabled(device.type)
    return torch.bfloat16 if half else None


def _laid_out_for_scans(state: ModelState) -> ModelState:
    """ssm_states with their last two dimensions swapped in memory, as the scans read and return them."""
    layers = []
    for layer in state.layers:
        if isinstance(layer, MambaState):
            layer = MambaState(layer.conv_state, layer.ssm_state.mT.contiguous().mT)
        layers.append(layer)
    return ModelState(state.position, tuple(layers))


def _copy(state: ModelState, *, into: ModelState) -> None:
    with torch.no_grad():
        for name, target in into.tensors().items():
            target.copy_(state.tensors()[name])
