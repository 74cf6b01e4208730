"""The generator process: JSON lines in, JSON lines out, whatever the input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import queue
import subprocess
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.checkpoint import save
from core.config.changes import replace
from core.config.sampling import SamplingSettings
from core.config.schema import build, flat
from core.errors import UserError
from core.generation.decoder import Decoder
from core.generation.generation import Generation
from core.generation.service import GeneratorService
from core.runs.checkpoints import CheckpointInfo
from core.system.json_lines import Server
from core.system.processes import module_command, module_environment
from tests.generation.test_sampling import TOKENIZER, tiny_model

MODELS = {"one.pt": tiny_model(seed=1), "two.pt": tiny_model(seed=2)}
LOAD = {"op": "load", "id": 1, "checkpoint": "run/one.pt", "device": "cpu"}
GREEDY = {"temperature": 0.0, "max_new_tokens": 8, "ignore_end": True}


def load(path, device):
    if path.name not in MODELS:
        raise UserError(f"{path} is not a checkpoint")
    return MODELS[path.name], TOKENIZER, {"step": 40}


class Client:
    """A server in a thread, spoken to as over pipes."""

    def __init__(self, loader=load):
        self.lines, self.events = queue.Queue(), queue.Queue()
        server = Server(iter(self.lines.get, None), lambda line: self.events.put(json.loads(line)))
        server.start()
        handlers = GeneratorService(loader).handlers()
        self.thread = threading.Thread(target=server.serve, args=(handlers,))
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.put(None)
        self.thread.join(240)
        assert not self.thread.is_alive()

    def send(self, *requests):
        for request in requests:
            self.lines.put(request if isinstance(request, str) else json.dumps(request))

    def event(self):
        return self.events.get(timeout=240)

    def answer(self, request):
        """All events of a request, up to its last one."""
        self.send(request)
        events = [self.event()]
        while events[-1]["event"] not in ("done", "error", "loaded"):
            events.append(self.event())
        return events

    def text(self, request):
        """The text and tokens that a request writes."""
        *tokens, done = self.answer(request)
        assert done["event"] == "done", done
        assert done["tokens"] == len(tokens)
        return "".join(event["text"] for event in tokens), [event["token"] for event in tokens]


@pytest.fixture
def client():
    with Client() as client:
        assert [event["event"] for event in client.answer(LOAD)] == ["loading", "loaded"]
        yield client


def test_loading_says_what_was_loaded():
    with Client() as client:
        loading, loaded = client.answer(LOAD)
    assert loading["event"] == "loading"
    parameters = sum(parameter.numel() for parameter in MODELS["one.pt"].parameters())
    assert loaded == {
        "event": "loaded", "id": 1, "name": "run/one.pt", "parameters": parameters, "step": 40,
        "device": "cpu", "vocab_size": 257, "slot": 0, "verified": False, "warnings": [],
    }  # fmt: skip


def test_tokens_come_with_probabilities_and_alternatives(client):
    *tokens, done = client.answer({"op": "generate", "id": 2, "prompt": "He", **GREEDY, "alternatives": 3})
    assert [event["index"] for event in tokens] == list(range(8))
    for event in tokens:
        assert event["id"] == 2
        assert len(event["alternatives"]) == len(event["alternative_tokens"]) == 3
        assert event["alternative_tokens"][0] == event["token"]
        assert event["alternatives"][0][1] == pytest.approx(event["probability"])
    assert done["reason"] == "length"
    assert done["tokens"] == 8
    assert 0 < done["time_to_first_token"] <= done["seconds"]


def test_same_seed_same_text(client):
    request = {"op": "generate", "prompt": "He", "temperature": 2.0, "max_new_tokens": 30}
    texts = [client.text({**request, "id": id, "seed": seed}) for id, seed in ((2, 5), (3, 5), (4, 6))]
    assert texts[0] == texts[1] != texts[2]


def test_continuing_carries_the_text_on(client):
    _, whole = client.text({"op": "generate", "id": 2, "prompt": "He", **GREEDY, "max_new_tokens": 12})
    _, first = client.text({"op": "generate", "id": 3, "prompt": "He", **GREEDY})
    _, more = client.text({"op": "generate", "id": 4, "continue": True, **GREEDY, "max_new_tokens": 4})
    assert first + more == whole
    _, afresh = client.text({"op": "generate", "id": 5, "prompt": "He", **GREEDY})
    assert afresh == first


def test_branch_goes_on_from_a_chosen_token(client):
    _, base = client.text({"op": "generate", "id": 2, "prompt": "He", **GREEDY})
    *tokens, _ = client.answer({"op": "branch", "id": 3, "of": 2, "index": 3, "token": 65, **GREEDY})
    assert [event["index"] for event in tokens] == list(range(3, 11))
    assert tokens[0]["token"] == 65
    prompt = TOKENIZER.decode_bytes(base[:3])
    if all(byte < 128 for byte in prompt):  # then the same text can be given as a prompt
        _, expected = client.text({"op": "generate", "id": 4, "prompt": f"He{prompt.decode()}A", **GREEDY})
        assert [event["token"] for event in tokens[1:]] == expected[:7]
    # a branch of the branch, one step on, without a chosen token: greedy gives the same again
    _, again = client.text({"op": "branch", "id": 5, "of": 3, "index": 4, **GREEDY})
    assert again[:7] == [event["token"] for event in tokens[1:]]


def test_branch_with_the_base_token_gives_the_base(client):
    _, base = client.text({"op": "generate", "id": 2, "prompt": "He", **GREEDY})
    request = {"op": "branch", "id": 3, "of": 2, "index": 5, "token": base[5], **GREEDY, "max_new_tokens": 3}
    assert client.text(request)[1] == base[5:]


def test_continuing_after_a_branch_continues_the_branch(client):
    client.text({"op": "generate", "id": 2, "prompt": "He", **GREEDY})
    request = {"op": "branch", "of": 2, "index": 2, "token": 66, **GREEDY}
    _, whole = client.text({**request, "id": 3, "max_new_tokens": 9})
    _, first = client.text({**request, "id": 4, "max_new_tokens": 5})
    _, more = client.text({"op": "generate", "id": 5, "continue": True, **GREEDY, "max_new_tokens": 4})
    assert first + more == whole


def test_stop_takes_effect_while_generating():
    model = tiny_model()
    logits, end = model.logits, torch.tensor([TOKENIZER.eot])
    model.logits = lambda features: logits(features).index_fill(-1, end, -torch.inf)  # never ends by itself
    with Client(lambda path, device: (model, TOKENIZER, {})) as client:
        client.answer(LOAD)
        client.send({"op": "generate", "id": 2, "prompt": "He", "max_new_tokens": 1 << 30})
        assert client.event()["event"] == "token"
        client.send({"op": "cancel", "id": 2})
        while (event := client.event())["event"] == "token":
            pass
        assert (event["event"], event["reason"]) == ("done", "stopped")
        assert client.text({"op": "generate", "id": 3, "prompt": "He", **GREEDY})[1]


def test_the_end_of_the_input_ends_a_generation():
    model = tiny_model()
    logits, end = model.logits, torch.tensor([TOKENIZER.eot])
    model.logits = lambda features: logits(features).index_fill(-1, end, -torch.inf)
    client = Client(lambda path, device: (model, TOKENIZER, {}))
    client.answer(LOAD)
    client.send({"op": "generate", "id": 2, "max_new_tokens": 1 << 30})
    assert client.event()["event"] == "token"
    client.__exit__()


def test_a_request_stopped_before_its_turn_writes_nothing():
    gate = threading.Event()

    def slow_load(path, device):
        gate.wait(240)
        return load(path, device)

    with Client(slow_load) as client:
        client.send(LOAD, {"op": "generate", "id": 2, **GREEDY}, {"op": "cancel", "id": 2})
        assert client.event()["event"] == "loading"
        client.lines.put("")  # the reader takes this line only after it has taken the stop
        while not client.lines.empty():
            pass
        gate.set()
        assert client.event()["event"] == "loaded"
        done = client.event()
    assert (done["event"], done["reason"], done["tokens"]) == ("done", "stopped", 0)


def test_two_slots_side_by_side(client):
    client.answer({"op": "load", "id": 2, "checkpoint": "run/two.pt", "device": "cpu", "slot": 1})
    one = client.text({"op": "generate", "id": 3, "prompt": "He", **GREEDY})
    two = client.text({"op": "generate", "id": 4, "prompt": "He", **GREEDY, "slot": 1})
    assert one != two
    assert client.text({"op": "generate", "id": 5, "prompt": "He", **GREEDY}) == one


def test_two_slots_generate_in_turns_and_as_if_alone(client):
    client.answer({"op": "load", "id": 2, "checkpoint": "run/two.pt", "device": "cpu", "slot": 1})
    request = {"op": "generate", "prompt": "He", **GREEDY, "max_new_tokens": 60}
    alone = [client.text({**request, "id": 3 + slot, "slot": slot}) for slot in (0, 1)]
    client.send(
        {**request, "id": 5, "slot": 0},
        {**request, "id": 6, "slot": 1, "beside": 5},
        {**request, "id": 7, "slot": 1, "beside": 5},
    )
    events = []
    while sum(event["event"] in ("done", "error") for event in events) < 3:
        events.append(client.event())
    order = [event["id"] for event in events if event["event"] == "token" and event["id"] < 7]
    turns = sum(one != other for one, other in itertools.pairwise(order))
    assert turns > 20, "one after the other"
    for number, id in enumerate((5, 6)):
        tokens = [event["token"] for event in events if event["id"] == id and event["event"] == "token"]
        assert tokens == alone[number][1]
    (refused,) = (event["message"] for event in events if event["event"] == "error")
    assert "generating already" in refused


def test_a_failed_load_is_an_error_and_the_other_slot_lives(client):
    (_, error) = client.answer({**LOAD, "id": 2, "checkpoint": "run/broken.pt", "slot": 1})
    assert (error["event"], error["id"], error["message"]) == (
        "error",
        2,
        "run/broken.pt is not a checkpoint",
    )
    assert client.text({"op": "generate", "id": 3, **GREEDY})


def test_an_unforeseen_failure_is_one_sentence():
    def broken(path, device):
        raise MemoryError("no memory\nsecond line")

    with Client(broken) as client:
        _, error = client.answer(LOAD)
    assert error["message"] == "load failed: MemoryError: no memory"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("{not json", "not JSON"),
        ("[1]", "JSON object"),
        ('"\\ud800"', "JSON object"),
        ({"op": "sing", "id": 2}, "op is 'sing'"),
        ({"op": "generate"}, "id is None"),
        ({"op": "generate", "id": [2]}, "id is [2]"),
        ({"op": "cancel"}, "id is None"),
        ({"op": "generate", "id": 2, "prompt": 5}, "prompt is 5"),
        ({"op": "generate", "id": 2, "slot": 1}, "slot 1 has no checkpoint yet"),
        ({"op": "generate", "id": 2, "slot": 9}, "slot is 9"),
        ({"op": "generate", "id": 2, "continue": "yes"}, "continue is 'yes'"),
        ({"op": "generate", "id": 2, "temperature": "hot"}, 'temperature is "hot"'),
        ({"op": "load", "id": 2}, "checkpoint is None"),
        ({"op": "load", "id": 2, "checkpoint": "x.pt", "device": "abacus"}, 'device is "abacus"'),
        ({"op": "branch", "id": 2, "of": 77, "index": 0}, "of is 77"),
        ({"op": "branch", "id": 2, "of": [], "index": 0}, "of is []"),
    ],
)
def test_bad_requests_get_one_error_and_the_process_lives(client, request_, words):
    (error,) = client.answer(request_)
    assert error["event"] == "error"
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert client.text({"op": "generate", "id": 9, **GREEDY})


def test_bad_branches_are_named(client):
    client.text({"op": "generate", "id": 2, **GREEDY})
    for fields, words in (({"index": 99}, "index is 99"), ({"index": 0, "token": 999}, "token is 999")):
        (error,) = client.answer({"op": "branch", "id": 3, "of": 2, **fields})
        assert words in error["message"]


@given(line=st.one_of(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
        ("op", "id", "prompt", "slot", "temperature", "seed", "of", "index", "token", "stop")
    ) | st.text(), inner), max_leaves=8,
).map(json.dumps)))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_line_brings_the_server_down(line):
    events = []
    end = {"op": "generate", "id": "last", **GREEDY}
    lines = queue.Queue()
    for part in (json.dumps(LOAD), line.replace("quit", "quiet"), json.dumps(end)):
        lines.put(part)

    def write(event):
        events.append(json.loads(event))
        if events[-1]["event"] in ("done", "error") and events[-1]["id"] == "last":
            lines.put(None)

    server = Server(iter(lines.get, None), write)
    server.start()
    server.serve(GeneratorService(load).handlers())
    assert events[-1]["event"] == "done"


def start_process():
    return subprocess.Popen(
        module_command("core.generation.server"),
        env=module_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_process_speaks_json_and_ends_with_its_input():
    process = start_process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'\xff{broken\n{"op":"load","id":1,"checkpoint":"/nowhere/x.pt","device":"cpu"}\n')
    process.stdin.flush()
    events = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [event["event"] for event in events] == ["error", "loading", "error"]
    assert "/nowhere/x.pt" in events[2]["message"]
    rest, errors = process.communicate(timeout=240)
    assert (process.returncode, rest, errors) == (0, b"", b"")


def test_the_process_writes_from_a_saved_checkpoint(tmp_path):
    model = tiny_model()
    config = replace(build({}), **dataclasses.asdict(model.config))
    payload = {
        "format": 1, "step": 7, "config": flat(config), "vocab_size": TOKENIZER.vocab_size,
        "tokenizer": TOKENIZER.to_dict(), "model": model.state_dict(),
    }  # fmt: skip
    path = tmp_path / "checkpoint_step_7.pt"
    save(path, payload, CheckpointInfo(7, path, 0, "", None, None, None, 0.0, best=False))
    process = start_process()
    requests = [
        {"op": "load", "id": 1, "checkpoint": str(path), "device": "cpu"},
        {"op": "generate", "id": 2, "prompt": "He", **GREEDY},
    ]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(json.dumps(request) + "\n" for request in requests).encode())
    process.stdin.flush()
    events = []
    while not events or events[-1]["event"] not in ("done", "error"):
        events.append(json.loads(process.stdout.readline()))
    process.communicate(b'{"op":"quit"}\n', timeout=240)
    assert process.returncode == 0
    assert events[1]["step"] == 7
    decoder = Decoder(model, TOKENIZER.eot)
    decoder.append(TOKENIZER.encode("He"))
    expected = [step.token for step in Generation(decoder, TOKENIZER, SamplingSettings(**GREEDY))]
    assert [event["token"] for event in events if event["event"] == "token"] == expected
