"""What must be the same for compressing and decompressing, besides the model: tokenizer, arithmetic."""

from __future__ import annotations

import hashlib

import torch

from core.compression.coder import frequencies
from core.compression.streams import Rows, rows_of
from core.data.tokenizer.tokenizer import Tokenizer
from core.model import GPT

PROBE_STEPS = 8


def tokenizer_fingerprint(tokenizer: Tokenizer) -> bytes:
    """16 bytes that identify a tokenizer."""
    return bytes.fromhex(tokenizer.hash)[:16]


def arithmetic_name(device: torch.device) -> str:
    """The device and software that do the arithmetic, for people: `cpu, AVX512, torch 2.11.0`."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def arithmetic_fingerprint(model: GPT, eot: int, streams: int) -> bytes:
    """8 bytes that identify the frequencies that result from a few made-up tokens, bit for bit.

    Anyone who gets other bits here would get another text: processors, versions of torch and of the libraries
    below it differ in the last digits, and only trying tells which ones agree.
    """
    digest = hashlib.sha256()
    for count in sorted({1, streams}):
        _probe(model, rows_of(model, count, eot), count, digest)
    return digest.digest()[:8]


@torch.inference_mode()
def _probe(model: GPT, rows: Rows, count: int, digest: hashlib._Hash) -> None:
    device = model.embedding.weight.device
    rows.load(model.initial_state(1))
    stream = torch.arange(count, device=device)
    for step in range(PROBE_STEPS):
        logits = rows.read((stream * 7919 + step * 104_729) % max(1, model.vocab_size - 1))
        digest.update(frequencies(logits).cpu().numpy().tobytes())
