"""The peers' part of `benchmarks.cpu`: mamba.py's scan and the models of transformers, if installed.

The models of transformers have our width and depth and their fastest settings: attention by torch's own
kernel, Mamba by mamba.py's parallel scan, GPT-2 with and without torch.compile. Its Mamba layers have no
feed-forward layer and ours do, so ours compute more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]


def mambapy_scan() -> Callable[..., torch.Tensor] | None:
    """mamba.py's parallel scan with the arguments of our `selective_scan`, or None without the package."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        return None

    def scan(x, dt, A, B, C, D):
        delta = torch.nn.functional.softplus(dt)
        decay = torch.exp(delta.unsqueeze(3) * A)
        states = pscan(decay, delta.unsqueeze(3) * B.unsqueeze(2) * x.unsqueeze(3))
        return (states @ C.unsqueeze(3)).squeeze(3) + D * x

    return scan


def transformers_models(vocab_size: int, layers: int, width: int, heads: int, length: int) -> dict[str, Any]:
    """Models of transformers by name; empty if the package isn't installed."""
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
