"""Going on from a checkpoint: all but the weights is looked through, then put where it belongs.

A checkpoint may come from anybody, and its manifest with it. Types, shapes and ranges of the optimizer's
averages, of the loader's position, of the random generators and of the model's memory are checked before
anything of the run is changed, so that a crafted one is a sentence and not a crash at some later step.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from core.checkpoint import Payload, config_of, judged_weights, load_weights
from core.checkpoint_file import kind_of_tensor
from core.data.corpus import Corpus, TokenStream
from core.errors import UserError
from core.model_state import ModelState
from core.runs import CheckpointInfo
from core.training.optimizer import AdamW
from core.training.schedule import Schedule

if TYPE_CHECKING:
    from core.training.build import Parts

LARGEST_COUNT = 1 << 53
"""Of steps and tokens: whole numbers up to here are exact as floats too."""
MOST_STEPS = 1_000_000_000
"""What max_iters may be at most."""
FINGERPRINT = ("train_tokens", "validation_tokens", "train_check", "validation_check")


def restore(parts: Parts, payload: Payload, info: CheckpointInfo) -> None:
    """Everything but the weights, as it was after the checkpoint's step.

    Raises UserError, in one sentence, where something in it is not what training writes.
    """
    try:
        _check(parts, payload)
        parts.loader.load_state_dict(payload["loader"])  # the first change, and it checks by itself
    except ValueError as error:
        raise UserError(
            f"{info.path} cannot be gone on from: {error}; use another checkpoint of the run"
        ) from None
    config, step = parts.config, payload["step"]
    parts.optimizer.load_state_dict(payload["optimizer"])
    text = fingerprint(parts.corpus)
    same_text = payload["data"] == text
    if not same_text:
        parts.notices.append(
            "the text has changed since the checkpoint: training goes on with the text as it is now"
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
    restore_randomness(payload["rng"], parts.device)
    parts.step = step
    parts.tokens = payload["progress"]["tokens"]
    parts.bad_in_a_row = payload["progress"]["bad_in_a_row"]
    parts.losses = dict(payload["losses"])


def _check(parts: Parts, payload: Payload) -> None:
    """Raise ValueError unless everything `restore` uses is as `payload_of` writes it."""
    _count(payload, "step", "its", MOST_STEPS)
    check_optimizer(parts.optimizer, payload["optimizer"])
    _check_memory(parts.training_step.state.tensors(), payload["model_state"])
    _check_randomness(payload["rng"], parts.device)
    progress = payload["progress"]
    _count(progress, "tokens", "its")
    _count(progress, "bad_in_a_row", "its")
    _check_schedule(progress.get("schedule", {}))
    if "best" in progress:
        best = _mapping(progress["best"], "best evaluation")
        _count(best, "step", "its best evaluation's")
        _count(best, "since", "its best evaluation's")
        if not isinstance(best.get("loss"), float):
            raise ValueError("its best evaluation's loss is not a number")
    for name, loss in payload["losses"].items():
        if not isinstance(name, str) or not (loss is None or type(loss) in (int, float)):
            raise ValueError("its losses are not numbers")
    text = _mapping(payload.get("data"), "record of the text")
    if any(type(text.get(key)) is not int for key in FINGERPRINT):
        raise ValueError("its record of the text is not whole")


def check_optimizer(optimizer: AdamW, state: Mapping[str, Any]) -> None:
    """Raise ValueError unless a state fits the optimizer: an average, a square and a step for every weight."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            entry = _mapping(state.get(name), f"optimizer state of {name}")
            for part in ("average", "square"):
                _fits(entry.get(part), parameter, f"optimizer {part} of {name}", first_dimension=True)
            if (entry["square"] < 0).any():
                raise ValueError(f"its optimizer square of {name} is below zero")
            step = entry.get("step")
            if not isinstance(step, Tensor) or kind_of_tensor(step) or step.numel() != 1:
                raise ValueError(f"its optimizer step of {name} is not a number")
            if not 0 <= float(step) <= MOST_STEPS:
                raise ValueError(
                    f"its optimizer step of {name} is {float(step):g}; accepted: 0 to {MOST_STEPS:,}"
                )


