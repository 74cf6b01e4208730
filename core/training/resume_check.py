"""Checks everything in a checkpoint besides the weights before training resumes from it.

A checkpoint may come from anybody, and so may its manifest. Types, shapes and ranges of the optimizer's
averages, the loader's position, the random generators and the model's state are checked before anything in
the run changes, so that a crafted checkpoint causes an error message and not a crash at some later step.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.checkpoint import Payload
from core.checkpoint_file import kind_of_tensor
from core.data.corpus import Corpus, TokenStream
from core.model_state import ModelState
from core.training.optimizer import AdamW

LARGEST_COUNT = 1 << 53
"""The most steps and tokens: whole numbers up to this are exact as floats too."""
MOST_STEPS = 1_000_000_000
"""The largest value of max_iters."""
FINGERPRINT = ("train_tokens", "validation_tokens", "train_check", "validation_check")


def check_resumable(payload: Payload, optimizer: AdamW, state: ModelState, device: torch.device) -> None:
    """Raise ValueError unless all but the loader's position is as training writes it and fits `parts`."""
    _count(payload, "step", "its", MOST_STEPS)
    check_optimizer(optimizer, payload["optimizer"])
    _check_memory(state.tensors(), payload["model_state"])
    _check_randomness(payload["rng"], device)
    progress = payload["progress"]
    _count(progress, "tokens", "its")
    _count(progress, "bad_in_a_row", "its")
    seconds = progress.get("seconds", 0.0)
    if type(seconds) is not float or not 0 <= seconds < 1e12:
        raise ValueError("its time is not a number of seconds")
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
    """Raise ValueError unless every weight has an average, a square and a step."""
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


def _check_memory(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Check the model's state: tensors like the model's own, with one common number of batch rows."""
    if given.keys() != own.keys():
        raise ValueError("its model state is that of another model")
    rows = set()
    for name, tensor in own.items():
        if name == "position":
            position = given[name]
            if not isinstance(position, Tensor) or position.layout is not torch.strided:
                raise ValueError("its model state has no positions")
            if (
                position.dtype != torch.int64
                or position.ndim != 1
                or position.untyped_storage().nbytes() < position.nbytes
            ):
                raise ValueError("its model state's positions are not a row of whole numbers")
            if position.numel() and not 0 <= int(position.min()) <= int(position.max()) <= LARGEST_COUNT:
                raise ValueError("its model state's positions are out of range")
        else:
            _fits(given[name], tensor, f"model state {name}", first_dimension=False)
        rows.add(given[name].shape[0])
    if len(rows) != 1:
        raise ValueError("its model state has different numbers of batch rows")


def _fits(given: Any, own: Tensor, what: str, *, first_dimension: bool) -> None:
    """Raise ValueError unless `given` is a plain tensor of real numbers of `own`'s shape, all in memory."""
    wrong = kind_of_tensor(given)
    if wrong:
        raise ValueError(f"its {what} is {wrong}")
    start = 0 if first_dimension else 1
    if given.ndim != own.ndim or given.shape[start:] != own.shape[start:]:
        raise ValueError(f"its {what} is {_shape(given)} there and {_shape(own)} here")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _check_randomness(states: Mapping[str, Any], device: torch.device) -> None:
    """Check the states of the random generators: the right type and length, and accepted by a generator."""
    for name, own in randomness(device).items():
        if name not in states and name != "cpu":
            continue  # saved on another device
        given = states.get(name)
        if (
            not isinstance(given, Tensor)
            or given.layout is not torch.strided
            or given.dtype != torch.uint8
            or given.shape != own.shape
        ):
            raise ValueError(f"its random state ({name}) is not {own.numel():,} bytes")
        try:
            torch.Generator(device if name != "cpu" else "cpu").set_state(given.cpu())
        except (RuntimeError, TypeError):
            raise ValueError(f"its random state ({name}) is not one of a generator") from None


def _check_schedule(state: Any) -> None:
    state = _mapping(state, "schedule")
    if "begin" in state:
        _count(state, "begin", "its schedule's", MOST_STEPS)
        _count(state, "steps", "its schedule's", MOST_STEPS, least=1)
        rate = state.get("rate", 0.0)
        if type(rate) is not float or not 0 <= rate <= 1:
            raise ValueError("its schedule's rate is not a learning rate")
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
    """Restore the generators from `randomness`.

    A device that the checkpoint didn't have keeps its own seed.
    """
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
