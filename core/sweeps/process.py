"""A sweep in the background: `python -P -m core.sweeps.process CHECKPOINTS TAG`.

It writes what happens, with the time, to `checkpoints/.sweeps/<tag>.log`. SIGTERM and SIGINT make the
variants save and end; `mamba-tui sweep TAG --resume` continues. Exit codes: 0 done, 130 left, 2 bad input.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from core.errors import UserError
from core.sweeps.plan import Plan, load_plan
from core.sweeps.queue import is_worked_on, queue_of
from core.system.files import open_to_append
from core.system.processes import module_command, module_environment

START_SECONDS = 30.0


def main(arguments: list[str]) -> int:
    """Run the plan named on the command line. Returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -P -m core.sweeps.process CHECKPOINTS TAG", file=sys.stderr)
        return 2
    try:
        with queue_of(load_plan(Path(arguments[0]), arguments[1]), _tell) as queue:

            def leave(number: int, frame: object) -> None:
                queue.leaving = True

            signal.signal(signal.SIGTERM, leave)
            signal.signal(signal.SIGINT, leave)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if queue.work():
                _tell("done")
                return 0
            queue.interrupt()
            return 130
    except UserError as error:
        _tell(str(error))
        return 2


def _tell(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def start_in_background(plan: Plan) -> int:
    """Start `main` on a plan in its own session. Returns its pid once it works.

    Raises UserError if the plan is running already, or the process ends at once.
    """
    if is_worked_on(plan):
        raise UserError(f"{plan.tag} is running already; `mamba-tui sweep {plan.tag}` shows its progress")
    try:
        log = open_to_append(plan.log_path)
    except OSError as error:
        raise UserError(f"{plan.log_path} cannot be written ({error.strerror})") from None
    with log:
        child = subprocess.Popen(
            module_command("core.sweeps.process", str(plan.root.resolve()), plan.tag),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=module_environment(),
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if is_worked_on(plan) or child.poll() == 0:
            return child.pid
        if child.poll() is not None:
            break
        time.sleep(0.02)
    raise UserError(f"the queue of {plan.tag} did not start; see {plan.log_path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
