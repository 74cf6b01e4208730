"""The event file: what the writer promises, and that no reader is ever put off."""

from __future__ import annotations

import itertools
import json
import math
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.runs import (
    EventReader,
    EventWriter,
    Follower,
    LatestEvents,
    RunHistory,
    StepMeter,
    event_docs,
    preview,
    read_tail,
)
from core.runs.event_fields import LONGEST_TEXT
from core.runs.event_file import LARGEST_BACKLOG, parse
from core.runs.events import (
    KINDS,
    CheckpointEvent,
    CommandEvent,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    FilesEvent,
    LayersEvent,
    PlanEvent,
    ReadingEvent,
    SampleEvent,
    ScheduleEvent,
    UnknownEvent,
    WarningEvent,
    encode,
    fields_of,
)
from tests.run_tools import run_event, starts, step_event, step_fields, write_steps


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def read_all(path):
    return EventReader(path).poll()


def test_numbers_that_are_not_finite_survive(path):
    writer = EventWriter(path)
    writer.write(step_event(1, math.nan, loss_max=math.inf, loss_min=-math.inf, gradient_norm=math.nan))
    writer.write(SampleEvent(step=1, prompt="NaN", text="Infinity"))
    writer.close()
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    step, sample = read_all(path)
    assert math.isnan(step.loss)
    assert (step.loss_max, step.loss_min) == (math.inf, -math.inf)
    assert (sample.prompt, sample.text) == ("NaN", "Infinity")


def test_every_kind_that_the_writer_writes_is_in_the_schema_and_valid(path):
    writer = EventWriter(path)
    writer.write(run_event(resumed_from=3, config={"n_embd": (1, 2)}, changes={"seed": (1, 2)}))
    writer.state("training", 1, "detail", 0.5)
    writer.write(ScheduleEvent(step=1, phase="cool-down", last_step=9))
    writer.write(
        PlanEvent(
            step=0,
            tokens=9,
            parameters=9,
            steps=9,
            passes=1.5,
            seconds=2.0,
            seconds_low=1.0,
            seconds_high=3.0,
        )
    )
    writer.write(ReadingEvent(step=0, rows=(("a.txt", 0.5),)))
    writer.write(step_event(1))
    writer.write(
        EvaluationEvent(
            step=1,
            train_loss=1.0,
            validation_loss=2.0,
            bits_per_byte=3.0,
            train_bits_per_byte=1.0,
            seconds=0.1,
        )
    )
    writer.write(LayersEvent(step=1, gradient_norm=[1.0, math.nan], update_ratio=[], activation=[math.inf]))
    writer.write(FilesEvent(step=1, files=(("a.txt", 9, 1.0, math.nan),)))
    writer.write(SampleEvent(step=1, prompt="", text="\ud800 \x1b[2J"))
    writer.write(CheckpointEvent(step=1, file="a", bytes=3, best=False, seconds=0.1))
    writer.write(CommandEvent(id="1", command="pause", accepted=True, message=""))
    writer.warning("w")
    writer.write(ErrorEvent(message="e", advice="a"))
    writer.write(EndEvent(reason="finished", step=1, message=""))
    writer.close()
    reader = EventReader(path)
    events = reader.poll()
    assert reader.skipped == 0
    assert [event.kind for event in events] == list(KINDS)
    for event, line in zip(events, path.read_text().splitlines()):
        assert type(event) is KINDS[event.kind]
        assert json.loads(line).keys() - {"kind"} == {field.name for field in fields_of(type(event))}


def test_a_torn_tail_is_cut_before_the_next_event(path):
    writer = EventWriter(path)
    write_steps(writer, 1, 3)
    writer.close()
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        writer = EventWriter(path)
        write_steps(writer, 7, 7)
        writer.close()
        reader = EventReader(path)
        assert [event.step for event in reader.poll()] == [1, 2, 7]
        assert reader.skipped == 0


def test_a_tail_longer_than_a_block_is_cut_too(path):
    path.write_bytes(b'{"kind":"warning","time":1,"message":"a"}\n' + b"x" * 200_000)
    EventWriter(path).close()
    assert path.stat().st_size == len('{"kind":"warning","time":1,"message":"a"}\n')


def test_a_reader_waits_for_the_end_of_a_line(path):
    reader = EventReader(path)
    assert reader.poll() == []
    line = b'{"kind":"warning","time":1,"message":"a"}\n'
    path.write_bytes(line + line[:10])
    assert len(reader.poll()) == 1
    assert reader.poll() == []
    with open(path, "ab") as file:
        file.write(line[10:])
    assert len(reader.poll()) == 1


