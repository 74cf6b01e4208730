"""Launch every kernel once without a GPU: bind its arguments and compile it for an H100, but do not run it.

Run by test_kernels_compile.py in processes of their own, because Triton's interpreter must be off here.
The argument says which part of the kernels. Prints one line with those that compiled.
"""

from __future__ import annotations

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from core.config.sampling import SamplingSettings
from core.config.schema import build
from core.generation.cuda.graph_decoder import GraphDecoder
from core.model import GPT, decay_rates
from core.ops.positions import Positions
from core.ops.triton import causal_conv as conv
from core.ops.triton import linear_cross_entropy as head
from core.ops.triton import ssd_scan as ssd
from core.ops.triton import window_attention as attention
from core.ops.triton.adamw import FusedUpdate
from core.ops.triton.attention_mixer import attention_mixer_triton
from core.ops.triton.conditional_copy import conditional_copy
from core.ops.triton.feed_forward import feed_forward_triton
from core.ops.triton.mamba_mixer import mamba_mixer_triton
from core.ops.triton.rotary import rotations
from core.ops.triton.selective_scan import launch as scan_launch
from core.ops.triton.selective_scan.operator import selective_scan_triton
from core.training.optimizer import AdamW
from tests.ops.reference_ops import conv_inputs, scan_inputs


class Absent:
    """A driver for a GPU that doesn't exist."""

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
scan_launch.exchange_kind = lambda layout, x: "tensor cores" if x.element_size() == 2 else "lanes"
head._wide_product = lambda a, b: (a @ b).float()


def leaves(inputs):
    return {name: value.requires_grad_(value.is_floating_point()) for name, value in inputs.items()}


SHAPE = {
    "n_layer": 3,
    "n_embd": [32, 24, 16],
    "n_head": 2,
    "attention_type": ["mamba", "standard", "mamba2"],
}


def compile_mamba():
    """The kernels of Mamba layers in training."""
    random = torch.Generator().manual_seed(0)
    inputs = leaves(scan_inputs(random, 1, 128, 32, 16, dtype=torch.bfloat16))
    y, last = selective_scan_triton(**inputs, chunk=64)
    (y.float().sum() + last.sum()).backward()
    y, _ = conv.causal_conv_triton(**leaves(conv_inputs(random, 1, 32, 64, 4, dtype=torch.bfloat16)))
    y.float().sum().backward()
    # The other type, and nothing of what may be left out.
    block = GPT(build(SHAPE).model, 50).blocks[0].mixer
    mixed, *_ = mamba_mixer_triton(
        torch.randn(1, 128, 128, requires_grad=True), (block.conv_weight, block.conv_bias),
        block.x_proj.weight, (block.dt_norm.weight, block.B_norm.weight, block.C_norm.weight),
        block.dt_proj.weight, decay_rates(block.A_log), block.D, block.dt_bias,
        conv_state=None, h0=None, reset=None, eps=1e-6,
    )  # fmt: skip
    mixed.sum().backward()


def compile_others():
    """All others."""
    model = GPT(build(SHAPE).model, 50)
    graph = GraphDecoder(model, eot=49)
    graph.generate(1)
    graph.sampler.prepare(SamplingSettings(top_k=9, top_p=0.9, min_p=0.1, alternatives=3, seed=1))
    graph.read_and_sample(1)
    for vocabulary, kind in ((128, torch.float16), (50304, torch.bfloat16), (33024, torch.float32)):
        x, weight = torch.randn(9, 64).to(kind), torch.randn(vocabulary, 64, requires_grad=True)
        head.linear_cross_entropy_triton(x, weight, torch.zeros(9, dtype=torch.int64)).backward()
    for kind, part_chunks in ((torch.bfloat16, 1), (torch.float32, 0)):
        x, dt, B, C = (
            torch.randn(1, 128, *size, dtype=kind, requires_grad=True)
            for size in ((2, 64), (2,), (16,), (16,))
        )
        y, _ = ssd.ssd_scan_triton(x, dt, -torch.ones(2), B, C, part_chunks=part_chunks)
        y.float().sum().backward()
    for length in (16, attention.SHORT + 1):
        sizes = (length, length + 15, length + 15)
        q, k, v = (torch.randn(1, 2, size, 24, dtype=torch.bfloat16, requires_grad=True) for size in sizes)
        visible_length = torch.zeros(1, length, dtype=torch.int64)
        attention.window_attention_triton(q, k, v, visible_length, 16).float().sum().backward()
    rotations(torch.zeros(2, 16, dtype=torch.int64), 6, 10000.0)
    positions = Positions(torch.zeros(1, 16, dtype=torch.int64), None, None, 16)
    qkv, cache = torch.randn(1, 16, 72).bfloat16().requires_grad_(), torch.randn(2, 1, 2, 15, 12).bfloat16()
    angles = positions.rotations(qkv, 6)
    mixed, *_ = attention_mixer_triton(qkv, cache, angles, positions.visible_length, 2, 16)
    mixed.float().sum().backward()
    weight = torch.nn.Parameter(torch.zeros(2, 4))
    optimizer = AdamW([{"names": ["a"], "params": [weight], "weight_decay": 0.0}], 0.1, (0.9, 0.95))
    number, slot = torch.tensor(0.1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    update = FusedUpdate(optimizer.param_groups, 1.0, lambda weight: weight.bfloat16())
    update.step([torch.zeros(2, 4)], torch.zeros(()), number, slot, torch.zeros(1, 2))
    news = [torch.randn(2, 3, 9, 4)[:, :, 4:], torch.zeros(2, dtype=torch.int64)]
    conditional_copy(
        news, [torch.randn(2, 3, 5, 4).bfloat16(), torch.zeros(2, dtype=torch.int64)], torch.tensor(True)
    )
    x, up, down = (
        torch.randn(*size, dtype=torch.bfloat16, requires_grad=True)
        for size in ((300, 64), (256, 64), (64, 256))
    )
    feed_forward_triton(x, up, down).float().sum().backward()


if __name__ == "__main__":
    {"mamba": compile_mamba, "others": compile_others}[sys.argv[1]]()
    print(*sorted(compiled))
