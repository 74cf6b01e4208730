"""What a trainer reports: one frozen dataclass for each kind of line in `events.jsonl`.

Schema, writer, the reader's checks and the table in docs/events.md all come from these classes.

To add a field, give it a type from `event_fields` and a default, so that older histories can still be read.
To add a kind, write a class below with `kind="..."`. Then run `python -m core.runs.event_docs`, which updates
the table. A trainer writes the event with `EventWriter.write(NewEvent(...))`; if a screen should keep it, add
a method `_take_<kind>` to `history.py` (or `latest.py`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from core.runs.event_fields import (
    MOMENT,
    Changes,
    Count,
    FieldType,
    FileFigures,
    Flag,
    Moment,
    Name,
    NotNegative,
    Number,
    Numbers,
    Readings,
    Real,
    Settings,
    Share,
    Text,
    Whole,
)

SCHEMA = 1
STATES = ("preparing", "compiling", "training", "paused", "evaluating", "sampling", "saving", "stopping")
REASONS = ("finished", "stopped", "failed", "interrupted")

KINDS: dict[str, type[Event]] = {}


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened at `time`, in Unix seconds of the trainer's clock; the writer fills it in."""

    kind: ClassVar[str] = ""

    time: Moment = 0.0

    def __init_subclass__(cls, kind: str = "") -> None:
        cls.kind = kind
        if kind:
            KINDS[kind] = cls


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event, kind="run"):
    """a trainer starts; written at once with `parameters` and `vocab_size` 0, which aren't known yet, and
    again when the model is built (same `pid` and `started`: the second replaces the first)
    """

    schema: Count = SCHEMA
    run: Name
    pid: Count
    boot_id: Name
    started: Moment
    device: Name
    parameters: Count
    vocab_size: Count
    tokens_per_step: Count
    max_iters: Count
    resumed_from: Count | None = None
    versions: Settings = field(default_factory=dict)
    config: Settings = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)

    @property
    def first_step(self) -> int:
        """The step from which this trainer resumed: everything recorded after it happens again."""
        return self.resumed_from or 0


@dataclass(frozen=True, kw_only=True)
class StateEvent(Event, kind="state"):
    """what the trainer does from now on: `preparing`, `compiling`, `training`, `paused`, `evaluating`,
    `sampling`, `saving`, `stopping`
    """

    state: Name
    detail: Text = ""
    step: Count
    progress: Share | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleEvent(Event, kind="schedule"):
    """after `step` the learning rate is in another `phase` (`warm-up`, `constant`, `cool-down`, `cosine`),
    and the run ends with `last_step`: before `max_iters` if it was finished early or no longer improved
    """

    step: Count
    phase: Name
    last_step: Count


@dataclass(frozen=True, kw_only=True)
class PlanEvent(Event, kind="plan"):
    """the plan: `steps` steps in total are `passes` passes over `tokens` tokens of text, and the run takes
    between `seconds_low` and `seconds_high`, about `seconds`, from its trainer's start to its end. Written
    before the first step, and again when its speed is `measured`. `expected_low` to `expected_high` nats per
    character are the expected validation loss, and `hint` says if the model is far from what suits the text
    """

    step: Count
    tokens: Count
    parameters: Count
    steps: Count
    passes: Number
    seconds: Number
    seconds_low: Number
    seconds_high: Number
    measured: Flag = False
    expected_low: Number | None = None
    expected_high: Number | None = None
    hint: Text = ""


@dataclass(frozen=True, kw_only=True)
class ReadingEvent(Event, kind="reading"):
    """where in which file the first `rows` of the batch read from `step` on, written before the first step
    and with every evaluation
    """

    step: Count
    rows: Readings


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event, kind="step"):
    """optimizer steps `step - steps + 1` to `step`, gathered into at most about ten events per second.

    `loss` is their mean in nats per token, NaN if one wasn't finite; `gradient_norm` their largest before
    clipping; `tokens` all tokens so far; `data_wait` the share of time spent waiting for data;
    `device_utilization` how busy the device was (CUDA: the share of the driver's last sample period with a
    kernel running; CPU: the trainer's processor time relative to the cores it may use), absent in histories
    of older trainers. The first step's event is written at once, and the steps so far before every `eval`,
    `checkpoint` and `end`
    """

    step: Count
    steps: Count
    loss: Number
    loss_min: Number
    loss_max: Number
    learning_rate: Number
    gradient_norm: Number
    tokens_per_second: Number
    tokens: Count
    data_wait: Share
    device_memory: Count | None = None
    device_utilization: NotNegative | None = None
    epoch: NotNegative


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(Event, kind="eval"):
    """both splits were evaluated; losses in nats per token, `bits_per_byte` of the validation text,
    `standard_error` of its loss, how many of its tokens were read and which share of all; the last three are
    absent in histories of older trainers
    """

    step: Count
    train_loss: Number
    validation_loss: Number
    bits_per_byte: Number
    train_bits_per_byte: Number
    standard_error: Number | None = None
    validation_tokens: Count | None = None
    validation_share: Share | None = None
    seconds: Number