def test_an_invalid_complete_line_is_counted_and_passed(path):
    good = b'{"kind":"warning","time":1,"message":"a"}\n'
    bad = [b"\n", b"{\n", b"[]\n", b"null\n", b"\xff\xfe\n", b'{"kind":1,"time":1}\n', b"[" * 5000 + b"\n"]
    bad.append(b'{"kind":"step","time":1,"step":"x"}\n')
    bad.append(b'{"a":1\n"b":2}\n')
    path.write_bytes(b"".join(good + line for line in bad))
    reader = EventReader(path)
    assert len(reader.poll()) == len(bad)
    assert reader.skipped == len(bad) + 1


def test_an_unknown_kind_of_a_later_version_passes(path):
    path.write_bytes(b'{"kind":"gradient","time":1,"anything":[1]}\n')
    follower = Follower(path)
    event = follower.poll()[0]
    assert isinstance(event, UnknownEvent)
    assert event.name == "gradient"


@pytest.mark.parametrize("how", ["replace", "truncate", "rewrite"])
def test_a_file_that_is_replaced_is_read_anew(path, how):
    writer = EventWriter(path)
    write_steps(writer, 1, 5)
    follower = Follower(path)
    assert len(follower.poll()) == 5
    writer.close()
    other = path.with_name("other")
    writer = EventWriter(other)
    write_steps(writer, 1, 2 if how == "truncate" else 9, loss=5.0)
    writer.close()
    if how == "replace":
        os.replace(other, path)
    else:
        path.write_bytes(other.read_bytes())
    follower.poll()
    assert follower.reader.generation == 1
    assert set(follower.history.steps.column("loss")) == {5.0}


def test_pieces_of_a_long_history_add_up(path):
    writer = EventWriter(path)
    write_steps(writer, 1, 3000)
    reader = EventReader(path)
    steps = []
    while events := reader.poll(limit=64):
        assert len(events) <= 64
        steps += [event.step for event in events]
    assert steps == list(range(1, 3001))
    assert reader.behind == 0


def test_the_tail_and_a_sample_agree_with_the_whole(path):
    writer = EventWriter(path)
    write_steps(writer, 1, 20000)
    tail = read_tail(path)
    assert [event.step for event in tail] == list(range(20001 - len(tail), 20001))
    assert path.stat().st_size > 3_276_800
    steps = preview(path).steps.column("step")
    assert steps[0] == 1
    assert steps[-1] == 20000
    assert list(steps) == sorted(steps)
    assert max(late - early for early, late in itertools.pairwise(steps)) < 20000 / 100


def test_a_resumed_trainer_takes_back_what_was_not_saved(path):
    writer = EventWriter(path)
    writer.write(run_event())
    write_steps(writer, 1, 10, loss=1.0)
    writer.write(SampleEvent(step=9, prompt="", text="lost"))
    writer.write(run_event(started=2.0, resumed_from=6))
    assert RunHistory().step == 0
    follower = Follower(path)
    follower.poll()
    assert follower.history.step == 6
    assert not follower.history.samples
    write_steps(writer, 7, 8, loss=2.0)
    follower.poll()
    assert list(follower.history.steps.column("step")) == list(range(1, 9))
    assert list(follower.history.steps.column("loss")) == [1.0] * 6 + [2.0] * 2
    writer.write(run_event(started=3.0, resumed_from=None))
    follower.poll()
    assert follower.history.step == 0


def test_one_trainer_may_say_twice_who_it_is(path):
    writer = EventWriter(path)
    writer.write(run_event(started=1.0, parameters=0))
    writer.write(run_event(started=1.0))
    writer.write(run_event(started=9.0))
    follower = Follower(path)
    follower.poll()
    assert [start.parameters for start in starts(follower.history)] == [10, 10]


def test_a_full_disk_delays_events_and_breaks_none(path, monkeypatch):
    writer = EventWriter(path)
    real, room = os.write, [100]

    def short(descriptor, data):
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        count = min(room[0], len(data))
        room[0] -= count
        return real(descriptor, bytes(data[:count]))

    monkeypatch.setattr(os, "write", short)
    write_steps(writer, 1, 5)
    assert path.stat().st_size == 100
    room[0] = 1 << 30
    write_steps(writer, 6, 6)
    reader = EventReader(path)
    assert [event.step for event in reader.poll()] == [1, 2, 3, 4, 5, 6]
    assert reader.skipped == 0


