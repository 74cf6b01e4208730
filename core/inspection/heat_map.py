"""Attention and effective attention as a picture: one row per query, one column per key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.config.schema import STANDARD
from core.inspection.attention import attention_map, entropy
from core.inspection.memory import Recurrence, effective_attention, mean_effective_attention, recurrence
from core.inspection.trace import Trace

ALL = -1


class HeatMaps:
    """The maps of a text's layers; the last layer's data is kept for its next picture."""

    def __init__(self, seen: Trace) -> None:
        self._seen = seen
        self._layer = -1
        self._made_of: Tensor | Recurrence | None = None

    def groups(self, layer: int) -> int:
        """How many heads or channels a layer has."""
        made_of = self._of(layer)
        return made_of.shape[0] if isinstance(made_of, Tensor) else made_of.groups

    def around(self, layer: int, group: int, token: int, queries: int, keys: int) -> dict[str, Any]:
        """The last `queries` rows up to a token, each over the `keys` tokens up to it, and the token's whole
        row.

        Absolute values; for group -1, their mean over all heads or channels. `row` has all tokens; `entropy`
        in nats and `distance` in tokens are of the row divided by its sum.
        """
        first_query, first_key = max(0, token - queries + 1), max(0, token - keys + 1)
        rows = self._part(layer, group, slice(first_query, token + 1), slice(first_key, token + 1))
        row = self._part(layer, group, slice(token, token + 1), slice(None))[0]
        shares = row / row.sum().clamp(min=torch.finfo(row.dtype).tiny)
        return {
            "layer": layer,
            "group": group,
            "token": token,
            "first_query": first_query,
            "first_key": first_key,
            "rows": [[round(value, 6) for value in line] for line in rows.tolist()],
            "row": [round(value, 6) for value in row.tolist()],
            "entropy": float(entropy(shares)),
            "distance": float(token - (shares @ torch.arange(len(shares), device=row.device).to(row))),
        }

    def rows(self, layer: int, token: int) -> dict[str, Any]:
        """The row of a token for every head or channel of a layer, (groups, T), with its sign."""
        made_of = self._of(layer)
        if isinstance(made_of, Tensor):
            rows = made_of[:, token]
        else:
            groups = torch.arange(made_of.groups, device=made_of.delta.device)
            rows = effective_attention(made_of, groups, slice(token, token + 1))[:, 0]
        return {"layer": layer, "token": token, "rows": rows.tolist()}

    def _part(self, layer: int, group: int, queries: slice, keys: slice) -> Tensor:
        made_of = self._of(layer)
        if isinstance(made_of, Tensor):
            return made_of.mean(0)[queries, keys] if group == ALL else made_of[group, queries, keys]
        if group == ALL:
            return mean_effective_attention(made_of, queries, keys)
        chosen = torch.tensor([group], device=made_of.delta.device)
        return effective_attention(made_of, chosen, queries, keys)[0].abs()

    def _of(self, layer: int) -> Tensor | Recurrence:
        if self._layer != layer or self._made_of is None:
            standard = self._seen.model.config.attention_type[layer] == STANDARD
            self._made_of = attention_map(self._seen, layer) if standard else recurrence(self._seen, layer)
            self._layer = layer
        return self._made_of
