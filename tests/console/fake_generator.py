"""Speaks the protocol of core.generation.server without torch: counts words, one token each."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time

stopped: set[object] = set()
requests: queue.Queue = queue.Queue()
loaded: dict[int, str] = {}
lengths: dict[object, int] = {}


def emit(event: str, identity: object, **values: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "id": identity, **values}) + "\n")
    sys.stdout.flush()


def listen() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "cancel":
            stopped.add(request["id"])
        else:
            requests.put(request)
    requests.put(None)


def write(request: dict, start: int) -> None:
    identity = request["id"]
    reason, count = "length", 0
    for index in range(start, start + request.get("max_new_tokens", 10)):
        if identity in stopped:
            reason = "stopped"
            break
        text = f" word{index}s{request.get('seed')}"
        if index == start and request.get("token") is not None:
            text = f" chosen{request['token']}"
        if request.get("prompt") == "hostile":
            text = "[@click=app.quit]x[/] \x1b]0;t\x07\u202e[/x] a[/"
        choices = {"alternatives": [[text, 0.5], [" other", 0.3], [" third", 0.1]]}
        choices["alternative_tokens"] = [index, 901, 902]
        emit(
            "token",
            identity,
            index=index,
            token=index,
            text=text,
            probability=0.5 / (1 + index % 7),
            **choices,
        )
        count += 1
        if request.get("prompt") == "slow":
            time.sleep(0.02)
    lengths[identity] = start + count
    emit("done", identity, reason=reason, text="", tokens=count, seconds=0.1, time_to_first_token=0.01,
         tokens_per_second=100.0)  # fmt: skip


threading.Thread(target=listen, daemon=True).start()
while (request := requests.get()) is not None:
    slot = request.get("slot", 0)
    if request["op"] == "load":
        if "broken" in request["checkpoint"]:
            emit("error", request["id"], message=f"{request['checkpoint']} is damaged [/x]")
            continue
        emit("loading", request["id"], slot=slot)
        loaded[slot] = request["checkpoint"]
        emit(
            "loaded",
            request["id"],
            name=request["checkpoint"],
            parameters=1_300_000,
            step=1,
            device="cpu",
            slot=slot,
        )
    elif request["op"] == "generate" and slot not in loaded:
        emit("error", request["id"], message=f"slot {slot} has no checkpoint yet")
    elif request["op"] == "generate":
        write(request, 0)
    elif request["op"] == "branch":
        write(request, request["index"])
