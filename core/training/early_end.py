"""A run ends early if validation shows that more steps would only memorize the text.

Both rules apply only with `patience`. The trainer shows the sentences that they return.
"""

from __future__ import annotations

from core.config.schema import TrainingConfig
from core.runs import CheckpointInfo, Run, verify
from core.training.build import Parts, return_to
from core.training.schedule import COOL_DOWN, WARM_UP, Schedule


class EarlyEnd:
    """Watches the validation losses of a run."""

    def __init__(self, run: Run, training: TrainingConfig, parts: Parts) -> None:
        self._run = run
        self._patience = training.patience
        self._parts = parts

    @property
    def _schedule(self) -> Schedule:
        return self._parts.training_step.schedule

    def exhausted(self, step: int) -> bool:
        """Whether it is time to cool down: validation hasn't improved for `patience` evaluations."""
        waiting = self._schedule.phase(step + 1) in (COOL_DOWN, WARM_UP)
        return not waiting and self._parts.progress.exhausted(self._patience)

    def cool_down_from_best(self, step: int) -> str:
        """Go back to the weights of the best checkpoint on disk and cool down from there.

        Returns the sentence for the user.
        """
        progress = self._parts.progress
        best = self._parts.ranks.from_first(lambda: self._best_checkpoint(step))
        origin = f"from step {step:,}"
        if best is not None:
            return_to(self._parts, best)
            origin = f"from the weights of step {best.step:,}"
        cool_down = self._schedule.finish(step)
        return (
            f"validation has not improved since step {progress.best_step:,} ({progress.best_loss:.4f}): "
            f"cooling down {origin}, until step {cool_down.end:,}"
        )

    def end_if_rising(self, step: int, validation_loss: float | None) -> str:
        """End with this step if validation is worse than it has been during the current cool-down.

        Returns the sentence for the user, "" if nothing changes.
        """
        progress, planned = self._parts.progress, self._schedule.last_step
        if not self._patience or validation_loss is None or step >= planned:
            return ""
        if not progress.rises_cooling(validation_loss):
            return ""
        self._schedule.end(step)
        return (
            f"validation rises while the learning rate cools down ({validation_loss:.4f} after "
            f"{progress.best_cooling:.4f}): training ends at step {step:,} instead of {planned:,}"
        )

    def _best_checkpoint(self, step: int) -> CheckpointInfo | None:
        """The checkpoint of the best evaluation, if it is from an earlier step and intact."""
        wanted = self._parts.progress.best_step
        best = next((info for info in self._run.checkpoints() if info.step == wanted), None)
        return best if best is not None and best.step < step and not verify(best) else None
