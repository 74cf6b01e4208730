"""From a run directory to everything a trainer works with: new, or exactly as a checkpoint left it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from core.checkpoint import (
    FORMAT,
    RESUMABLE,
    Payload,
    check_fits,
    check_keys,
    config_of,
    judged_weights,
    load,
    load_weights,
)
from core.config.plan import Plan, TextSize, plan, seconds_by
from core.config.schema import ModelConfig, RunConfig, differences, flat
from core.config.setting import Value
from core.config.speed import Speeds
from core.data.corpus import Corpus, Progress, prepare, read_split, save_split
from core.data.loader import SequentialLoader
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.self_check import check_all_kernels
from core.model import GPT
from core.model_state import ModelState
from core.runs import CheckpointInfo, Run, fixed_differences, fixed_message
from core.system.hardware import describe
from core.training.averaged_weights import AveragedWeights
from core.training.compilation import compiled, compiles
from core.training.learning_progress import LearningProgress
from core.training.make_step import make_step
from core.training.optimizer import AdamW, make_optimizer
from core.training.ranks import ALONE, Ranks
from core.training.resume_check import (
    check_optimizer,
    check_resumable,
    fingerprint,
    randomness,
    restore_randomness,
)
from core.training.schedule import Schedule
from core.training.step import TrainingStep
from core.training.teacher import Teacher, build_teacher, read_teacher

WIDE = 768
"""If the narrowest layer has at least this many channels, products are large enough for an H100 as they
are."""
NOT_COMPILED = (
    "compile is true, but on this device compiling takes longer than it saves, so nothing is compiled"
)


@dataclass
class Parts:
    """What a trainer works with. Everything in it that changes during training goes into a checkpoint."""

    config: RunConfig
    device: torch.device
    device_name: str
    corpus: Corpus
    tokenizer: Tokenizer
    model: GPT
    optimizer: AdamW
    loader: SequentialLoader
    training_step: TrainingStep
    tokens_per_step: int
    compiled: bool
    planned: Plan
    speeds: Speeds
    ranks: Ranks = ALONE
    teacher: Teacher | None = None
    averaged: AveragedWeights | None = None
    progress: LearningProgress = field(default_factory=LearningProgress)
    resumed_from: CheckpointInfo | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """The time that the whole run has taken so far, without pauses."""
    bad_in_a_row: int = 0
    losses: dict[str, float | None] = field(default_factory=dict)
    changes: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def judged_model(self) -> GPT:
        """The model that is evaluated and generates samples: the averaged one if there is one."""
        return self.model if self.averaged is None else self.averaged.model

    def snapshot(self) -> Payload:
        """The positions of loader and random generators, to return to if a first step fails."""
        return {"loader": self.loader.state_dict(), "rng": randomness(self.device)}

    def without_compile(self, before: Payload) -> None:
        """Continue with the plain model from a `snapshot`, after torch.compile has failed."""
        self.compiled = False
        self.loader.load_state_dict(before["loader"])
        restore_randomness(before["rng"], self.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.training_step.forward = self.training_step.plain


def build_parts(
    run: Run,
    config: RunConfig,
    resumed_from: CheckpointInfo | None,
    progress: Callable[[str, float | None], None],
    ranks: Ranks = ALONE,
) -> Parts:
    """Prepare everything for training. `progress` is told what is being done; if it raises, the work ends.

    Raises UserError if text, device, checkpoint or configuration don't allow training.
    """
    device = open_device(config, ranks)
    torch.manual_seed(config.training.seed)
    payload, changes = None, {}
    if resumed_from is not None:
        progress(f"reading {resumed_from.path.name}", None)
        payload = load(resumed_from.path)
        check_keys(payload, RESUMABLE, resumed_from.path)
        changes = _check_changes(run, config, payload, resumed_from)
    with ranks.first_alone():
        lessons = read_teacher(run, config)
        corpus = read_text(run, config, payload or lessons, progress)
    tokenizer = corpus.tokenizer
    speeds = Speeds.here(config)
    planned = ranks.from_first(lambda: plan_run(config, corpus, speeds))
    config = planned.config
    progress("building the model", None)
    if payload is not None and resumed_from is not None:
        check_fits(config.model, tokenizer.vocab_size, payload, resumed_from.path)
    left_out = check_all_kernels(device, config.model.attention_type)  # before anything is captured
    model = GPT(config.model, tokenizer.vocab_size)
    model.activation_checkpointing = config.hardware.activation_checkpointing
    if payload is not None and resumed_from is not None:
        load_weights(model, payload, resumed_from.path)
    model.to(device).train()
    training = config.training
    optimizer = make_optimizer(model, training, ranks)
    loader = SequentialLoader(
        corpus.train,
        tokenizer.eot,
        training.batch_size,
        config.model.block_size,
        config.data.carry_chunks,
        training.seed,
        config.data.document_order,
        ranks.share(training.batch_size),
    )
    rows = ranks.rows(config)
    teacher = None if lessons is None else build_teacher(lessons, rows, config, device)
    compiling = compiles(config, device)
    forward = compiled(model) if compiling else model
    parts = Parts(
        config=config,
        device=device,
        device_name=_device_name(device, ranks),
        corpus=corpus,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        loader=loader,
        training_step=make_step(model, forward, optimizer, loader, config, device, ranks, teacher),
        tokens_per_step=training.batch_size * config.model.block_size * training.gradient_accumulation_steps,
        compiled=compiling,
        ranks=ranks,
        teacher=teacher,
        planned=planned,
        speeds=speeds,
        averaged=AveragedWeights(model, training.average_decay) if training.average_decay else None,
        resumed_from=resumed_from,
        changes=changes,
        notices=[*corpus.notices, *left_out],
    )
    if config.hardware.compile == "true" and not compiling:
        parts.notices.append(NOT_COMPILED)
    if payload is not None and resumed_from is not None:
        restore(parts, payload, resumed_from)
    ranks.reseed(training.seed, parts.step)
    return parts


def _device_name(device: torch.device, ranks: Ranks) -> str:
    name = "cpu" if device.type == "cpu" else f"{device} ({describe(str(device)).description})"
    if not ranks.several:
        return name
    return f"{ranks.size} ranks, the first on {name}"


def plan_run(config: RunConfig, corpus: Corpus, speeds: Speeds) -> Plan:
    """The values that are decided after reading the text."""
    sides = (len(corpus.train), len(corpus.validation))
    size = corpus.tokenizer.vocab_size
    text = TextSize(corpus.train.text_bytes, sides[0])
    return plan(
        config,
        text,
        cuda=speeds.kind == "cuda",
        vocab_size=size,
        seconds=seconds_by(speeds, size, sides),
    )


def open_device(config: RunConfig, ranks: Ranks = ALONE) -> torch.device:
    """The device to train on, with threads and determinism set as configured. Raises UserError."""
    hardware = config.hardware
    name = ranks.device_name(config)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f'device is "{hardware.device}", but this torch ({torch.__version__}) cannot use a CUDA device; '
            "accepted here: cpu"
        )
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    elif name.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        prefer_static_products(config.model)
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # our own kernels are launched there
    return torch.device(name)


def prefer_static_products(model: ModelConfig) -> None:
    """Give cuBLAS no workspace if products are large. Must be called before the first product on CUDA.

    With a workspace, the programs of a product request their tiles, for which every product first clears a
    counter, and sums are split unnecessarily: about 1 % of a step of 12 layers x 768. Products of narrow
    layers need a workspace. A choice of the user's is left alone.
    """
    if min(model.n_embd) >= WIDE:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":0:0")


def read_text(
    run: Run, config: RunConfig, payload: Payload | None, progress: Callable[[str, float | None], None]
) -> Corpus:
    """The corpus with the run's own tokenizer and split, which the run keeps from the start."""
    tokenizer = None
    if payload is not None:
        tokenizer = Tokenizer.from_dict(payload["tokenizer"], "the checkpoint's tokenizer")
    elif run.tokenizer_path.exists():
        tokenizer = Tokenizer.load(run.tokenizer_path, follow_links=False)

    def report(state: Progress) -> None:
        progress(state.text, state.fraction if state.total else None)

    split = read_split(run.split_path)
    corpus = prepare(config.data, config.training.seed, tokenizer=tokenizer, split=split, progress=report)
    if split is None and run.split_path.exists():
        corpus.notices.append(
            f"{run.split_path} was damaged, so the split comes from the record beside the text"
        )
    if not run.tokenizer_path.exists():
        corpus.tokenizer.save(run.tokenizer_path)
    if corpus.split != split:
        save_split(run.split_path, corpus.split)
    return corpus


