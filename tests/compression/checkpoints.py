"""Small models with a checkpoint file, for the tests of compression."""

from __future__ import annotations

from pathlib import Path

import torch

from core.checkpoint import save
from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import Tokenizer, byte_tokenizer
from core.model import GPT
from core.runs import CheckpointInfo, checkpoint_path

SHAPE = {
    "n_embd": [16, 8, 16], "n_head": 2, "attention_type": ["mamba", "standard", "mamba2"], "block_size": 8,
}  # fmt: skip


def model_of(tokenizer: Tokenizer, seed: int = 0, **changes: object) -> GPT:
    """A model with random weights."""
    torch.manual_seed(seed)
    model = GPT(build(SHAPE | changes).model, tokenizer.vocab_size).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # a new model's layers change nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def learn(model: GPT, tokenizer: Tokenizer, text: str) -> None:
    """Learn a text a little, so that it can be compressed."""
    tokens = torch.from_numpy(tokenizer.encode(text * 2).astype("int64"))[None]
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(tokens[:, :-1], targets=tokens[:, 1:]).loss.backward()
        optimizer.step()


def write_checkpoint(folder: Path, seed: int = 0, tokenizer: Tokenizer | None = None, text: str = "") -> Path:
    """A checkpoint of a run in `folder`, of a model that has seen `text`."""
    tokenizer = tokenizer or byte_tokenizer()
    model = model_of(tokenizer, seed)
    if text:
        learn(model, tokenizer, text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").touch()
    payload = {
        "format": 2, "step": 1, "config": flat(build(SHAPE)), "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.to_dict(), "model": model.state_dict(),
    }  # fmt: skip
    path = checkpoint_path(folder, 1)
    save(path, payload, CheckpointInfo(1, path, 0, "", None, 1.0, None, 0.0, best=False))
    return path
