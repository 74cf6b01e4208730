"""Configuration files (JSON and TOML), presets, and `key=value` from the command line.

Both formats accept keys at the top level, under the name of their group (`[model]`, `[training]` ...), or
under `config`, the original project's layout. Writing is atomic: a crash leaves the old file.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path

from core.config.changes import replace
from core.config.schema import GROUPS, SETTINGS, RunConfig, build, build_frozen, flat, nearest_key
from core.config.setting import ConfigError, Problem, Value, shorten, show
from core.errors import UserError
from core.system.files import make_folder, read_limited, write_atomic

PRESETS = resources.files("core.config.presets")
WORKING_FILE = Path("current_configuration.json")
CONFIGURATION_VERSION = 1
LARGEST_FILE = 4 << 20
DEFAULT_PRESET = "book"
PRESET_ALIASES = {"seed": "original"}  # its earlier name, which scripts may still use
# In the original project's layout these three are beside "config", not in it.
ORIGINAL_TOP_LEVEL = ("device", "compile", "dataset_dir")


def load_frozen(path: Path) -> RunConfig:
    """The configuration of a run as it was when the run began. Raises as `load_file` does."""
    return load_file(path, build_frozen)


def load_file(path: Path, make: Callable[[Mapping[str, object], str], RunConfig] = build) -> RunConfig:
    """Read a `.json` or `.toml` configuration.

    Raises UserError for a file that can't be read or parsed (naming the line), and ConfigError that lists
    every problem with its values.
    """
    try:
        return make(_flatten(_parse(path), str(path)), str(path))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; accepted: keys and values, in groups") from None


def _parse(path: Path) -> dict[str, object]:
    if path.suffix not in (".json", ".toml"):
        raise UserError(f"{path} is not a configuration file; accepted: a name ending in .json or .toml")
    try:
        text = read_limited(path, LARGEST_FILE, follow_links=True).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; accepted: a .json or .toml configuration") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (at byte {error.start}); accepted: JSON or TOML in UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shorten(str(path))} cannot be read: {reason}") from None
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno} is not valid JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; accepted: keys and values, in groups") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise UserError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} contains {type(data).__name__}; accepted: an object of keys and values")
    return data


def _flatten(data: Mapping[str, object], source: str) -> dict[str, object]:
    """Convert every accepted layout to one flat mapping."""
    values: dict[str, object] = {}
    problems: list[Problem] = []

    def take(key: str, value: object) -> None:
        if key in values and values[key] != value:
            problems.append(Problem(key, value, f"one value (it is also set to {show(values[key])})"))
        values[key] = value

    for key, value in data.items():
        if key == "configuration_version":
            if value != CONFIGURATION_VERSION:
                problems.append(
                    Problem(key, value, f"{CONFIGURATION_VERSION}, the version this program reads")
                )
        elif key == "config" or key in GROUPS:
            if not isinstance(value, dict):
                problems.append(Problem(key, value, "a group of keys and values"))
                continue
            for inner, entry in value.items():
                if key in GROUPS and inner in SETTINGS and SETTINGS[inner].group != key:
                    problems.append(
                        Problem(f"{key}.{inner}", entry, f"the same key under [{SETTINGS[inner].group}]")
                    )
                take(inner, entry)
        elif key in SETTINGS:
            take(key, value)
        else:
            problems.append(Problem(key, value, f"{nearest_key(key, problems)} (this key is unknown)"))
    if problems:
        raise ConfigError(problems, source)
    return values


def save_file(config: RunConfig, path: Path) -> None:
    """Write a configuration atomically: `.json` in the original project's layout, `.toml` by groups.

    Raises UserError if the file can't be written; an existing file is then unchanged.
    """
    if path.suffix not in (".json", ".toml"):
        raise UserError(f"{path} is not a configuration file; accepted: a name ending in .json or .toml")
    text = _json_text(config) if path.suffix == ".json" else toml_text(config)
    try:
        make_folder(path.parent, private=False, follow_links=True)
        write_atomic(path, text.encode(), private=False)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another path") from None


def _json_text(config: RunConfig) -> str:
    values = {key: _plain(key, value) for key, value in flat(config).items()}
    top = {key: values.pop(key) for key in ORIGINAL_TOP_LEVEL}
    data = {"configuration_version": CONFIGURATION_VERSION, "config": values, **top}
    return json.dumps(data, indent=4, ensure_ascii=False) + "\n"


def toml_text(config: RunConfig) -> str:
    """The configuration as TOML, one table per group."""
    import tomli_w

    tables = {
        group: {
            item.name: _plain(item.name, getattr(getattr(config, group), item.name))
            for item in dataclasses.fields(cls)
        }
        for group, cls in GROUPS.items()
    }
    return tomli_w.dumps(tables)


def _plain(key: str, value: Value) -> object:
    if key == "compile" and value in ("true", "false"):
        return value == "true"  # as the original project reads it
    return list(value) if isinstance(value, tuple) else SETTINGS[key].in_words(value)


def preset_names() -> list[str]:
    """The names `preset` accepts, the default first."""
    names = [entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name != DEFAULT_PRESET, name))


def preset(name: str = DEFAULT_PRESET, *, cuda: bool = False) -> RunConfig:
    """A preset by name; with `cuda`, its table `[cuda]` (if any) overrides the rest.

    Raises UserError that lists the available presets.
    """
    name = PRESET_ALIASES.get(name, name)
    if name not in preset_names():
        raise UserError(f"--preset is {show(name)}; accepted: {', '.join(preset_names())}")
    source = f"preset {name}"
    data = tomllib.loads(PRESETS.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    on_cuda = data.pop("cuda", {})
    data.pop("about", None)
    values = _flatten(data, source)
    if cuda:
        values |= _flatten(on_cuda, source)
    return build(values, source)


def preset_about(name: str) -> str:
    """One line that says what a preset is for."""
    data = tomllib.loads(PRESETS.joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    return str(data.get("about", ""))


def apply_settings(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Apply `key=value` assignments. Values are written as in TOML; bare words are text.

    A change of depth resizes the other per-layer keys (see `core.config.changes.replace`). Raises
    ConfigError.
    """
    changes: dict[str, object] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().rpartition(".")[2]
        if not equals:
            raise UserError(
                f"--set is {show(assignment)}; accepted: key=value, such as --set n_embd=[64,48,64]"
            )
        changes[key] = parse_value(text.strip())
    return replace(config, "--set", **changes) if changes else config


def parse_value(text: str) -> object:
    """A value as typed: parsed as TOML if possible, otherwise the text itself."""
    for attempt in (text, text.replace("'", '"'), _quoted_words(text)):
        try:
            return tomllib.loads(f"value = {attempt}")["value"]
        except (ValueError, RecursionError):  # not TOML, or an integer of thousands of digits
            continue
    return text


def _quoted_words(text: str) -> str:
    """`[mamba, standard]` with its words quoted again, because shells remove quotes."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    words = [word.strip() for word in text[1:-1].split(",") if word.strip()]
    return "[" + ", ".join(json.dumps(word) for word in words) + "]"
