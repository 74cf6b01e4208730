"""How text is generated: one declaration per setting, for the generator, the command line and the console."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config.setting import SMALLEST_FRACTION, Problem, Setting, Value, checked, setting
from core.errors import UserError

MOST_STOPS = 64


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen, and when the text ends. Raises UserError for a value out of bounds."""

    max_new_tokens: int = setting(300, "the most tokens to generate", low=1, high=1 << 30)
    temperature: float = setting(
        0.8, "0 always takes the most probable token; higher is wilder", low=0.0, high=100.0
    )
    top_k: int = setting(0, "choose from the k most probable tokens; 0 = all", low=0)
    top_p: float = setting(
        1.0, "choose from the most probable tokens that together reach this probability", low=0.001, high=1.0
    )
    min_p: float = setting(
        0.0, "choose from tokens with at least this share of the best one's probability", low=0.0, high=1.0
    )
    repetition_penalty: float = setting(
        1.0, "above 1, tokens that are already in the text become less likely", low=0.01, high=100.0
    )
    seed: int = setting(0, "the same seed and prompt give the same text", low=0, high=1 << 53)
    alternatives: int = setting(0, "most probable tokens to report at every step", low=0, high=1000)
    ignore_end: bool = setting(False, "continue past the end of a document")
    stop: tuple[str, ...] = ()
    """Texts that end the generation when they appear; they aren't part of it."""

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for key, value in _checked(values, {}).items():
            object.__setattr__(self, key, value)

    @staticmethod
    def read(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> SamplingSettings:
        """The settings among `values`; those that are missing or None take the default.

        Raises UserError for those of the wrong type or out of bounds, using their `names` if these differ
        from the names here, such as "--top-k".
        """
        keys = [item.name for item in dataclasses.fields(SamplingSettings)]
        given = {key: values[key] for key in keys if values.get(key) is not None}
        return SamplingSettings(**_checked(given, names or {}))


def _declared(item: dataclasses.Field[Any]) -> Setting:
    kind: type = type(item.default)
    default: Any = item.default
    return Setting(item.name, "sampling", kind, default, per_layer=False, **item.metadata)


SAMPLING: dict[str, Setting] = {
    item.name: _declared(item) for item in dataclasses.fields(SamplingSettings) if item.metadata
}
"""Every setting but `stop`, with its help and bounds."""


def _checked(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    problems: list[Problem] = []
    good: dict[str, Value] = {}
    for key, value in values.items():
        if key == "stop":
            good[key] = _stop_texts(value, names.get(key, key), problems)
            continue
        item = SAMPLING[key]
        if item.low == 0 and isinstance(value, float) and 0 < value < SMALLEST_FRACTION:
            value = 0.0  # arithmetic can't tell it from 0: dividing the logits by it would make them infinite
        good[key] = checked(item, value, problems, names.get(key, key))
    if problems:
        raise UserError("; ".join(map(str, problems)))
    return good


def _stop_texts(value: object, name: str, problems: list[Problem]) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    few = isinstance(texts, (list, tuple)) and len(texts) <= MOST_STOPS
    if few and all(isinstance(text, str) and text for text in texts):  # type: ignore[attr-defined]
        return tuple(texts)  # type: ignore[arg-type]
    problems.append(Problem(name, value, f"at most {MOST_STOPS} texts, none of them empty"))
    return ()