def test_a_disk_that_stays_full_costs_a_bounded_memory_and_is_owned_up_to(path, monkeypatch):
    writer = EventWriter(path)

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    write_steps(writer, 1, 2 * LARGEST_BACKLOG // 200)
    lost = writer.lost
    assert lost > 100
    monkeypatch.undo()
    writer.sync()
    reader = EventReader(path)
    events = reader.poll()
    assert reader.skipped == 0
    assert str(lost) in events[-1].message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {"kind": st.sampled_from([*KINDS, "other"]) | JSON, "time": JSON | st.floats(0, 1e9)},
    optional={one.name: JSON | st.integers() for kind in KINDS.values() for one in fields_of(kind)[1:]},
)
LINES = st.one_of(
    st.binary(max_size=60).filter(lambda line: b"\n" not in line),
    (JSON | NEARLY).map(lambda value: json.dumps(value).encode()),
    st.integers(0, 1000).map(
        lambda step: json.dumps({"kind": "step", "time": 1.0, **step_fields(step)}).encode()
    ),
)


@settings(deadline=None, max_examples=200)
@given(lines=st.lists(LINES, max_size=12))
def test_no_line_upsets_a_reader(lines):
    events, bad = parse(lines)
    assert len(events) + bad == len(lines)
    RunHistory().feed(events)


@settings(deadline=None, max_examples=60)
@given(lines=st.lists(LINES, max_size=12), cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_a_file_that_grows_in_any_pieces_reads_like_the_whole(tmp_path_factory, lines, cuts):
    data = b"".join(line + b"\n" for line in lines)
    path = tmp_path_factory.mktemp("grow") / "events.jsonl"
    reader, seen = EventReader(path), []
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    with open(path, "wb", buffering=0) as file:
        for low, high in itertools.pairwise(edges):
            file.write(data[low:high])
            seen += reader.poll()
    whole = EventReader(path)
    assert repr(seen) == repr(whole.poll())
    assert reader.skipped == whole.skipped
    assert reader.generation == 0


def test_a_thousand_steps_a_second_are_ten_events(path):
    now = [0.0]
    writer = EventWriter(path)
    meter = StepMeter(writer, 48, clock=lambda: now[0])
    for step in range(1, 2001):
        now[0] += 0.001
        meter.add(
            step=step,
            loss=float(step),
            gradient_norm=2.0 if step == 1500 else 1.0,
            learning_rate=0.1,
            waited=0.0001,
            epoch=0.0,
        )
        meter.flush_if_due()
    meter.flush()
    events = read_all(path)
    assert events[0].step == events[0].steps == 1
    assert 20 <= len(events) <= 23
    assert sum(event.steps for event in events) == 2000
    assert events[-1].tokens == 2000 * 48
    for event in events:
        low, high = event.step - event.steps + 1, event.step
        assert (event.loss_min, event.loss_max) == (low, high)
        assert event.loss == pytest.approx((low + high) / 2)
        assert event.tokens_per_second == pytest.approx(48000, rel=0.01)
        assert event.data_wait == pytest.approx(0.1, rel=0.01)
        assert event.gradient_norm == (2.0 if low <= 1500 <= high else 1.0)


def test_a_spike_or_a_nan_among_gathered_steps_is_not_hidden(path):
    writer = EventWriter(path)
    meter = StepMeter(writer, 1, interval=1e9)
    for step, loss in enumerate([1.0, 1.0, math.nan, 1.0], 1):
        meter.add(step=step, loss=loss, gradient_norm=loss, learning_rate=0.1, waited=0.0, epoch=0.0)
        meter.flush_if_due()
    meter.flush()
    first, rest = read_all(path)
    assert first.loss == 1.0
    assert math.isnan(rest.loss)
    assert math.isnan(rest.gradient_norm)


def test_an_interval_of_zero_writes_every_step(path):
    meter = StepMeter(EventWriter(path), 48, interval=0.0)
    for step in range(1, 8):
        meter.add(step=step, loss=1.0, gradient_norm=1.0, learning_rate=0.1, waited=0.0, epoch=0.0)
    assert [(event.step, event.steps) for event in read_all(path)] == [(n, 1) for n in range(1, 8)]


def test_how_busy_the_device_was_is_of_the_steps_of_the_event_only(path):
    busy = {"since": 0.0, "now": 0.0, "used": 0.0}

    def usage():
        share = busy["used"] / ((busy["now"] - busy["since"]) or 1.0)
        busy.update(since=busy["now"], used=0.0)
        return share

    meter = StepMeter(EventWriter(path), 1, clock=lambda: busy["now"], device_utilization=usage)
    for step, (idle, seconds) in enumerate([(0.0, 1.0), (9.0, 2.0)], 1):
        busy["now"] += idle
        meter.restart()
        busy["now"] += seconds
        busy["used"] += 0.5 * seconds
        meter.add(step=step, loss=1.0, gradient_norm=1.0, learning_rate=0.1, waited=0.0, epoch=0.0)
        meter.flush()
    assert [event.device_utilization for event in read_all(path)] == [0.5, 0.5]


def test_a_history_without_a_later_field_is_read(path):
    writer = EventWriter(path)
    write_steps(writer, 1, 1)
    writer.close()
    event = json.loads(path.read_text())
    for value in ("nothing", None, 0.5, 1, "NaN", "much"):
        event.pop("device_utilization", None)
        if value != "nothing":
            event["device_utilization"] = value
        path.write_text(json.dumps(event) + "\n")
        assert len(read_all(path)) == (value != "much")


def test_the_table_in_the_documentation_is_the_classes(capsys):
    page = event_docs.PAGE.read_text()
    assert event_docs.with_table(page) == page, "run `python -m core.runs.event_docs`"


def line_of(event, **changes):
    values = json.loads(encode(event, 1000.0)) | changes
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "line",
    [
        line_of(step_event(1), step=int("9" * 401)),
        line_of(step_event(1), step=-1),
        line_of(step_event(1), step=1.5),
        line_of(step_event(1), step=True),
        line_of(step_event(1), tokens=2**53 + 1),
        line_of(step_event(1), loss=int("9" * 401)),
        line_of(step_event(1), loss=None),
        line_of(step_event(1), data_wait=1.5),
        line_of(step_event(1), device_memory=-1),
        line_of(step_event(1), epoch=-0.5),
        line_of(step_event(1), time=1e300),
        line_of(step_event(1), time="NaN"),
        line_of(step_event(1), time=-1),
        line_of(step_event(1), time=int("9" * 401)),
        line_of(step_event(1)).replace(b'"step": 1,', b'"step": ' + b"9" * 5000 + b","),
        line_of(run_event(), pid=-1),
        line_of(run_event(), resumed_from=-1),
        line_of(run_event(), started=1e300),
        line_of(run_event(), max_iters=10**30),
        line_of(run_event(), changes={"seed": 3}),
        line_of(run_event(), changes={"seed": [1, 2, 3]}),
        line_of(run_event(), config={"n_embd": int("9" * 401)}),
        line_of(run_event(), config={"n_embd": [[[[[[1]]]]]]}),
        line_of(EndEvent(reason="failed", step=1, message="x"), message="x" * (LONGEST_TEXT + 1)),
        b'{"kind":"other","time":1e300}',
        b'{"kind":"other"}',
    ],
)
def test_a_value_out_of_range_makes_its_line_invalid_and_nothing_else(path, line):
    good = line_of(step_event(1))
    path.write_bytes(good + b"\n" + line + b"\n" + good.replace(b'"step": 1', b'"step": 2') + b"\n")
    follower = Follower(path)
    assert [event.step for event in follower.poll()] == [1, 2]
    assert follower.reader.skipped == 1


