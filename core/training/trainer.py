"""Trains one run: steps, evaluations, samples, checkpoints, and commands between steps.

`Trainer` is everything that needs torch; `core/training/process.py` is the process around it. A trainer is
deterministic: the same run, interrupted at any step and resumed, computes the same numbers (bit for bit on
CPU), because a checkpoint holds everything that determines them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from core.config.schema import RunConfig
from core.runs import CheckpointInfo, EventWriter, Run, StepMeter
from core.runs.events import CheckpointEvent, EvaluationEvent, ReadingEvent, SampleEvent, ScheduleEvent
from core.system.device_usage import Usage, device_usage
from core.training.build import Parts, payload_of
from core.training.checkpoint_saver import CheckpointSaver
from core.training.early_end import EarlyEnd
from core.training.evaluation import Evaluation, evaluate, token_lengths, untouched_randomness
from core.training.file_losses import files_event
from core.training.forecast import Forecast
from core.training.layer_watch import LayerWatch
from core.training.ranks import RankLostError
from core.training.requests import Requests, StopRequestedError, say
from core.training.run_clock import END, EVALUATION, OTHER, SAMPLE, SAVE, STEP, RunClock
from core.training.schedule import COOL_DOWN, Schedule

if TYPE_CHECKING:
    from core.training.shared_requests import SharedRequests

PAUSE_SECONDS = 0.05
PROGRESS_SECONDS = 0.5
ROWS_TOLD = 64


class DivergenceError(Exception):
    """Too many steps in a row weren't finite. The message is for the user."""


