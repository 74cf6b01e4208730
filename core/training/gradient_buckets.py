"""Gradients that are summed over ranks during the backward pass.

Parameters are put into buckets in the order in which their gradients arrive: from the head to the embedding.
As soon as all gradients of a bucket have arrived, they are copied into one float32 tensor, which is summed
over the ranks while the remaining layers are computed (NCCL has its own stream, also in a CUDA graph). The
copy also converts bf16 gradients, so they are summed in float32.

Every rank divides its loss by the number of ranks before the backward pass, so that sums are means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from core.training.ranks import Ranks

BUCKET_ELEMENTS = 8 << 20
ALIGNED = 64
"""Gradients begin at multiples of this many elements, because kernels read 16 bytes at a time."""


class Bucket:
    """Gradients that are sent together."""

    def __init__(self, parameters: list[Tensor], extra: int) -> None:
        """`extra` numbers are appended."""
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // ALIGNED) * ALIGNED
        self.parameters = parameters
        self.flat = torch.zeros(end + extra, dtype=torch.float32, device=parameters[0].device)
        self.views = [
            self.flat[start : start + parameter.numel()].view(parameter.shape)
            for start, parameter in zip(starts, parameters)
        ]
        self.extra = self.flat[end:]
        self.missing = len(parameters)
        self.work: dist.Work | None = None


class GradientBuckets:
    """Averages every parameter's gradient, and the loss, over the ranks."""

    def __init__(self, ranks: Ranks, parameters: Sequence[Tensor]) -> None:
        """`parameters` are those that receive gradients in the backward pass, in the model's order."""
        self._ranks = ranks
        self._buckets: list[Bucket] = []
        self._of: dict[int, Bucket] = {}
        self._listening = False
        self._next = 0
        waiting: list[Tensor] = []
        backwards = list(reversed(parameters))
        for index, parameter in enumerate(backwards):
            waiting.append(parameter)
            full = sum(tensor.numel() for tensor in waiting) >= BUCKET_ELEMENTS
            if full or index == len(backwards) - 1:
                bucket = Bucket(waiting, extra=0 if self._buckets else 1)
                self._buckets.append(bucket)
                self._of |= {id(tensor): bucket for tensor in waiting}
                waiting = []
        views = {
            id(parameter): view
            for bucket in self._buckets
            for parameter, view in zip(bucket.parameters, bucket.views)
        }
        self.means: list[Tensor] = [views[id(parameter)] for parameter in parameters]
        """The mean of each parameter's gradient after `finish`, in order. The next step overwrites it."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def begin(self, loss: Tensor) -> None:
        """Send gradients as soon as the next backward pass computes them, with this rank's loss."""
        self._listening, self._next = True, 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)
        self._buckets[0].extra.copy_(loss.detach())

    def _arrived(self, parameter: Tensor) -> None:
        if not self._listening:
            return
        self._of[id(parameter)].missing -= 1
        # One after the other, because every rank must send them in the same order.
        while self._next < len(self._buckets) and self._buckets[self._next].missing <= 0:
            self._send(
                self._buckets[self._next], [tensor.grad for tensor in self._buckets[self._next].parameters]
            )
            self._next += 1

    @torch.no_grad()
    def _send(self, bucket: Bucket, gradients: list[Tensor | None]) -> None:
        arrived = [gradient for gradient in gradients if gradient is not None]
        if len(arrived) != len(gradients):
            raise RuntimeError("a parameter took no part in the backward pass")
        torch._foreach_copy_(bucket.views, arrived)
        with self._ranks.reporting():
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)

    def finish(self) -> Tensor:
        """Wait (on a device: make it wait) until all means have arrived. Returns the mean loss, a scalar."""
        self._listening = False
        if self._next < len(self._buckets):
            raise RuntimeError("a parameter took no part in the backward pass")
        return self._wait()

    @torch.no_grad()
    def send_all(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
        """Average gradients that were accumulated over several batches, all at once.

        Returns the mean loss.
        """
        given = {id(mean): gradient for mean, gradient in zip(self.means, gradients)}
        self._buckets[0].extra.copy_(loss)
        for bucket in self._buckets:
            self._send(bucket, [given[id(view)] for view in bucket.views])
        return self._wait()

    def _wait(self) -> Tensor:
        for bucket in self._buckets:
            assert bucket.work is not None
            with self._ranks.reporting():
                bucket.work.wait()
            bucket.work = None
        return self._buckets[0].extra[0]
