"""How fast features are taken, in tokens a second, in the original project's shape with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.shapes import ORIGINAL
from core.config.schema import build
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.evaluation.text_loss import chunk_tokens
from core.features.embed import DocumentEncoder
from core.model import GPT

SECONDS = 3.0
UNITS = ("100 words", "paragraph", "token", "document")


def measure(device: str) -> str:
    """A markdown table."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = GPT(build(ORIGINAL).model, tokenizer.vocab_size).to(device).eval()
    size = chunk_tokens(model)
    text = "It was the best of times, it was the worst of times. It was\nthe age of wisdom.\n\n" * (
        size // 40
    )
    ids = tokenizer.encode(text)[:size]
    tokens = torch.from_numpy(ids.astype(np.int64)).to(device)[None]
    state = model.encode_layer(model.waist, tokens[:, :1])[1]

    @torch.inference_mode()
    def forward() -> int:
        nonlocal state
        _, state = model.encode_layer(model.waist, tokens, state)
        return size

    lines = [f"Chunks of {size:,} tokens, {torch.cuda.get_device_name() if device == 'cuda' else device}", ""]
    lines += [
        "| what | tokens/s |",
        "| --- | --- |",
        f"| the forward up to the waist alone | {rate(forward)} |",
    ]
    for per in UNITS:
        encoder = DocumentEncoder(model, tokenizer, per=per)

        def embed(encoder: DocumentEncoder = encoder) -> int:
            chunks = 8
            for _ in encoder.rows("text", iter([ids] * chunks)):
                pass
            return chunks * size

        lines.append(f"| embed, a row per {per}, from tokens | {rate(embed)} |")
    return "\n".join(lines) + f"\n| the tokenizer alone | {rate(lambda: len(tokenizer.encode(text)))} |\n"


def rate(work: Callable[[], int]) -> str:
    """Tokens a second of something that says how many it did."""
    work()
    synchronize()
    done, began = 0, time.monotonic()
    while time.monotonic() - began < SECONDS:
        done += work()
    synchronize()
    return f"{done / (time.monotonic() - began):,.0f}"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