class Trainer:
    """Drives the parts of a run from `step` to `max_iters`, or until it is asked to stop."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        parts: Parts,
        writer: EventWriter,
        requests: Requests | SharedRequests,
    ) -> None:
        self.run = run
        self.config = config
        self.parts = parts
        self.ranks = parts.ranks
        self.writer = writer
        self.requests = requests
        self.step = parts.step
        self.losses: dict[str, float | None] = dict(parts.losses)
        self.bad_in_a_row = parts.bad_in_a_row
        self.saver = CheckpointSaver(run.path, config.training, run.events_path)
        self.last_saved: CheckpointInfo | None = parts.resumed_from
        if parts.resumed_from is not None:
            self.saver.loaded(self.step, evaluated=self._evaluated)
        self.meter = StepMeter(
            writer,
            parts.tokens_per_step,
            tokens=parts.tokens,
            interval=requests.event_seconds,
            device_memory=self._device_memory,
            device_utilization=_usage_of(parts.device),
        )
        self.clock = RunClock(parts.seconds)
        self._layers = LayerWatch(parts, config, writer)
        self._early_end = EarlyEnd(run, config.training, parts)
        self._forecast = Forecast(parts, config, writer, self.clock)
        self._taken = self.step
        self._ticked = 0.0

    @property
    def _schedule(self) -> Schedule:
        return self.parts.training_step.schedule

    @property
    def _at_end(self) -> bool:
        return self.step >= self._schedule.last_step

    @property
    def _evaluated(self) -> bool:
        return self.losses.get("validation_loss") is not None

    def _device_memory(self) -> int | None:
        device = self.parts.device
        return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None

    def train(self) -> bool:
        """Train to the end. Returns True if the end was reached, False if the run was asked to stop before.

        Either way everything learned is saved. Raises DivergenceError, UserError, and anything that torch
        raises.
        """
        training = self.config.training
        due = self.step > 0 and (self.step % training.eval_interval == 0 or self._at_end)
        if due and not self._evaluated and not self.requests.stopping:
            self._look()  # the run ended before its evaluation at this step had
        if self._schedule.phase(self.step + 1) == COOL_DOWN:
            self._tell_schedule()  # a trainer before this one had begun to cool down
        if not self._at_end and not self.requests.stopping:
            self._forecast.say_plan(self.step)
            self._tell_reading()
            self._first_step()
            self._forecast.begun()
        while not self._at_end and not self.requests.stopping:
            self._listen()
            if not self.requests.stopping:
                self._advance()
        finished = self._at_end and (self._evaluated or not self.requests.stopping)
        self._collect(wait=True)
        self.meter.flush()
        self.clock.lap(STEP)
        self._save("the last checkpoint" if finished else "saving")
        self.saver.wait()
        self._report_saves()
        self.clock.lap(END)
        self._forecast.remember()
        return finished

    def _advance(self) -> None:
        self._layers.before_step(self.step + 1, self._schedule.last_step)
        self.parts.training_step.run(self.step + 1)
        self.clock.stepped()
        self._count_step()
        # On CPU the numbers are there; on a device asking for them has its price.
        if self.parts.device.type == "cpu" or self.meter.due:
            self._collect(wait=False)
        if self._forecast.hurries(self._schedule, self.step):
            self._tell_schedule()
            self._back_to_training()
        self._after_step()
        self._forecast.say_measured(self.step, self._schedule.last_step)
        self._report_saves()

    def _count_step(self) -> None:
        """Take note of a step that was taken."""
        self.step += 1
        self.losses = {}
        if self.parts.averaged is not None:
            self.parts.averaged.update(self.step)
        cool_down = self._schedule.cool_down
        if cool_down is not None and self.step == cool_down.begin and not self._at_end:
            self._tell_schedule()

    def _first_step(self) -> None:
        """The first step, which may have to be compiled, and whose loss the user is waiting for."""
        compiling = self.parts.compiled
        self.writer.state("compiling" if compiling else "training", self.step)
        self.meter.restart()
        began = time.monotonic()
        before = self.parts.snapshot()
        self._layers.before_step(self.step + 1, self._schedule.last_step)
        try:
            self.parts.training_step.run(self.step + 1)
        except (torch.OutOfMemoryError, RankLostError):
            raise
        except Exception as error:
            if not compiling:
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.writer.warning(f"torch.compile failed ({first[:200]}); training continues without it")
            self.parts.without_compile(before)
            self.parts.training_step.run(self.step + 1)
        self._count_step()
        self._collect(wait=True)
        if compiling:
            seconds = time.monotonic() - began
            detail = f"compiled in {seconds:.1f} s" if self.parts.compiled else ""
            self.writer.state("training", self.step, detail=detail)
        self._after_step()

    def _collect(self, *, wait: bool) -> None:
        """Turn the numbers of finished steps into events, and count the steps that were skipped."""
        while self.parts.training_step.notices:
            self.writer.warning(self.parts.training_step.notices.pop(0))
        for metrics in self.parts.training_step.read(wait=wait):
            self._taken = metrics.step
            self.meter.add(
                step=metrics.step,
                loss=metrics.loss,
                gradient_norm=metrics.gradient_norm,
                learning_rate=metrics.learning_rate,
                waited=metrics.waited,
                epoch=self.parts.loader.epoch,
            )
            if metrics.good:
                self.bad_in_a_row = 0
                continue
            self.bad_in_a_row += 1
            if self.bad_in_a_row == 1:
                self.writer.warning(
                    f"step {metrics.step} was skipped: its loss or gradient is not a finite number"
                )
            # Rank 0 reports it, and the other ranks end with it.
            if self.bad_in_a_row >= self.config.training.max_bad_steps and self.ranks.first:
                self.meter.flush()
                raise DivergenceError(self._divergence())
        self.meter.flush_if_due()

    def _divergence(self) -> str:
        self.saver.wait()
        self._report_saves()
        good = f"the last good checkpoint is {self.last_saved.path.name}" if self.last_saved else ""
        return (
            f"{self.bad_in_a_row} steps in a row up to step {self._taken} had a loss or gradient that is not "
            f"finite; {good or 'there is no checkpoint yet'}"
        )

    def _after_step(self) -> None:
        """Do what is due at this step: evaluation, then a sample, then a checkpoint."""
        training, step = self.config.training, self.step
        last = self._at_end
        evaluation = last or step % training.eval_interval == 0
        sample = step % training.sample_interval == 0 if training.sample_interval else evaluation
        save = step % training.checkpoint_interval == 0 if training.checkpoint_interval else evaluation
        if not (evaluation or sample or save):
            return
        self._collect(wait=True)
        self.meter.flush()
        self.clock.lap(STEP)
        if evaluation:
            self._look(sample=False)
            self.clock.lap(EVALUATION)
            self._say_early_end(self._early_end.end_if_rising(step, self.losses.get("validation_loss")))
        if sample and not self.requests.stopping:
            self._sample(training.sample_prompt)
            self.clock.lap(SAMPLE)
        if save and not self.requests.stopping:
            self._save("")
            self.clock.lap(SAVE)
        if not self._at_end and not self.requests.stopping:
            if evaluation and self._evaluated and self._early_end.exhausted(step):
                self.saver.wait()  # the best checkpoint may still be on its way to the disk
                self._report_saves()
                self._say_early_end(self._early_end.cool_down_from_best(step))
            self._back_to_training()

    def _back_to_training(self) -> None:
        cooling = self._schedule.phase(self.step + 1) == COOL_DOWN
        detail = f"cooling down until step {self._schedule.last_step:,}" if cooling else ""
        self.writer.state("training", self.step, detail)
        self.meter.restart()

    def _tell_reading(self) -> None:
        rows = map(self.parts.corpus.train.place, self.parts.loader.row_positions()[:ROWS_TOLD])
        self.writer.write(ReadingEvent(step=self.step, rows=tuple(rows)))

    def _tell_schedule(self) -> None:
        schedule = self._schedule
        phase, begin = schedule.phase(self.step + 1), self.step
        if phase == COOL_DOWN and schedule.cool_down is not None:
            begin = schedule.cool_down.begin
        self.writer.write(ScheduleEvent(step=begin, phase=phase, last_step=schedule.last_step))

    def _say_early_end(self, sentence: str) -> None:
        if sentence:
            self._tell_schedule()
            self.writer.warning(sentence)

    def _look(self, *, sample: bool = True) -> None:
        """Evaluate on both splits.

        A stop interrupts this: the run saves at once and evaluates when it resumes.
        """
        parts = self.parts
        self.writer.state("evaluating", self.step, progress=0.0)
        try:
            evaluation = evaluate(
                parts.judged_model,
                parts.corpus,
                parts.tokenizer.eot,
                token_lengths(parts.tokenizer.tokens),
                self.config,
                parts.device,
                self._tick("evaluating"),
                self.ranks,
            )
        except StopRequestedError:
            return
        self._record(evaluation)
        self._layers.report(self.step)
        if sample:
            self._sample(self.config.training.sample_prompt)

    def _record(self, evaluation: Evaluation) -> None:
        self._tell_reading()
        self.losses = {
            "train_loss": evaluation.train.loss,
            "validation_loss": evaluation.validation.loss,
            "bits_per_byte": evaluation.validation.bits_per_byte,
        }
        doubt = self.parts.progress.doubt(evaluation.validation)
        cooling = self._schedule.phase(self.step) == COOL_DOWN
        self.parts.progress.take(self.step, evaluation.validation.loss, cooling=cooling)
        self.writer.write(
            EvaluationEvent(
                step=self.step,
                train_loss=evaluation.train.loss,
                validation_loss=evaluation.validation.loss,
                bits_per_byte=evaluation.validation.bits_per_byte,
                train_bits_per_byte=evaluation.train.bits_per_byte,
                standard_error=evaluation.validation.standard_error,
                validation_tokens=evaluation.validation.tokens,
                validation_share=round(evaluation.validation_share, 4),
                seconds=round(evaluation.seconds, 3),
            )
        )
        if evaluation.validation.files and (self._at_end or self.parts.progress.best_step == self.step):
            self.writer.write(files_event(self.step, evaluation.validation.files))
        if doubt:
            way = "raise eval_iters" if evaluation.validation_share < 1 else "use more validation text"
            self.writer.warning(f"{doubt}; {way} to tell checkpoints apart")

    def _tick(self, state: str) -> Callable[[float], None]:
        """Called between the batches of an evaluation: takes commands and reports progress."""

        def tick(share: float) -> None:
            self.requests.listen(self.step)
            if self.requests.stopping:
                raise StopRequestedError
            now = time.monotonic()
            if now - self._ticked >= PROGRESS_SECONDS:
                self._ticked = now
                self.writer.state(state, self.step, progress=round(share, 3))

        return tick

    def _sample(self, prompt: str) -> None:
        from core.config.sampling import SamplingSettings
        from core.generation.generation import generate_text

        tokens = self.config.training.sample_tokens
        if tokens == 0 or not self.ranks.first:
            return
        self.writer.state("sampling", self.step)
        seed = (self.config.training.seed + self.step) % (1 << 31)
        with untouched_randomness(self.parts.device):
            settings = SamplingSettings(seed=seed, max_new_tokens=tokens)
            text = generate_text(self.parts.judged_model, self.parts.tokenizer, prompt, settings)
        self.writer.write(SampleEvent(step=self.step, prompt=prompt, text=text))

    def _save(self, detail: str) -> None:
        """Save this step in the background, unless it is saved already."""
        if self.step == 0 or self.ranks.from_first(
            lambda: self.saver.has(self.step, evaluated=self._evaluated)
        ):
            return
        self.writer.state("stopping" if self.requests.stopping else "saving", self.step, detail=detail)
        if self.config.training.time_budget:  # without one, equal runs end in equal bytes
            self.parts.seconds = self.clock.spent
        payload = payload_of(
            self.parts, self.config, self.step, self.losses, self.meter.tokens, self.bad_in_a_row
        )
        self.ranks.reseed(self.config.training.seed, self.step)
        if self.ranks.first:
            self.saver.submit(payload, self.losses)
        self._report_saves()

    def saved(self) -> CheckpointInfo | None:
        """The newest checkpoint on disk, after waiting for a save in progress."""
        self.saver.wait()
        self._report_saves()
        return self.last_saved

    def _report_saves(self) -> None:
        for saved in self.saver.results():
            if saved.info is None:
                kept = (
                    f"{self.last_saved.path.name} still exists" if self.last_saved else "nothing is saved yet"
                )
                message = f"the checkpoint of step {saved.step} could not be saved ({saved.problem}); {kept}"
                say(message)  # the events may be on the same full disk
                self.writer.warning(message)
                continue
            self.last_saved = saved.info
            self.writer.write(
                CheckpointEvent(
                    step=saved.step,
                    file=saved.info.path.name,
                    bytes=saved.info.bytes,
                    train_loss=saved.info.train_loss,
                    validation_loss=saved.info.validation_loss,
                    bits_per_byte=saved.info.bits_per_byte,
                    best=saved.info.best,
                    seconds=round(saved.seconds, 3),
                )
            )

    def _listen(self) -> None:
        """Take commands, carry them out, and wait while paused."""
        self.requests.listen(self.step)
        if not (self.requests.paused or self.requests.wanted):
            return
        self._collect(wait=True)
        self.meter.flush()
        self.clock.lap(STEP)
        announced = False
        while not self.requests.stopping and (self.requests.paused or self.requests.wanted):
            if self.requests.wanted:
                self.clock.skip()
                self._serve(*self.requests.wanted.pop(0))
                self.clock.lap(OTHER)
                announced = False
            elif not announced:
                self.writer.state("paused", self.step)
                announced = True
            else:
                time.sleep(PAUSE_SECONDS)
            self._report_saves()
            self.requests.listen(self.step)
        self.clock.skip()
        if not self.requests.stopping:
            self._back_to_training()

    def _serve(self, command: str, arguments: dict[str, Any]) -> None:
        if command == "save":
            self._save("")
        elif command == "evaluate":
            self._look(sample=False)
        elif command == "finish":
            self._schedule.finish(self.step)
            self._tell_schedule()
        elif command == "sample":
            self._sample(str(arguments.get("prompt", self.config.training.sample_prompt))[:10_000])


def _usage_of(device: torch.device) -> Usage:
    """How busy the device is. Torch supplies its identity, because the driver may count in another order."""
    if device.type != "cuda":
        return device_usage(device.type)
    properties = torch.cuda.get_device_properties(device)
    return device_usage("cuda", device.index, str(getattr(properties, "uuid", "")))
