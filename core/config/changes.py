"""Changing a configuration: a checked copy with other values, resized if the number of layers changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.config.schema import AUTOMATIC, PER_LAYER, RunConfig, build, flat


def replace(config: RunConfig, source: str = "configuration", /, **changes: object) -> RunConfig:
    """A checked copy with some keys changed. Raises ConfigError that lists every problem.

    If the number of layers changes (by `n_layer` or by a list of another length), the other per-layer keys
    are stretched to the new depth, and heads are lowered until they divide the width.
    """
    automatic = [key for key in AUTOMATIC if changes.get(key) == "auto"]
    if automatic:  # it keeps its old value until it is planned
        kept = {key: value for key, value in changes.items() if key not in automatic}
        changes = {"auto": " ".join([str(kept.pop("auto", config.training.auto)), *automatic]), **kept}
    depth = _new_depth(config, changes)
    base: dict[str, Any] = flat(config)
    base["auto"] = still_automatic(base["auto"], changes)
    if depth is not None and 1 <= depth <= 512:
        base["n_layer"] = depth
        for key in PER_LAYER:
            base[key] = _stretch(base[key], depth)
        if "n_head" not in changes:
            widths = changes.get("n_embd", base["n_embd"])
            base["n_head"] = _fitting_heads(base["n_head"], widths)
    return build({**base, **changes}, source)


def still_automatic(automatic: str, changes: Mapping[str, object]) -> str:
    """The keys that stay automatic when `changes` set some: what a person sets is no longer planned."""
    touched = {
        "n_embd" if key in (*PER_LAYER, "n_layer") else key
        for key, value in changes.items()
        if value != "auto"
    }
    return " ".join(key for key in automatic.replace(",", " ").split() if key not in touched)


def keep_planned(wanted: RunConfig, run: RunConfig) -> RunConfig:
    """`wanted` for an existing run: what it leaves to the plan was decided when the run began."""
    automatic = wanted.training.auto.split()
    if not automatic:
        return wanted
    keys = {key for key in automatic if key != "n_embd"} | (
        set(PER_LAYER) if "n_embd" in automatic else set()
    )
    before = flat(run)
    return replace(wanted, **{key: before[key] for key in keys}, auto=before["auto"])


def _new_depth(config: RunConfig, changes: Mapping[str, object]) -> int | None:
    """The number of layers that the changes ask for, or None if it stays the same."""
    asked = [changes["n_layer"]] if "n_layer" in changes else []
    asked += [len(value) for key in PER_LAYER if isinstance(value := changes.get(key), (list, tuple))]
    depths = [depth for depth in asked if type(depth) is int and depth != config.model.n_layer]
    return depths[0] if depths else None


def _stretch(entries: tuple[Any, ...], depth: int) -> tuple[Any, ...]:
    """Resample the entries to another depth; first and last stay first and last."""
    step = (len(entries) - 1) / max(depth - 1, 1)
    return tuple(entries[round(layer * step)] for layer in range(depth))


def _fitting_heads(heads: tuple[int, ...], widths: object) -> tuple[int, ...]:
    """For each layer the largest number of heads, at most the current one, that makes heads of even size."""
    if not isinstance(widths, (list, tuple)) or len(widths) != len(heads):
        return heads
    return tuple(
        next((n for n in range(h, 0, -1) if type(w) is int and w % (2 * n) == 0), h)
        for h, w in zip(heads, widths)
    )
