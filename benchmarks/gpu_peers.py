"""The peers' part of `benchmarks.gpu`: other projects on the same device, each with its fastest settings.

Peers are not dependencies of this project. Those on the Python path are measured, the others are reported
as missing:

- `selective_scan_cuda`, the extension that the package mamba-ssm compiles from its `csrc/selective_scan`
  (`torch.utils.cpp_extension.load` with `TORCH_CUDA_ARCH_LIST=9.0` does it, in a quarter of an hour on two
  cores, with the torch and Python of the device);
- `nanogpt_model`, nanoGPT's `model.py` under that name.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu_measure import graph_ms, keep_going, report, settings, synchronize
from benchmarks.gpu_operations import SCANS, normal, without_gradient

# name: layers, width, heads, length, batch, vocabulary
NANOGPT = {
    "8 x 256": (8, 256, 8, 128, 64, 50304),
    "12 x 768": (12, 768, 12, 1024, 16, 50304),
}
MODES = ("default", "reduce-overhead")
"""Modes of torch.compile; the second replays CUDA graphs."""
STEPS = 30


def import_peer(name: str) -> ModuleType | None:
    """A peer's module, or None (reported) if it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        report(f"  {name} is not installed ({error})")
        return None


def peer_scans() -> None:
    """mamba_ssm's selective scan at the shapes of our own, in its own layout (B, D, L)."""
    report("\nmamba_ssm's selective_scan_cuda, N 16, D and dt_bias: forward | forward and backward")
    module = import_peer("selective_scan_cuda")
    if module is None:
        return
    for batch, channels, length, kind, *_ in SCANS:
        name = f"B{batch} D{channels} L{length} {str(kind)[6:]:9}"
        with keep_going(name):
            alone, both = _scan_ms(module, batch, channels, length, kind)
            report(f"  {name} {alone:7.3f} | {both:7.3f} ms")
        torch.cuda.empty_cache()


def _scan_ms(
    module: ModuleType, batch: int, channels: int, length: int, kind: torch.dtype
) -> tuple[float, float]:
    x, dt, grad = (normal(batch, channels, length, kind=kind).detach() for _ in range(3))
    B, C = (normal(batch, 1, 16, length, kind=kind).detach() for _ in "BC")
    A = -torch.rand(channels, 16, device=settings.device) - 0.1
    D, bias = (normal(channels, kind=torch.float32).detach() for _ in range(2))

    def forward() -> Any:
        return module.fwd(x, dt, A, B, C, D, None, bias, True)

    def both() -> object:
        _, kept, *_ = forward()
        return module.bwd(x, dt, A, B, C, D, None, bias, grad, kept, None, None, True, False)

    return graph_ms(without_gradient(forward)), graph_ms(without_gradient(both))


def nanogpt() -> None:
    """nanoGPT's training step at our shapes, compiled, bfloat16, fused AdamW; the better of two modes."""
    report("\nnanoGPT, compiled, bfloat16, fused AdamW, clipping")
    module = import_peer("nanogpt_model")
    if module is None:
        return
    for name in NANOGPT:
        rates = {}
        for mode in MODES:
            with keep_going(f"{name}, {mode}"):
                rates[mode] = _nanogpt_rate(module, name, mode)
            torch._dynamo.reset()
            torch.cuda.empty_cache()
        said = ", ".join(f"{mode} {rate:,.0f}" for mode, rate in rates.items())
        report(f"  {name}: {max(rates.values(), default=0):,.0f} tok/s ({said})")


def _nanogpt_rate(module: ModuleType, name: str, mode: str) -> float:
    layers, width, heads, length, batch, vocabulary = NANOGPT[name]
    torch.set_float32_matmul_precision("high")
    with contextlib.redirect_stdout(None):
        config = module.GPTConfig(length, vocabulary, layers, heads, width, 0.0, False)
        model = module.GPT(config).to(settings.device).train()
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), settings.device)
    forward = torch.compile(model, mode=mode)
    tokens = torch.randint(0, vocabulary, (STEPS + 8, batch, length + 1), device=settings.device)

    def step(number: int) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        x, y = tokens[number, :, :-1].contiguous(), tokens[number, :, 1:].contiguous()
        with torch.autocast(settings.device, torch.bfloat16):
            loss = forward(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for number in range(8):
        step(number)
    synchronize()
    began = time.perf_counter()
    for number in range(8, STEPS + 8):
        step(number)
    synchronize()
    return STEPS * batch * length / (time.perf_counter() - began)