def _check_changes(
    run: Run, config: RunConfig, payload: Payload, info: CheckpointInfo
) -> dict[str, tuple[Value, Value]]:
    """What has changed since the checkpoint. Raises UserError if the checkpoint no longer fits."""
    before = config_of(payload, info.path)
    refused = fixed_differences(before, config)
    if refused:
        raise UserError(fixed_message(run.name, refused))
    return differences(before, config)


def restore(parts: Parts, payload: Payload, info: CheckpointInfo) -> None:
    """Restore everything except the weights to its state after the checkpoint's step.

    Raises UserError, in one sentence, if something in the checkpoint isn't what training writes.
    """
    try:
        check_resumable(payload, parts.optimizer, parts.training_step.state, parts.device)
        parts.loader.load_state_dict(payload["loader"])  # the first change, and it checks for itself
    except ValueError as error:
        raise UserError(
            f"{info.path} cannot be resumed from: {error}; use another checkpoint of the run"
        ) from None
    config, step = parts.config, payload["step"]
    parts.optimizer.load_state_dict(payload["optimizer"])
    text = fingerprint(parts.corpus)
    same_text = payload["data"] == text
    if not same_text:
        parts.notices.append(
            "the text has changed since the checkpoint; training continues with the current text"
        )
    if parts.averaged is not None:
        load_weights(parts.averaged.model, payload, info.path, judged_weights(payload))
    schedule = parts.training_step.schedule
    schedule.load_state_dict(payload["progress"].get("schedule", {}))
    if parts.changes.keys() & {"max_iters", "schedule", "cooldown_iters"}:
        before = Schedule(config_of(payload, info.path).training)
        before.load_state_dict(payload["progress"].get("schedule", {}))
        if sentence := schedule.go_on(step, before.rate(step)):
            parts.notices.append(sentence)
    if "best" in payload["progress"]:
        parts.progress.load_state_dict(payload["progress"]["best"])
    state = ModelState.from_tensors(payload["model_state"])
    if state.position.shape[0] == config.training.batch_size and same_text:
        mine = parts.ranks.share(config.training.batch_size)
        parts.training_step.load_state(state.map(lambda tensor: tensor[mine]))
        if parts.teacher is not None and isinstance(payload.get("teacher_state"), dict):
            known = ModelState.from_tensors(payload["teacher_state"])
            parts.teacher.load_state(known.map(lambda tensor: tensor[mine]))
    restore_randomness(payload["rng"], parts.device)
    parts.step = step
    parts.tokens = payload["progress"]["tokens"]
    parts.bad_in_a_row = payload["progress"]["bad_in_a_row"]
    parts.seconds = float(payload["progress"].get("seconds", 0.0))
    parts.losses = dict(payload["losses"])


