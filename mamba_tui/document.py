"""The configuration being edited: values that may be wrong for a moment, their problems, undo and redo.

No Textual here, so that every operation on layers can be tested as plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import schema as configuration
from core.config.changes import still_automatic
from core.config.files import WORKING_FILE, save_file
from core.config.schema import ATTENTION_TYPES, AUTOMATIC, MAMBA2, PER_LAYER, SETTINGS, STANDARD, RunConfig
from core.config.setting import Problem, show

UNDO_LIMIT = 500


@dataclass(frozen=True)
class Snapshot:
    """Values at one moment, and the change that led to them."""

    values: Mapping[str, Any]
    action: str


class Document:
    """A configuration with an undo history. `config` is meaningful if there are no problems.

    `path` is the file it was read from or last saved to.
    """

    def __init__(self, config: RunConfig, path: Path = WORKING_FILE) -> None:
        self.path = path
        self._past: list[Snapshot] = []
        self._future: list[Snapshot] = []
        self._now = Snapshot(configuration.flat(config), "")
        self._before: Snapshot | None = None
        self._saved: Mapping[str, Any] = self._now.values
        self._started: Mapping[str, Any] | None = None
        self._check()

    def _check(self) -> None:
        self.config, problems = configuration.check(self._now.values)
        self.problems: dict[str, Problem] = {}
        for problem in problems:
            self.problems.setdefault(problem.key, problem)

    # ------------------------------------------------------------- reading

    @property
    def values(self) -> Mapping[str, Any]:
        """The flat values as they are, including wrong ones."""
        return self._now.values

    @property
    def layer_count(self) -> int:
        """The number of layers."""
        return len(self.values["n_embd"])

    def layer(self, index: int) -> tuple[Any, Any, Any]:
        """Type, width and heads of a layer."""
        values = self.values
        return values["attention_type"][index], values["n_embd"][index], values["n_head"][index]

    def problem(self, key: str, layer: int | None = None) -> Problem | None:
        """What is wrong with a key, or with its value in one layer."""
        return self.problems.get(key if layer is None else f"{key}[{layer}]")

    @property
    def changed(self) -> bool:
        """Whether the values differ from those last saved or loaded."""
        return self.values != self._saved

    @property
    def worth_saving(self) -> bool:
        """Whether there are valid changes that neither a file nor a run contains."""
        return self.changed and self.values != self._started and not self.problems

    def save(self, path: Path) -> None:
        """Write the configuration to a file, which becomes its own. Raises UserError."""
        values = self.values
        save_file(self.config, path)
        self.path, self._saved = path, values

    def started(self) -> None:
        """A run was started with these values, so they are stored there."""
        self._started = self.values

    def follow_plan(self, planned: RunConfig) -> None:
        """Show the planned values of settings that are `auto`.

        This isn't a change by the user, so there is no undo.
        """
        automatic = self.config.training.auto.split()
        if not automatic or self.problems or self._before is not None:
            return
        keys = [key for key in automatic if key != "n_embd"]
        keys += [*PER_LAYER, "n_layer"] if "n_embd" in automatic else []
        decided = configuration.flat(planned)
        changes = {key: decided[key] for key in keys if decided[key] != self.values[key]}
        if changes:
            same = self._saved == self.values
            self._now = Snapshot({**self.values, **changes}, self._now.action)
            self._saved = self._now.values if same else self._saved
            self._check()

    # ------------------------------------------------------------- history

    def _become(self, values: Mapping[str, Any], action: str, *, whole: bool = False) -> None:
        self.drop()
        if not whole:
            values = self._planned_less(values)
        if values == self._now.values:
            return
        self._past.append(self._now)
        del self._past[:-UNDO_LIMIT]
        self._future.clear()
        self._now = Snapshot(values, action)
        self._check()

    def _planned_less(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values with fewer `auto` settings: what a person sets is no longer planned."""
        before = self._now.values
        named = [key for key in AUTOMATIC if values.get(key) == "auto"]
        if named:
            kept = {key: before[key] for key in named}
            return {**values, **kept, "auto": " ".join([str(before["auto"]), *named]).strip()}
        if values["auto"] != before["auto"] or not isinstance(values["auto"], str):
            return values
        set_here = {key: value for key, value in values.items() if value != before[key]}
        return {**values, "auto": still_automatic(values["auto"], set_here)}

    def undo(self) -> str | None:
        """Undo the last change. Returns its description, or None if there is none."""
        self.drop()
        if not self._past:
            return None
        undone = self._now.action
        self._future.append(self._now)
        self._now = self._past.pop()
        self._check()
        return undone

    def redo(self) -> str | None:
        """Redo the last change that was undone."""
        self.drop()
        if not self._future:
            return None
        self._past.append(self._now)
        self._now = self._future.pop()
        self._check()
        return self._now.action

    # ------------------------------------------------------- while typing

    def attempt(self, key: str, value: Any, layer: int | None = None) -> None:
        """Try a value, so that the whole screen shows its consequences at once."""
        if self._before is None:
            self._before = self._now
        where = key
        if layer is not None:
            entries = list(self.values[key])
            entries[layer] = value
            value, where = tuple(entries), f"layer {layer + 1}: {key}"
        shown = SETTINGS[key].in_words(value if layer is None else value[layer])
        values = self._planned_less({**self._now.values, key: value})
        self._now = Snapshot(values, f"{where} = {show(shown)}")
        self._check()

    def keep(self) -> None:
        """Keep the value that was tried, as one step of undo."""
        before, self._before = self._before, None
        if before is not None and before.values != self._now.values:
            self._past.append(before)
            del self._past[:-UNDO_LIMIT]
            self._future.clear()

    def drop(self) -> None:
        """Return to the value before the trial."""
        if self._before is not None:
            self._now, self._before = self._before, None
            self._check()

    # ------------------------------------------------------------- editing

    def set(self, key: str, value: Any) -> None:
        """Give a setting a value, right or wrong."""
        self._become({**self.values, key: value}, f"{key} = {show(SETTINGS[key].in_words(value))}")

    def replace(self, config: RunConfig, action: str, *, path: Path | None = None) -> None:
        """Replace the whole configuration. `path` is the file it was read from, if any."""
        self._become(configuration.flat(config), action, whole=True)
        if path is not None:
            self.path, self._saved = path, self.values

    def _set_layers(self, layers: list[tuple[Any, Any, Any]], action: str) -> None:
        kinds, widths, heads = zip(*layers)
        changes = {"attention_type": kinds, "n_embd": widths, "n_head": heads, "n_layer": len(layers)}
        self._become({**self.values, **changes}, action)

    @property
    def layers(self) -> list[tuple[Any, Any, Any]]:
        """Type, width and heads of every layer."""
        return [self.layer(index) for index in range(self.layer_count)]

    def set_layer(self, index: int, key: str, value: Any) -> None:
        """Change one value of one layer."""
        entries = list(self.values[key])
        entries[index] = value
        action = f"layer {index + 1}: {key} = {show(value)}"
        self._become({**self.values, key: tuple(entries)}, action)

    def add_layer(self, after: int) -> int:
        """Add a layer of the same shape and the next type after another one. Returns its index."""
        layers = self.layers
        if len(layers) >= int(SETTINGS["n_layer"].high or 512):
            return after
        kind, width, heads = layers[after]
        other = {"mamba": STANDARD}.get(kind, "mamba")
        layers.insert(after + 1, (other, width, heads))
        self._set_layers(layers, f"add layer {after + 2}")
        return after + 1

    def remove_layer(self, index: int) -> int:
        """Remove a layer, but never the last one. Returns the index of the layer that takes its place."""
        layers = self.layers
        if len(layers) > 1:
            del layers[index]
            self._set_layers(layers, f"remove layer {index + 1}")
        return min(index, self.layer_count - 1)

    def duplicate_layer(self, index: int) -> int:
        """Insert a copy of a layer after it. Returns the copy's index."""
        layers = self.layers
        if len(layers) >= int(SETTINGS["n_layer"].high or 512):
            return index
        layers.insert(index + 1, layers[index])
        self._set_layers(layers, f"duplicate layer {index + 1}")
        return index + 1

    def move_layer(self, index: int, by: int) -> int:
        """Move a layer up or down. Returns its new index."""
        target = index + by
        if not 0 <= target < self.layer_count:
            return index
        layers = self.layers
        layers.insert(target, layers.pop(index))
        self._set_layers(layers, f"move layer {index + 1} {'up' if by < 0 else 'down'}")
        return target

    def mirror(self) -> None:
        """Make the second half the mirror image of the first; the middle layer stays."""
        layers = self.layers
        half = layers[: (len(layers) + 1) // 2]
        rest = half[: len(layers) // 2][::-1]
        self._set_layers(half + rest, "mirror the layers")

    def ramp(self, first: int, last: int, *, geometric: bool, begin: int = 0, end: int | None = None) -> None:
        """Set widths from `first` to `last` over layers [begin, end], rounded to multiples of their heads."""
        stop = self.layer_count - 1 if end is None else end
        layers = self.layers
        for index in range(begin, stop + 1):
            share = (index - begin) / max(1, stop - begin)
            width = first * (last / first) ** share if geometric else first + (last - first) * share
            kind, _, heads = layers[index]
            layers[index] = (kind, round_width(width, width_unit(heads)), heads)
        shape = "geometric" if geometric else "even"
        self._set_layers(layers, f"{shape} ramp {first} to {last}")

    def hourglass(self, first: int, waist: int, last: int, *, geometric: bool) -> None:
        """Set widths down from `first` to `waist` in the middle and up to `last`, as one change."""
        count = self.layer_count
        if count < 3:
            self.ramp(first, waist if count == 2 else last, geometric=geometric)
            return
        middle = (count - 1) // 2
        before = self._now
        self.ramp(first, waist, geometric=geometric, end=middle)
        self.ramp(waist, last, geometric=geometric, begin=count - 1 - middle)
        # Both halves count as one step of undo.
        while self._past and self._past[-1] is not before:
            self._past.pop()

    def paste(self, text: str) -> str:
        """Use a list of widths, heads or types. Returns what it was taken for. Raises ListError.

        The list determines the number of layers.
        """
        target, values = read_list(text)
        self._paste_values(target, values)
        what = {"n_embd": "widths", "n_head": "heads", "attention_type": "types"}[target]
        return f"{len(values)} {what}"

    def _paste_values(self, target: str, values: list[Any]) -> None:
        old = self.layers
        place = ("attention_type", "n_embd", "n_head").index(target)
        layers = []
        for index, value in enumerate(values):
            layer = list(old[min(index, len(old) - 1)])
            layer[place] = value
            if target == "n_embd" and isinstance(layer[2], int) and not fits(self.values, *layer):
                layer[2] = nearest_heads(self.values, layer[0], value, layer[2])
            layers.append((layer[0], layer[1], layer[2]))
        self._set_layers(layers, f"list of {len(values)} layers")


class ListError(ValueError):
    """A list that can't be used, and its wrong word ("" for the whole list)."""

    def __init__(self, sentence: str, word: str = "") -> None:
        super().__init__(sentence)
        self.word = word


def read_list(text: str) -> tuple[str, list[Any]]:
    """The key and the values of a list: `heads 4,4,8` sets heads, words set types, numbers set widths.

    Raises ListError.
    """
    words = text.replace("[", " ").replace("]", " ").replace('"', " ").replace("'", " ")
    key, _, rest = words.replace("=", " ").replace(":", " ").strip().partition(" ")
    named = {"heads": "n_head", "n_head": "n_head", "widths": "n_embd", "n_embd": "n_embd"}
    named |= {"types": "attention_type", "attention_type": "attention_type"}
    entries = (rest if key in named else words).replace(",", " ").replace(";", " ").split()
    if not entries:
        raise ListError("the list is empty; accepted: 256, 192, 128 or mamba, standard, mamba")
    if len(entries) > int(SETTINGS["n_layer"].high or 512):
        raise ListError(f"the list has {len(entries)} entries; accepted: at most 512 layers")
    numbers = [entry.isascii() and entry.isdigit() and len(entry) < 10 for entry in entries]
    target = named.get(key, "n_embd" if numbers[0] else "attention_type")
    if target != "attention_type":
        wrong = next((entry for entry, number in zip(entries, numbers) if not number), None)
        if wrong is not None:
            raise ListError(f'"{wrong[:40]}" is not a whole number; use widths such as 256, 192', wrong)
        return target, [int(entry) for entry in entries]
    kinds = []
    for entry in entries:
        try:
            kinds.append(type_name(entry))
        except ValueError as error:
            raise ListError(str(error), entry) from None
    return target, kinds


def type_name(word: str) -> str:
    """A mixer's full name from any unique beginning: `m`, `a`, `std`, `mamba2`. Raises ValueError."""
    low = word.lower()
    aliases = {"attention": STANDARD, "attn": STANDARD, "std": STANDARD, "m2": MAMBA2, "ssd": MAMBA2}
    if low in ATTENTION_TYPES:
        return low
    for name, kind in (*((kind, kind) for kind in ATTENTION_TYPES), *aliases.items()):
        if low and name.startswith(low):
            return kind
    raise ValueError(
        f'"{word[:40]}" is not a layer type; use {", ".join(ATTENTION_TYPES[:-1])} or {ATTENTION_TYPES[-1]}'
    )


def fits(values: Mapping[str, Any], kind: str, width: Any, heads: Any) -> bool:
    """Whether a number of heads suits a layer, by the configuration's own rules."""
    if not (isinstance(width, int) and isinstance(heads, int)) or width < 1 or heads < 1:
        return False
    if kind == STANDARD:
        even = values.get("position") != "rope" or (width // heads) % 2 == 0
        return width % heads == 0 and even
    expand = values.get("expand", 2)
    if kind == MAMBA2 and isinstance(expand, int):
        return (width * expand) % heads == 0
    return True


def fitting_heads(values: Mapping[str, Any], kind: str, width: int) -> list[int]:
    """All numbers of heads up to 1024 that suit a layer, in ascending order."""
    most = min(1024, width * (int(values.get("expand", 2)) if kind == MAMBA2 else 1))
    return [heads for heads in range(1, most + 1) if fits(values, kind, width, heads)]


def nearest_heads(values: Mapping[str, Any], kind: str, width: int, heads: int) -> int:
    """The suitable number of heads nearest to `wish`."""
    choices = fitting_heads(values, kind, width) if 0 < width <= 65536 else []
    return min(choices, key=lambda choice: abs(math.log(choice / max(1, heads))), default=heads)


def width_unit(heads: Any) -> int:
    """What a layer's width should be a multiple of: 2 per head (rope rotates pairs), at least 8."""
    count = heads if isinstance(heads, int) and 0 < heads <= 1024 else 1
    return math.lcm(8, 2 * count) if count <= 64 else 2 * count


def round_width(width: float, unit: int) -> int:
    """The nearest positive multiple of `unit`."""
    return max(unit, round(width / unit) * unit)


LAYER_WORDS = {"n_embd": "width", "n_head": "heads", "attention_type": "type"}


def problem_sentence(problem: Problem) -> str:
    """A problem as Configure shows it: layers are counted from 1, as on screen."""
    key, bracket, index = problem.key.partition("[")
    if not bracket or key not in LAYER_WORDS or not index.rstrip("]").isdigit():
        return str(problem)
    where = f"layer {int(index.rstrip(']')) + 1}: {LAYER_WORDS[key]}"
    return f"{where} {show(problem.value)}; accepted: {problem.accepted}"


def parse_setting(key: str, text: str) -> Any:
    """A value typed for a key, converted to the key's type if possible, otherwise the text."""
    item = SETTINGS[key]
    stripped = text.strip()
    if item.kind is str:
        return stripped
    if item.zero and stripped.lower() in (item.zero, "auto"):
        return item.kind(0)
    if item.kind is bool:
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(stripped.lower(), stripped)
    try:
        plain = stripped.replace("_", "").replace(" ", "")
        if item.kind is int:
            number = float(plain) if any(c in plain for c in ".eE") else int(plain)
            return int(number) if isinstance(number, int) or number.is_integer() else number
        return float(plain)
    except (ValueError, OverflowError):
        return stripped


def other_settings() -> list[str]:
    """All keys that aren't edited in the layer table."""
    return [key for key in SETTINGS if key not in PER_LAYER and key != "n_layer"]
