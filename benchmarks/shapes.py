"""Shapes that more than one benchmark measures."""

from __future__ import annotations

from typing import Any

ORIGINAL: dict[str, Any] = {
    "n_embd": [256, 256, 192, 128, 128, 192, 256, 256],
    "n_head": 8,
    "attention_type": ["mamba", "standard", "standard", "mamba", *["standard"] * 4],
    "block_size": 128,
    "batch_size": 64,
}
LARGE: dict[str, Any] = {
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "attention_type": ["mamba", "standard"] * 6,
    "block_size": 1024,
    "batch_size": 16,
}
