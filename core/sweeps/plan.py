"""A sweep on disk: `checkpoints/.sweeps/<tag>.json`, with everything needed to continue after a crash or
reboot.

The variants are ordinary runs beside it, prepared when the plan is made; their state is read from their own
histories. The file adds only what no history says: which variants were ended early, and how often a variant
that died was restarted.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.changes import replace
from core.config.schema import RunConfig
from core.config.setting import Value, show
from core.errors import UserError
from core.runs import Run, check_name, list_runs, prepare_run
from core.runs.listing.notes import LONGEST_TAG, change_tags
from core.sweeps.axes import Changes
from core.system.files import make_folder, read_limited, write_atomic

FOLDER = ".sweeps"
FORMAT = 1
LARGEST_PLAN = 4 << 20


@dataclass(frozen=True)
class Variant:
    """One run of a sweep, and its changes to the common configuration."""

    run: str
    changes: Changes


@dataclass
class Plan:
    """What a sweep is to do. `at_once` 0 means as many as fit; `after` names a run to wait for."""

    root: Path
    tag: str
    variants: tuple[Variant, ...]
    prune: bool = False
    at_once: int = 0
    after: str = ""
    pruned: dict[str, int] = field(default_factory=dict)
    """Variants that were ended early, and at which step."""
    restarts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Variants that died: how often they were restarted without getting further, and at which step."""

    @property
    def path(self) -> Path:
        """The plan's file."""
        return plan_path(self.root, self.tag)

    @property
    def lock_path(self) -> Path:
        """The file that is locked while a process runs the plan."""
        return self.path.with_suffix(".lock")

    @property
    def stop_path(self) -> Path:
        """A file whose existence makes the queue end its variants and leave."""
        return self.path.with_suffix(".stop")

    @property
    def log_path(self) -> Path:
        """The output of a queue in the background."""
        return self.path.with_suffix(".log")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that differ between variants."""
        return tuple(self.variants[0].changes) if self.variants else ()

    def run(self, variant: Variant) -> Run:
        """The run of a variant."""
        return Run(self.root / variant.run)

    def save(self) -> None:
        """Write the plan, completely or not at all. Raises UserError."""
        values = {
            "format": FORMAT,
            "tag": self.tag,
            "prune": self.prune,
            "at_once": self.at_once,
            "after": self.after,
            "variants": [{"run": one.run, "changes": one.changes} for one in self.variants],
            "pruned": self.pruned,
            "restarts": self.restarts,
        }
        try:
            make_folder(self.path.parent)
            write_atomic(self.path, json.dumps(values, indent=1).encode() + b"\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror})") from None


def plan_path(root: Path, tag: str) -> Path:
    """The file of a tag's plan."""
    return Path(root) / FOLDER / f"{tag}.json"


def next_tag(root: Path) -> str:
    """The first unused tag: sweep-001, sweep-002, ..."""
    number = 1
    while plan_path(root, f"sweep-{number:03d}").exists():
        number += 1
    return f"sweep-{number:03d}"


def make_plan(root: Path, tag: str, base: RunConfig, changes: list[Changes], **options: Any) -> Plan:
    """Prepare a run for every variant and write the plan.

    If a plan of this tag exists and its variants are the same, it is continued. Otherwise raises UserError,
    also if a run of a needed name exists or something can't be written.
    """
    check_name(tag, "--tag")
    digits = len(str(len(changes)))
    variants = tuple(Variant(f"{tag}-{number:0{digits}}", one) for number, one in enumerate(changes, 1))
    plan = Plan(Path(root), tag, variants, **options)
    if plan.path.exists():
        known = load_plan(root, tag)
        if known.variants != variants:
            raise UserError(
                f'--tag is "{tag}", a sweep with other variants; accepted: a new tag, or '
                f"`mamba-tui sweep {tag} --resume` to continue that one"
            )
        return known
    taken = [variant.run for variant in variants if plan.run(variant).path.exists()]
    if taken:
        raise UserError(
            f'--tag is "{tag}", but a run "{taken[0]}" exists in {root} already; give another --tag'
        )
    for variant in variants:
        run = prepare_run(plan.root, variant.run, replace(base, f"variant {variant.run}", **variant.changes))
        change_tags(run, [common_tag(tag)])
    plan.save()
    return plan


def common_tag(tag: str) -> str:
    """What all runs of a sweep are tagged with: its name, where that can be a tag."""
    return re.sub(r"[\s,\"'!<>=~]", "-", tag)[:LONGEST_TAG]


def queue_run(root: Path, name: str, after: str) -> Plan:
    """A plan with one prepared run that starts when another run ends. Raises UserError."""
    check_after(root, after)
    if name in _waits_for(root, after):
        raise UserError(f"{name} would wait for itself, as {after} does; accepted: another run")
    plan = Plan(Path(root), name, (Variant(name, {}),), at_once=1, after=after)
    plan.save()
    return plan


def check_after(root: Path, after: str) -> None:
    """Raise UserError unless there is a run of this name to wait for; "" is none."""
    if after and not Run(Path(root) / after).exists:
        known = ", ".join(run.name for run in list_runs(root)) or "none"
        raise UserError(f"there is no run {show(after)} in {root} to start after; accepted: {known}")


def plan_names(root: Path) -> list[str]:
    """The tags of all plans, by name."""
    try:
        return sorted(path.stem for path in (Path(root) / FOLDER).iterdir() if path.suffix == ".json")
    except OSError:
        return []


def readable_plans(root: Path) -> list[Plan]:
    """All plans but damaged ones, which nobody can continue."""
    plans = []
    for tag in plan_names(root):
        with contextlib.suppress(UserError):
            plans.append(load_plan(root, tag))
    return plans


def _waits_for(root: Path, name: str) -> set[str]:
    """A run, the run that it waits for, the one that waits for, and so on."""
    after = {variant.run: plan.after for plan in readable_plans(root) for variant in plan.variants}
    names: set[str] = set()
    while name and name not in names:
        names.add(name)
        name = after.get(name, "")
    return names


def load_plan(root: Path, tag: str) -> Plan:
    """The plan of a tag. Raises UserError if there is none or its file is damaged."""
    check_name(tag, "TAG")
    path = plan_path(root, tag)
    try:
        values = json.loads(read_limited(path, LARGEST_PLAN))
        return _plan(Path(root), tag, values)
    except FileNotFoundError:
        known = ", ".join(plan_names(root)) or "there are none; `mamba-tui train --sweep KEY=A,B` makes one"
        raise UserError(f"there is no sweep {show(tag)} in {root}; accepted: {known}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(
            f"{path} is not a sweep's plan ({type(error).__name__}); remove it, the runs stay"
        ) from None


def _plan(root: Path, tag: str, values: dict[str, Any]) -> Plan:
    if values["format"] != FORMAT or not 0 <= values["at_once"] <= 1000 or type(values["prune"]) is not bool:
        raise ValueError
    variants = []
    for one in values["variants"]:
        check_name(one["run"])
        variants.append(
            Variant(one["run"], {str(key): _value(value) for key, value in one["changes"].items()})
        )
    if values["after"]:
        check_name(values["after"], "after")
    return Plan(
        root,
        tag,
        tuple(variants),
        prune=values["prune"],
        at_once=values["at_once"],
        after=values["after"],
        pruned={str(run): int(step) for run, step in values["pruned"].items()},
        restarts={str(run): (int(number), int(step)) for run, (number, step) in values["restarts"].items()},
    )


def _value(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value
