"""How many runs of a configuration fit on this machine at once."""

from __future__ import annotations

from core.config.changes import replace
from core.config.estimates import training_memory
from core.config.schema import RunConfig
from core.system.hardware import available_cores, cpu_device, describe, resolve_device

# torch, its libraries and a CUDA context, before the first tensor of the model.
PROCESS_BYTES = 700 << 20
MEMORY_SHARE = 0.85
CORES_A_RUN = 2
MOST_ON_A_DEVICE = 8
USUAL_VOCABULARY = 4096


def fitting(config: RunConfig) -> int:
    """How many fit: by free memory, and on a CPU by cores; at least 1."""
    device = resolve_device(config.hardware.device)
    needed = training_memory(config, config.data.vocab_size or USUAL_VOCABULARY, cuda=device != "cpu")
    free = describe(device).memory_free or (1 << 62)
    by_memory = int(MEMORY_SHARE * free / (needed + PROCESS_BYTES))
    host = cpu_device().memory_free
    if device != "cpu" and host:
        by_memory = min(by_memory, int(MEMORY_SHARE * host / PROCESS_BYTES))
    most = (
        available_cores() // (config.hardware.threads or CORES_A_RUN) if device == "cpu" else MOST_ON_A_DEVICE
    )
    return max(1, min(by_memory, most))


def sharing_cores(config: RunConfig, at_once: int) -> RunConfig:
    """The configuration for a run that shares the machine: on a CPU, each run gets its share of the cores."""
    if config.hardware.threads or at_once <= 1 or resolve_device(config.hardware.device) != "cpu":
        return config
    return replace(config, threads=max(1, available_cores() // at_once))
