"""Runs a sweep: starts variants as they fit, ends poor ones early, continues those that died.

There is no service. Whoever calls `Queue.work` is the queue for as long as it lives. The trainers don't
depend on it, and the next call continues from the current state, also after a crash or reboot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from core.errors import UserError
from core.runs import Run, is_alive, send_command, signal_trainer, start_trainer
from core.runs.listing.notes import change_tags
from core.sweeps.capacity import fitting
from core.sweeps.plan import Plan, load_plan, readable_plans
from core.sweeps.progress import Progress, Watcher
from core.sweeps.pruning import poor
from core.system.files import delete, open_in_place, write_atomic
from core.system.locks import NoLocksError, try_lock

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 1.0
PRUNED = "pruned"
"""The tag of a variant that was ended early."""

Tell = Callable[[str], None]


class Queue:
    """One running sweep. Created by `queue_of`, which makes sure that there is only one."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self.plan = plan
        self.tell = tell
        self.watcher = Watcher(plan)
        self.leaving = False
        self._told: dict[str, str] = {}
        self._asked: set[str] = set()
        self._failed_to_start: dict[str, str] = {}

    def work(self) -> bool:
        """Work until nothing is left to do. Returns True then, False if `leaving` was set before."""
        self._wait_for_the_run_before()
        at_once = 0
        while not self._asked_to_leave():
            variants = self.look()
            if all(one.done for one in variants):
                return True
            training = [one for one in variants if one.state == "training"]
            if self.plan.prune:
                self._prune(training)
            ready = [one for one in variants if one.state in ("waiting", "interrupted")]
            # Variants that have begun continue before new ones start: they are part of the comparison.
            ready.sort(key=lambda one: one.state == "waiting")
            if ready and not at_once:
                at_once = self.plan.at_once or fitting(ready[0].run.config())
                self.tell(f"{len(variants)} variants, {at_once} at once")
            for one in ready[: max(0, at_once - len(training))]:
                self._start(one)
            time.sleep(LOOK_SECONDS)
        return False

    def _wait_for_the_run_before(self) -> None:
        before = Run(self.plan.root / self.plan.after)
        if self.plan.after and is_to_end(before):
            self.tell(f"waiting until {before.name} ends")
            while is_to_end(before) and not self._asked_to_leave():
                time.sleep(LOOK_SECONDS)

    def _asked_to_leave(self) -> bool:
        if self.plan.stop_path.exists():
            self.leaving = True
        return self.leaving

    def look(self) -> list[Progress]:
        """The current state of every variant, after reporting news."""
        variants = self.watcher.look()
        for one in variants:
            name = one.variant.run
            if name in self._failed_to_start:
                one.state, one.message = "failed", self._failed_to_start[name]
            if one.state != self._told.get(name) and one.state not in ("waiting", "interrupted"):
                self._told[name] = one.state
                self.tell(_news(one))
        return variants

    def _start(self, one: Progress) -> None:
        name = one.variant.run
        if one.died:
            self.plan.restarts[name] = (one.fruitless_restarts(self.plan) + 1, one.step)
            self.plan.save()
            self.tell(f"{name} died at step {one.step:,}; it continues from its newest checkpoint")
        try:
            start_trainer(one.run)
        except UserError as error:
            self._failed_to_start[name] = str(error)

    def _prune(self, training: list[Progress]) -> None:
        for one in training:
            name = one.variant.run
            if name not in self.plan.pruned:
                if not poor(one, self.watcher.variants):
                    continue
                # First the plan, then the command: after a crash in between, the command is sent again.
                self.plan.pruned[name] = one.step
                self.plan.save()
                with contextlib.suppress(UserError):  # for lists of runs; the plan itself knows
                    change_tags(one.run, [PRUNED])
            if name in self._asked:
                continue
            self._asked.add(name)
            with contextlib.suppress(UserError):  # it has just ended by itself
                send_command(one.run, "stop")

    def interrupt(self) -> None:
        """Make every variant that is training save and end; the sweep can be continued later."""
        self.leaving = True
        interrupt(self.plan)
        delete(self.plan.stop_path, missing_ok=True)


def _news(one: Progress) -> str:
    what = ", ".join(f"{key}={value}" for key, value in one.variant.changes.items())
    name = f"{one.variant.run} ({what})" if what else one.variant.run
    best = f", {one.best:.4f} bits/byte" if one.curve else ""
    if one.state == "failed":
        return f"{name} failed: {one.message}"
    if one.state == "pruned":
        return f"{name} was ended at step {one.step:,}: worse than the median{best}"
    if one.state == "training":
        return f"{name} is training"
    return f"{name} {one.state} at step {one.step:,}{best}"


@contextlib.contextmanager
def queue_of(plan: Plan, tell: Tell) -> Iterator[Queue]:
    """The one queue of a plan. Raises UserError if another process is running it."""
    with ExitStack() as stack:
        descriptor = open_in_place(plan.lock_path)
        stack.callback(os.close, descriptor)
        with contextlib.suppress(NoLocksError):
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not try_lock(descriptor):
                # It may be somebody who only checks whether there is a queue, which takes microseconds.
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{plan.tag} is being run by another process; `mamba-tui sweep {plan.tag}` "
                        "shows its progress"
                    )
                time.sleep(0.02)
        delete(plan.stop_path, missing_ok=True)  # meant for an earlier queue
        # Read again under the lock: an earlier queue may have changed it.
        yield Queue(load_plan(plan.root, plan.tag), tell)


def interrupt(plan: Plan) -> int:
    """Make the variants that are training save and end, and wait. Returns how many there were."""
    training = [run for variant in plan.variants if is_alive(run := plan.run(variant))]
    for run in training:
        with contextlib.suppress(UserError):  # it has just ended by itself
            signal_trainer(run, signal.SIGTERM)
    while any(is_alive(run) for run in training):
        time.sleep(LOOK_SECONDS)
    return len(training)


def ask_to_stop(plan: Plan) -> int:
    """End a sweep from another process, through its queue, or its variants if there is no queue.

    Waits for the end. Returns how many variants were training.
    """
    training = sum(is_alive(plan.run(variant)) for variant in plan.variants)
    if not is_worked_on(plan):
        return interrupt(plan)
    write_atomic(plan.stop_path, b"")
    while is_worked_on(plan):
        time.sleep(LOOK_SECONDS)
    return training


def is_to_end(run: Run) -> bool:
    """True while a run is training, or some queue is going to start it."""
    if is_alive(run):
        return True
    for plan in readable_plans(run.path.parent):
        variants = tuple(variant for variant in plan.variants if variant.run == run.name)
        if variants and is_worked_on(plan):
            (one,) = Watcher(dataclasses.replace(plan, variants=variants)).look()
            if not one.done:
                return True
    return False


def is_worked_on(plan: Plan) -> bool:
    """True while some process runs the plan."""
    try:
        descriptor = open_in_place(plan.lock_path)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    except NoLocksError:
        return False
    finally:
        os.close(descriptor)