def _check_memory(own: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """What the model remembers of the text: the own tensors, for any one number of batch rows."""
    if found.keys() != own.keys():
        raise ValueError("its model state is that of another model")
    rows = set()
    for name, tensor in own.items():
        if name == "position":
            position = found[name]
            if not isinstance(position, Tensor) or position.layout is not torch.strided:
                raise ValueError("its model state has no positions")
            if position.dtype != torch.int64 or position.ndim != 1 or position.numel() > LARGEST_COUNT:
                raise ValueError("its model state's positions are not a row of whole numbers")
            if position.numel() and not 0 <= int(position.min()) <= int(position.max()) <= LARGEST_COUNT:
                raise ValueError("its model state's positions are out of range")
        else:
            _fits(found[name], tensor, f"model state {name}", first_dimension=False)
        rows.add(found[name].shape[0])
    if len(rows) != 1:
        raise ValueError("its model state has different numbers of batch rows")


def _fits(found: Any, own: Tensor, what: str, *, first_dimension: bool) -> None:
    """Raise ValueError unless `found` is a plain tensor of real numbers of `own`'s shape, all in memory."""
    wrong = kind_of_tensor(found)
    if wrong:
        raise ValueError(f"its {what} is {wrong}")
    start = 0 if first_dimension else 1
    if found.ndim != own.ndim or found.shape[start:] != own.shape[start:]:
        raise ValueError(f"its {what} is {_shape(found)} there and {_shape(own)} here")
    if found.untyped_storage().nbytes() < found.nbytes:
        raise ValueError(f"its {what} claims more numbers than it holds")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _check_randomness(states: Mapping[str, Any], device: torch.device) -> None:
    """The random generators' states: of the right type and length, and accepted by a generator."""
    for name, own in randomness(device).items():
        if name not in states and name != "cpu":
            continue  # saved on another device
        found = states.get(name)
        good = isinstance(found, Tensor) and found.layout is torch.strided and found.dtype == torch.uint8
        if not good or found.shape != own.shape:
            raise ValueError(f"its random state ({name}) is not {own.numel():,} bytes")
        try:
            torch.Generator(device if name != "cpu" else "cpu").set_state(found.cpu())
        except (RuntimeError, TypeError):
            raise ValueError(f"its random state ({name}) is not one of a generator") from None


def _check_schedule(state: Any) -> None:
    state = _mapping(state, "schedule")
    if "begin" in state:
        _count(state, "begin", "its schedule's", MOST_STEPS)
        _count(state, "steps", "its schedule's", MOST_STEPS, least=1)
    if "warm_up_again" in state:
        _count(state, "warm_up_again", "its schedule's", MOST_STEPS)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"its {what} is missing")
    return value


def _count(
    values: Mapping[str, Any], key: str, whose: str, most: int = LARGEST_COUNT, least: int = 0
) -> None:
    value = values.get(key)
    if type(value) is not int or not least <= value <= most:
        shown = f"{value:,}" if type(value) is int else "not a whole number"
        raise ValueError(f"{whose} {key} is {shown}; accepted: {least} to {most:,}")


def randomness(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of every random generator that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_randomness(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Draw on from `randomness`. A device that the checkpoint did not have keeps its own seed."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def fingerprint(corpus: Corpus) -> dict[str, int]:
    """Enough of the text to notice that it is another one, without reading all of it."""
    return {
        "train_tokens": len(corpus.train),
        "validation_tokens": len(corpus.validation),
        "train_check": _stream_check(corpus.train),
        "validation_check": _stream_check(corpus.validation),
    }


def _stream_check(stream: TokenStream, places: int = 64, count: int = 1024) -> int:
    value = 0
    for start in np.linspace(0, max(0, len(stream) - count), places).astype(np.int64):
        tokens = stream.read(int(start), min(count, len(stream) - int(start)))
        value = zlib.crc32(np.ascontiguousarray(tokens).tobytes(), value)
    return value
