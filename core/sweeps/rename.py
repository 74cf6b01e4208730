"""Renames a run that may be a variant of a sweep, or the one that a sweep waits for."""

from __future__ import annotations

import dataclasses

from core.errors import UserError
from core.runs import Run
from core.runs.listing.trash import rename_run
from core.sweeps.plan import Plan, readable_plans
from core.sweeps.queue import is_worked_on


def rename(run: Run, name: str) -> Run:
    """Rename a run, in plans of sweeps too. Raises UserError, also while one of its sweeps is running."""
    plans = [plan for plan in readable_plans(run.path.parent) if _has(plan, run.name)]
    for plan in plans:
        if is_worked_on(plan):
            raise UserError(
                f"{run.name} belongs to {plan.tag}, which is running; rename it when the sweep has ended"
            )
    renamed = rename_run(run, name)
    for plan in plans:
        _renamed(plan, run.name, name).save()
    return renamed


def _has(plan: Plan, name: str) -> bool:
    return plan.after == name or any(variant.run == name for variant in plan.variants)


def _renamed(plan: Plan, old: str, new: str) -> Plan:
    variants = [
        dataclasses.replace(variant, run=new) if variant.run == old else variant for variant in plan.variants
    ]
    return dataclasses.replace(
        plan,
        variants=tuple(variants),
        after=new if plan.after == old else plan.after,
        pruned={new if run == old else run: step for run, step in plan.pruned.items()},
        restarts={new if run == old else run: count for run, count in plan.restarts.items()},
    )
