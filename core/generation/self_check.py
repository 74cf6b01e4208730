"""`core/ops/self_check.py` with one more case: a graph decoder's kernels compared with the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from core.config.sampling import SamplingSettings
from core.config.schema import build
from core.model import GPT
from core.ops.dispatch import DECODING
from core.ops.self_check import check_kernels
from core.ops.self_check_cases import WrongResultError, agree

SHAPE = {
    "n_layer": 3,
    "n_embd": [32, 24, 16],
    "n_head": 2,
    "block_size": 8,
    "attention_type": ["mamba", "standard", "mamba2"],
}
VOCABULARY, EOT = 300, 299


def check_all_kernels(device: torch.device | str, mixers: Iterable[str]) -> list[str]:
    """`check_kernels` for those of operations and those of decoding."""
    return check_kernels(device, mixers, {DECODING: check_decoding})


def check_decoding(device: torch.device) -> None:
    """Read a few tokens, and sample the likeliest next ones. Raises WrongResultError."""
    from core.generation.cuda.graph_decoder import GraphDecoder

    torch.manual_seed(1)
    model = GPT(build(SHAPE).model, VOCABULARY).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # a new model's layers change nothing
            torch.nn.init.normal_(parameter, std=0.2)
    exact = copy.deepcopy(model).to(device, torch.float64)
    graph = GraphDecoder(model.to(device), EOT)
    state = exact.initial_state(1, device, torch.float64)
    for token in (5, 7, EOT, 11, 13, 2, 3, 4, 6, 8, 9):  # the ring of the keys is filled
        given = torch.tensor([token], device=device)
        features, state = exact.features(given[None], state, given[None] == EOT)
        wanted = exact.logits(features)[:, 0]
        agree("the next token's logits", graph.read(given), wanted, 0.01)
    graph.sampler.prepare(SamplingSettings(temperature=0.8, top_k=1, top_p=0.9, min_p=0.1, seed=1))
    graph.read_and_sample(1)
    features, _ = exact.features(given[None], state, given[None] == EOT)
    likeliest = exact.logits(features)[0, 0].argmax().item()
    if graph.next_tokens().item() != likeliest:
        raise WrongResultError(f"token {graph.next_tokens().item()} was sampled instead of {likeliest}")