@dataclass(frozen=True, kw_only=True)
class LayersEvent(Event, kind="layers"):
    """how each layer learns, one number a layer, written after each `eval`. `gradient_norm` is that of the
    layer's weights in one pass over the same text each time, at most four rows of `block_size` tokens of
    training text, from an empty state, without dropout and before clipping; `activation` the root mean square
    of the stream after the layer in that pass; `update_ratio` the norm of what the step before the evaluation
    added to the layer's weights over their norm, empty where nobody knew that it would be evaluated. All are
    of the weights that are trained, not of their average. Absent in histories of older trainers
    """

    step: Count
    gradient_norm: Numbers
    update_ratio: Numbers
    activation: Numbers


@dataclass(frozen=True, kw_only=True)
class FilesEvent(Event, kind="files"):
    """the validation loss of each file at this step, the best so far or the last: its name, how many of its
    tokens were read, and their mean loss in nats per token and in bits per byte. Of more than 200 files,
    those of which most was read
    """

    step: Count
    files: FileFigures


@dataclass(frozen=True, kw_only=True)
class SampleEvent(Event, kind="sample"):
    """text that the model generated at this step; it may be hostile, so never print it raw"""

    step: Count
    prompt: Text
    text: Text


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event, kind="checkpoint"):
    """the checkpoint **is** on disk, including its manifest. Losses are null if this step wasn't evaluated"""

    step: Count
    file: Name
    bytes: Count
    train_loss: Number | None = None
    validation_loss: Number | None = None
    bits_per_byte: Number | None = None
    best: Flag
    seconds: Number


@dataclass(frozen=True, kw_only=True)
class CommandEvent(Event, kind="command"):
    """the one answer to a command; `message` says why it was refused"""

    id: Name
    command: Name
    accepted: Flag
    message: Text


@dataclass(frozen=True, kw_only=True)
class WarningEvent(Event, kind="warning"):
    """something the user should know; training continues"""

    message: Text


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Event, kind="error"):
    """why the run is about to end"""

    message: Text
    advice: Text = ""
    traceback: Text | None = None


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event, kind="end"):
    """a trainer ends in an orderly way: `finished`, `stopped` (a command), `interrupted` (a signal),
    `failed`. Without an `end` and without a lock, it died
    """

    reason: Name
    step: Count
    message: Text
    checkpoint: Name | None = None


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A kind that a later version of the program added: readers skip it."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class EventField:
    """A field of an event: its type, and its value if it is absent."""

    name: str
    made_of: FieldType
    optional: bool
    default: Any
    # A number within these bounds and of exactly this Python type, as most are, needs no further check.
    usual: type | None
    low: Any
    high: Any


_MISSING = object()
_fields: dict[str, tuple[EventField, ...]] = {}


def fields_of(kind: type[Event]) -> tuple[EventField, ...]:
    """The fields of a class of events, `time` first."""
    known = _fields.get(kind.kind)
    if known is None:
        hints = typing.get_type_hints(kind, include_extras=True)
        known = tuple(_event_field(one, hints[one.name]) for one in dataclasses.fields(kind))
        _fields[kind.kind] = known
    return known


def _event_field(one: dataclasses.Field[Any], hint: Any) -> EventField:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    annotated = typing.get_args(hint)[0] if optional else hint
    made_of: FieldType = annotated.__metadata__[0]
    default = one.default
    if one.default_factory is not dataclasses.MISSING:
        default = one.default_factory()
    if default is dataclasses.MISSING or one.name == "time":
        default = _MISSING
    usual: type | None = None
    low, high = 0, 0
    if isinstance(made_of, Whole):
        usual, low, high = int, made_of.low, made_of.high
    elif isinstance(made_of, Real):
        usual, low, high = float, made_of.low, made_of.high  # type: ignore[assignment]
        if made_of.finite:
            low, high = max(low, -sys.float_info.max), min(high, sys.float_info.max)  # type: ignore[assignment]
    return EventField(one.name, made_of, optional, default, usual, low, high)


def decode(values: object) -> Event | None:
    """An event from a line's JSON; None if it is none, or a value is of the wrong type or out of range."""
    if type(values) is not dict:
        return None
    name = values.get("kind")
    if type(name) is not str:
        return None
    kind = KINDS.get(name)
    fields: dict[str, Any] = {}
    try:
        if kind is None:
            return UnknownEvent(time=MOMENT.read(values.get("time")), name=name[:4096], values=values)
        for one in fields_of(kind):
            value = values.get(one.name, one.default)
            if type(value) is one.usual and one.low <= value <= one.high:
                fields[one.name] = value
            elif value is None and one.optional:
                fields[one.name] = None
            else:
                fields[one.name] = one.made_of.read(value)
    except ValueError:
        return None
    event = object.__new__(kind)  # `__init__` of a frozen class takes five times as long
    vars(event).update(fields)
    return event


def encode(event: Event, moment: float) -> bytes:
    """The line of an event, written at `moment`. Text that is too long is cut."""
    values: dict[str, object] = {"kind": event.kind, "time": round(moment, 3)}
    for one in fields_of(type(event))[1:]:
        value = getattr(event, one.name)
        values[one.name] = None if value is None else one.made_of.write(value)
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode() + b"\n"
