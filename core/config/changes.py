"""Changing a configuration: a checked copy with other values, the other layers' keys taken along.

Apart from `core/config/schema.py`, which knows single configurations: here one follows from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.config.schema import PER_LAYER, RunConfig, build, flat


def replace(config: RunConfig, source: str = "configuration", /, **changes: object) -> RunConfig:
    """A checked copy with some keys changed. Raises ConfigError listing every problem.

    A change of depth, by `n_layer` or by a list of another length, takes the other per-layer keys
    along: they are stretched over the new depth, and heads are lowered until they divide the width.
    """
    depth = _new_depth(config, changes)
    base: dict[str, Any] = flat(config)
    if depth is not None and 1 <= depth <= 512:
        base["n_layer"] = depth
        for key in PER_LAYER:
            base[key] = _stretch(base[key], depth)
        if "n_head" not in changes:
            widths = changes.get("n_embd", base["n_embd"])
            base["n_head"] = _fitting_heads(base["n_head"], widths)
    return build({**base, **changes}, source)


def _new_depth(config: RunConfig, changes: Mapping[str, object]) -> int | None:
    """The depth that the changes ask for, where it differs from the configuration's."""
    asked = [changes["n_layer"]] if "n_layer" in changes else []
    asked += [len(value) for key in PER_LAYER if isinstance(value := changes.get(key), (list, tuple))]
    depths = [depth for depth in asked if type(depth) is int and depth != config.model.n_layer]
    return depths[0] if depths else None


def _stretch(entries: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
    """The entries spread over another depth: both ends stay, the middle stays in the middle."""
    step = (len(entries) - 1) / max(depth - 1, 1)
    return tuple(entries[round(layer * step)] for layer in range(depth))


def _fitting_heads(heads: tuple[int, ...], widths: object) -> tuple[int, ...]:
    """For each layer the largest number of heads, no more than now, whose size is whole and even."""
    if not isinstance(widths, (list, tuple)) or len(widths) != len(heads):
        return heads
    return tuple(
        next((n for n in range(h, 0, -1) if type(w) is int and w % (2 * n) == 0), h)
        for h, w in zip(heads, widths)
    )
