"""JSON lines in, JSON lines out: processes that answer, are canceled, and end with whoever asks."""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time

import pytest

from core.errors import UserError
from core.system.json_lines import Request, Server
from core.system.json_lines_client import AsyncClient, BlockingClient
from core.system.processes import module_environment

PATIENCE = 120
SERVER = """
import sys, time
from core.system.json_lines import serve_standard_streams

def count(request):
    for value in range(request.value("to", int)):
        if request.canceled:
            return request.reply("done", reason="canceled")
        request.reply("number", value=value)
    request.reply("done", reason="counted")

def sleep(request):
    request.reply("asleep")
    time.sleep(3600)

def handlers():
    {body}
    fail, leave = lambda request: 1 / 0, lambda request: sys.exit(3)
    return {{"count": count, "sleep": sleep, "fail": fail, "exit": leave}}

sys.exit(serve_standard_streams(handlers))
"""


def command(body="pass"):
    return [sys.executable, "-P", "-c", SERVER.format(body=body)]


def test_requests_are_answered_in_order():
    with BlockingClient(command(), "the counter") as client:
        first, second = client.send("count", to=2), client.send("count", to=0)
        events = client.events(first)
        assert [next(events)["event"] for _ in range(3)] == ["number", "number", "done"]
        assert next(client.events(second))["reason"] == "counted"


def test_what_is_wrong_is_one_sentence_and_the_process_lives():
    with BlockingClient(command(), "the counter") as client:
        for operation, fields, words in [
            ("count", {"to": "ten"}, "to is 'ten'; accepted: a whole number"),
            ("dance", {}, "op is 'dance'; accepted: count, sleep"),
        ]:
            with pytest.raises(UserError, match=words):
                next(client.events(client.send(operation, **fields)))
        assert next(client.events(client.send("count", to=0)))["reason"] == "counted"


def test_answers_beside_each_other_take_turns_part_by_part():
    said = []

    def count(request):
        for value in range(request.value("to", int)):
            request.reply("number", value=value)
            yield

    requests = [
        {"op": "count", "id": 1, "to": 3},
        {"op": "count", "id": 2, "to": 2, "beside": 1},
        {"op": "count", "id": 3, "to": 1},
        {"op": "count", "id": 4, "to": 1, "beside": 1},
    ]
    server = Server([], said.append)
    for request in requests:  # as if all had come before the first is answered
        server._requests.put(Request(server, request))
    server._requests.put(None)
    server.serve({"count": count})
    ids = [json.loads(line)["id"] for line in said]
    assert ids == [1, 2, 1, 2, 1, 3, 4]


def test_a_request_can_be_canceled_while_it_is_answered():
    with BlockingClient(command(), "the counter") as client:
        request = client.send("count", to=1 << 60)
        events = client.events(request)
        assert next(events)["event"] == "number"
        client.cancel(request)
        assert next(event for event in events if event["event"] == "done")["reason"] == "canceled"
        assert next(client.events(client.send("count", to=0)))["reason"] == "counted"


def test_a_process_that_ends_is_one_sentence():
    with BlockingClient(command(), "the counter") as client:
        request = client.send("exit")
        with pytest.raises(UserError, match="the counter ended unexpectedly"):
            list(client.events(request))


@pytest.mark.parametrize(
    "body", ["pass", "print('asleep', file=sys.__stdout__, flush=True); time.sleep(3600)"]
)
def test_a_process_ends_with_its_parent_in_the_middle_of_work(body):
    """Work that never looks whether anybody still waits: an answer, or loading what answers."""
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen({command(body)!r}, stdin=subprocess.PIPE, stdout=sys.stdout)
child.stdin.write(b'{{"op": "sleep", "id": 1}}\\n')
child.stdin.flush()
time.sleep(3600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=module_environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert b"asleep" in process.stdout.readline()
    process.kill()
    process.wait()
    ended = threading.Thread(target=process.stdout.read)  # its child holds the other end while it lives
    ended.start()
    ended.join(PATIENCE)
    assert not ended.is_alive()


def test_work_that_looks_notices_the_end_by_itself():
    """`at_end` is for work that does not look; the end is not called where it does."""
    lines: queue.Queue[str | None] = queue.Queue()
    called, events = [], []

    def wait(request):
        while not request.canceled:
            time.sleep(0.001)
        request.reply("done")

    server = Server(iter(lines.get, None), lambda line: events.append(json.loads(line)))
    server.start(at_end=lambda: called.append(True))
    lines.put('{"op": "wait", "id": 1}')
    lines.put('{"op": "wait", "id": 2}')
    lines.put(None)
    server.serve({"wait": wait})
    assert [event["id"] for event in events] in ([], [1])
    assert not called


async def test_the_asynchronous_client_starts_again_what_ended():
    events: asyncio.Queue[dict] = asyncio.Queue()

    async def event(kind):
        while (event := await asyncio.wait_for(events.get(), PATIENCE))["event"] != kind:
            pass
        return event

    client = AsyncClient(events.put_nowait, command(), "the counter")
    await client.send("count", to=3)
    assert (await event("done"))["reason"] == "counted"
    await client.send("exit")
    assert (await event("ended"))["code"] == 3
    request = await client.send("count", to=1 << 60)
    await event("number")
    await client.cancel(request)
    assert (await event("done"))["reason"] == "canceled"
    await client.send("fail")
    assert "ZeroDivisionError" in (await event("error"))["message"]
    await client.close()
    assert not client.running


async def test_what_cannot_be_started_is_one_sentence():
    client = AsyncClient(lambda event: None, ["/nowhere/python"], "the counter")
    with pytest.raises(UserError, match="the counter cannot be started: No such file"):
        await client.send("count", to=1)
