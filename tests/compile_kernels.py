"""Launch every kernel once without a GPU: bind its arguments and compile it for an H100, but do not run it.

Run by tests/test_kernels_compile.py in a process of its own, because Triton's interpreter must be off here.
Prints one line with the kernels that compiled.
"""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from core.config import build
from core.decoding import Reader
from core.model import GPT
from core.ops import causal_conv_triton as conv
from core.ops import linear_cross_entropy_triton as head
from core.ops import selective_scan_triton as scan
from core.ops import ssd_scan_triton as ssd
from core.ops import window_attention_triton as attention
from core.ops.settle_triton import settle
from tests.reference_ops import conv_inputs, scan_inputs


class Absent:
    """A driver for a GPU that is not there."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


compiled = set()


def compile_only(self, *arguments, grid, warmup, **options):
    kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
    compiled.add(self.__name__)
    return kernel


driver.set_active(Absent())
launch, JITFunction.run = JITFunction.run, compile_only
# As on a GPU, though the tensors are on the CPU.
scan._exchange = lambda layout, x: "tensor cores" if x.element_size() == 2 else "lanes"
head._wide_product = lambda a, b: (a @ b).float()


def leaves(inputs):
    return {name: value.requires_grad_(value.is_floating_point()) for name, value in inputs.items()}


def main():
    shape = {"n_layer": 2, "n_embd": [32, 24], "n_head": 2, "attention_type": ["mamba", "standard"]}
    Reader(GPT(build(shape).model, 50), eot=49).write(1)
    random = torch.Generator().manual_seed(0)
    for kind, chunk in ((torch.bfloat16, 64), (torch.float32, 0)):
        y, last = scan.selective_scan_triton(
            **leaves(scan_inputs(random, 1, 128, 32, 16, dtype=kind)), chunk=chunk
        )
        (y.float().sum() + last.sum()).backward()
    y, _ = conv.causal_conv_triton(**leaves(conv_inputs(random, 1, 32, 64, 4, dtype=torch.bfloat16)))
    y.float().sum().backward()
    x, weight = (torch.randn(*size, requires_grad=True) for size in ((9, 64), (128, 64)))
    head.linear_cross_entropy_triton(x.bfloat16(), weight, torch.zeros(9, dtype=torch.int64)).backward()
    for kind, part_chunks in ((torch.bfloat16, 1), (torch.float32, 0)):
        x, dt, B, C = (
            torch.randn(1, 128, *size, dtype=kind, requires_grad=True)
            for size in ((2, 64), (2,), (16,), (16,))
        )
        y, _ = ssd.ssd_scan_triton(x, dt, -torch.ones(2), B, C, part_chunks=part_chunks)
        y.float().sum().backward()
    q, k, v = (torch.randn(1, 2, size, 24, dtype=torch.bfloat16, requires_grad=True) for size in (16, 31, 31))
    reach = torch.zeros(1, 16, dtype=torch.int64)
    attention.window_attention_triton(q, k, v, reach, 16).float().sum().backward()
    settle(torch.randn(2, 3, 9, 4)[:, :, 4:], torch.randn(2, 3, 5, 4), torch.tensor(True))
    print(*sorted(compiled))


if __name__ == "__main__":
    main()