def test_fields_that_a_later_version_added_pass_and_change_nothing(path):
    path.write_bytes(line_of(step_event(1), phase="warm-up", feed=[1], __class__="x", kind="step") + b"\n")
    (event,) = read_all(path)
    assert event == step_event(1, time=1000.0)


def test_a_whole_number_where_a_number_is_expected_is_one(path):
    path.write_bytes(line_of(step_event(1), loss=3, time=7) + b"\n")
    (event,) = read_all(path)
    assert (type(event.loss), event.loss, type(event.time)) == (float, 3.0, float)


def test_a_text_that_is_too_long_is_cut_by_the_writer_so_that_it_can_be_read(path):
    writer = EventWriter(path)
    writer.write(SampleEvent(step=1, prompt="", text="x" * (LONGEST_TEXT + 1)))
    writer.close()
    (event,) = read_all(path)
    assert len(event.text) == LONGEST_TEXT


def test_a_million_events_are_folded_in_bounded_memory():
    history = RunHistory(rows=1024)
    for start in range(0, 100_000, 1000):
        history.feed(
            step_event(step, 500.0 if step == 77_777 else 2.0) for step in range(start, start + 1000)
        )
        history.feed([SampleEvent(step=start, prompt="", text="x"), WarningEvent(message="w")])
        history.feed([CommandEvent(id=str(start), command="save", accepted=True, message="")])
        history.feed([CheckpointEvent(step=start, file="f", bytes=1, best=False, seconds=0.0)] * 30)
    assert history.steps.count <= 1024
    assert history.steps.column("loss_max").max() == 500.0
    assert len(history.samples) <= 200
    assert len(history.notes) <= 500
    assert len(history.answers) <= 100
    assert len(history.marks) <= 2000
    assert len(history.index.offsets) <= 4096


def test_only_what_still_counts_is_the_latest():
    latest = LatestEvents()
    latest.feed([run_event(), step_event(5), step_event(10), EndEvent(reason="failed", step=10, message="")])
    assert (latest.step, latest.end.reason) == (10, "failed")
    latest.feed([run_event(started=2.0, resumed_from=5)])
    assert (latest.step, latest.last_step, latest.end) == (5, None, None)
    latest.feed([step_event(6)])
    assert latest.step == 6
