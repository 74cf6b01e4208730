"""`mamba-tui train --plan`: what a run would be and how long it would take, without starting anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.schema import PER_LAYER, RunConfig, differences, flat
from core.config.setting import show
from core.errors import UserError
from mamba_tui.widgets.plan_words import plan_lines, rough_time
from mamba_tui.widgets.safe_text import visible

if TYPE_CHECKING:
    from mamba_tui.backend.run_estimate import Estimate

UNMEASURED = "the time is a guess: nothing similar was measured on this machine; mamba-tui bench measures it"


def add_plan_options(train: argparse.ArgumentParser) -> None:
    """Add the options of `train` that only plan."""
    group = train.add_argument_group("plan")
    group.add_argument(
        "--plan",
        action="store_true",
        help="show what the run would be and how long it would take, without starting it",
    )
    group.add_argument("--json", action="store_true", help="with --plan: print it as one JSON object")


def check_plan_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together with a plan."""
    if not arguments.plan:
        if arguments.json:
            raise UserError("--json is for plans; give --plan too")
        return
    for flag in ("resume", "fresh", "detach", "sweep", "after"):
        if getattr(arguments, flag):
            raise UserError(f"--plan starts nothing, so --{flag} does not go with it; leave one of them out")


def show_plan(arguments: argparse.Namespace, config: RunConfig, root: Path) -> int:
    """Print the plan of a new run. Returns the exit code; raises UserError if there is no text."""
    from core.config.preflight import check_possible
    from core.data.sample_corpus import has_texts, no_text
    from mamba_tui.backend.run_estimate import estimate, survey

    check_possible(config)
    folder = Path(config.data.dataset_dir).expanduser()
    if not has_texts(folder):
        raise UserError(no_text(folder))
    cost = estimate(config, survey(config, root))
    if cost.plan is None or cost.duration is None:
        raise UserError(no_text(folder))
    if arguments.json:
        print(json.dumps(_values(config, cost), indent=2))
        return 0
    planned, length = cost.plan, cost.duration
    lines = plan_lines(
        planned.text.tokens, planned.parameters, planned.passes, length.seconds, length.low, length.high,
        planned.steps, planned.expected, planned.hint, exact=planned.text.exact and cost.exact,
    )  # fmt: skip
    spent = [f"{name} {rough_time(seconds)}" for name, seconds in length.parts.items() if seconds >= 0.5]
    lines.append(f"of that time: {', '.join(spent)}")
    decided = _decided(config, planned.config)
    if decided:
        lines.append(
            "decided for it: " + ", ".join(f"{key} = {show(value)}" for key, value in decided.items())
        )
    if not length.measured:
        lines.append(UNMEASURED)
    for line in lines:
        print(visible(line))
    return 0


def _decided(config: RunConfig, planned: RunConfig) -> dict[str, Any]:
    """The settings that were left open, and others that depend on them, with their planned values."""
    open_keys = set(config.training.auto.split())
    if "n_embd" in open_keys:
        open_keys |= set(PER_LAYER)
    if not config.training.max_iters:
        open_keys.add("max_iters")
    changed = differences(config, planned).keys() - {"auto"}
    return {key: value for key, value in flat(planned).items() if key in open_keys | changed}


def _values(config: RunConfig, cost: Estimate) -> dict[str, Any]:
    planned, length = cost.plan, cost.duration
    assert planned is not None
    assert length is not None
    return {
        "text_bytes": planned.text.bytes,
        "tokens": planned.text.tokens,
        "exact": planned.text.exact and cost.exact,
        "parameters": planned.parameters,
        "passes": round(planned.passes, 3),
        "steps": planned.steps,
        "seconds": round(length.seconds, 1),
        "seconds_low": round(length.low, 1),
        "seconds_high": round(length.high, 1),
        "seconds_of": {name: round(seconds, 2) for name, seconds in length.parts.items()},
        "measured": length.measured,
        "tokens_per_second": round(length.tokens_per_second, 1),
        "memory_bytes": cost.memory,
        "device": cost.device,
        "expected_loss": list(planned.expected) if planned.expected else None,
        "hint": planned.hint,
        "decided": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in _decided(config, planned.config).items()
        },
    }
