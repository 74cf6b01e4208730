"""The package transformers beside our models on CPU, a part of `benchmarks.cpu`.

Of each kind a model of the same width and depth, with the settings that make it fastest here: attention by
torch's kernel, Mamba by mamba.py's parallel scan where that is installed, GPT-2 under torch.compile too.
Its Mamba layers have no feed-forward layer behind them, ours have: they do more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]


def transformers_models(vocab_size: int, layers: int, width: int, heads: int, length: int) -> dict[str, Any]:
    """Its models by name; none where the package is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    common = {"vocab_size": vocab_size, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
    mamba = common | {"hidden_size": width, "num_hidden_layers": layers, "state_size": 16, "pad_token_id": 0}
    gpt2 = transformers.GPT2Config(
        **common, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    s6 = transformers.MambaConfig(**mamba, use_mambapy=importlib.util.find_spec("mambapy") is not None)
    ssd = transformers.Mamba2Config(
        **mamba, num_heads=heads, head_dim=2 * width // heads, n_groups=1, chunk_size=32
    )
    return {
        "transformers GPT-2": transformers.GPT2LMHeadModel(gpt2),
        "transformers GPT-2, compiled": torch.compile(transformers.GPT2LMHeadModel(gpt2)),
        "transformers Mamba": transformers.MambaForCausalLM(s6),
        "transformers Mamba-2": transformers.Mamba2ForCausalLM(ssd),
    }


def transformers_step(model: Any, vocab_size: int, batch: int, length: int) -> Work:
    """A whole training step: clipping, fused AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(vocab_size, (batch, length))

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