def return_to(parts: Parts, info: CheckpointInfo) -> None:
    """Restore the weights and the optimizer's averages from a checkpoint of this run, and nothing else.

    Raises UserError if the checkpoint can't be used.
    """
    payload = load(info.path)
    check_keys(payload, RESUMABLE, info.path)
    try:
        check_optimizer(parts.optimizer, payload["optimizer"])
    except ValueError as error:
        raise UserError(f"{info.path} cannot be resumed from: {error}") from None
    load_weights(parts.model, payload, info.path)
    parts.optimizer.load_state_dict(payload["optimizer"])
    if parts.averaged is not None:
        load_weights(parts.averaged.model, payload, info.path, judged_weights(payload))
    parts.training_step.weights_changed()


def payload_of(
    parts: Parts,
    config: RunConfig,
    step: int,
    losses: dict[str, float | None],
    tokens: int,
    bad_in_a_row: int,
) -> Payload:
    """Everything that determines later steps, and what the model needs to generate.

    Shares memory with training. Every rank must call this; only rank 0's result is complete.
    """
    optimizer, state = parts.optimizer.state_dict(), parts.ranks.gathered(parts.training_step.state)
    payload: Payload = {
        "format": FORMAT,
        "step": step,
        "config": {
            key: list(value) if isinstance(value, tuple) else value for key, value in flat(config).items()
        },
        "vocab_size": parts.tokenizer.vocab_size,
        "tokenizer": parts.tokenizer.to_dict(),
        "model": dict(parts.model.state_dict()),
        "optimizer": optimizer,
        "loader": parts.loader.state_dict(),
        "model_state": state.tensors(),
        "rng": randomness(parts.device),
        "losses": dict(losses),
        "data": fingerprint(parts.corpus),
        "progress": {
            "tokens": tokens,
            "seconds": parts.seconds,
            "bad_in_a_row": bad_in_a_row,
            "schedule": parts.training_step.schedule.state_dict(),
            "best": parts.progress.state_dict(),
        },
    }
    if parts.averaged is not None:
        payload["averaged"] = parts.averaged.state_dict()
    if parts.teacher is not None:
        payload["teacher_state"] = parts.ranks.gathered(parts.teacher.state).tensors()
    return payload
