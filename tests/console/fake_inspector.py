"""Speaks the protocol of core.inspection.server without torch: three layers, made-up figures."""

from __future__ import annotations

import json
import sys

KINDS = ("mamba", "standard", "mamba2")
SHAPE = {
    "parameters": 12345,
    "block_size": 16,
    "waist": 1,
    "layers": [
        {"layer": i, "kind": kind, "width": (8, 4, 8)[i], "groups": (16, 2, 4)[i],
         "group": "channel" if kind == "mamba" else "head"}
        for i, kind in enumerate(KINDS)
    ],
}  # fmt: skip
TEXT = "Once upon a time there was a [bold]king[/] \x1b[2J who had a layer\n and no crown at all"
read: list[str] = []


def emit(event: str, identity: object, **values: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "id": identity, **values}) + "\n")
    sys.stdout.flush()


def lens(token: int) -> dict:
    following = {"id": token + 1, "text": read[token + 1]} if token + 1 < len(read) else None
    layers = [
        {
            "layer": layer,
            "top": [
                {"id": token + 3 - layer, "text": f" word{token}.{layer}", "probability": 0.2 * (layer + 2)},
                {"id": token, "text": "\u202eother", "probability": 0.1},
            ],
            "rank": None if following is None else 2 - layer,
            "probability": 0.2,
        }
        for layer in range(-1, 3)
    ]
    return {"token": token, "text": read[token], "following": following, "answer_from": 2,
            "decided_from": 1, "layers": layers}  # fmt: skip


def heat(request: dict) -> dict:
    token, group = request["token"], request["group"]
    first_query, first_key = max(0, token - request["queries"] + 1), max(0, token - request["keys"] + 1)

    def weight(query: int, key: int) -> float:
        return 0.0 if key > query else 1 / (1 + (query - key + group + 1) % 5)

    return {
        "layer": request["layer"], "group": group, "token": token, "first_query": first_query,
        "first_key": first_key, "entropy": 1.5, "distance": 2.25,
        "rows": [[weight(q, k) for k in range(first_key, token + 1)] for q in range(first_query, token + 1)],
        "row": [weight(token, key) for key in range(len(read))],
    }  # fmt: skip


def layers() -> dict:
    figures = [
        {
            "layer": i, "kind": kind, "width": (8, 4, 8)[i],
            "contribution": {"mixer": 0.25 * i, "mlp": 0.5, "layer": 0.5 + 0.25 * i},
            "units": 32, "dead_units": i, "active_share": 0.25, "effective_rank": 3.5, "directions_90": 2,
        }
        for i, kind in enumerate(KINDS)
    ]  # fmt: skip
    figures[1] |= {"entropy": [1.0, 0.5], "distance": [4.0, 2.0]}
    waist = {"layer": 1, "width": 4, "effective_rank": 3.0, "directions_90": 2,
             "singular_values": [4.0, 2.0, 1.0, 0.5]}  # fmt: skip
    return {"layers": figures, "waist": waist, "lens_loss": [6.0, 5.0, "NaN", 3.0]}


def memory(layer: int) -> dict:
    return {
        "layer": layer, "states": 64, "half_life": {"low": 1.5, "median": 8.25, "high": 90.0},
        "histogram": [0, 4, 10, 20, 16, 8, 4, 2, 0, 0, 0, 0, 0, 0, 0], "slowest": [90.0],
        "paragraphs": {"starts": 1, "offsets": [-1, 0, 1], "half_life": [9.0, 4.0, 8.0], "elsewhere": 8.5},
        "documents": {"starts": 0, "offsets": [], "half_life": [], "elsewhere": 8.5},
        "state_norm": [1.0 + index % 3 for index in range(len(read))],
    }  # fmt: skip


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        identity, operation = request.get("id"), request["op"]
        if operation == "load":
            emit("loaded", identity, name="run/checkpoint.pt", step=400, device="cpu", verified=True, **SHAPE)
        elif operation == "read":
            words = request["text"].split(" ") if request.get("text") else TEXT.split(" ")
            read[:] = ["<|endoftext|>", words[0], *(f" {word}" for word in words[1:])]
            if request.get("texts"):
                emit("error", identity, message=f"--text is {request['texts'][0]}, which does not exist")
                continue
            tokens = [[index, text, index == 0] for index, text in enumerate(read)]
            emit("text", identity, name="a text", tokens=tokens, documents=1, paragraphs=[])
        elif operation == "lens":
            emit("lens", identity, **lens(request["token"]))
        elif operation == "map":
            emit("map", identity, **heat(request))
        elif operation == "layers":
            emit("layers", identity, **layers())
        elif operation == "memory":
            emit("memory", identity, **memory(request["layer"]))
