"""The captured reader against the model itself, token by token."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda

from core.generation import decoder  # isort: skip
from core.config.schema import build  # isort: skip
from core.generation.cuda.graph_decoder import Reader  # isort: skip
from core.model import GPT  # isort: skip

EOT, VOCABULARY = 49, 50


def make_model(**changes):
    shape = {"n_layer": 2, "n_embd": [32, 24], "n_head": 2, "block_size": 5}
    config = build(shape | {"attention_type": ["mamba", "standard"]} | changes)
    torch.manual_seed(0)
    model = GPT(config.model, VOCABULARY).eval()
    for parameter in model.parameters():
        if not parameter.any():  # a new model's layers change nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(DEVICE).requires_grad_(False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned", "attention_type": ["mamba2", "standard"]},
        {"position": "none", "d_conv": 2},
    ],
)
def test_reads_what_the_model_reads(changes):
    model = make_model(**changes)
    # So long that the ring of the keys is full before a document begins, and again after the second.
    tokens = torch.randint(0, EOT, (2, 13), device=DEVICE)
    tokens[0, 8] = tokens[1, 7] = EOT
    _, state = model.features(tokens[:, :3])
    reader = Reader(model, EOT, lanes=2)
    reader.load(state)
    for t in range(3, 13):
        token = tokens[:, t : t + 1]
        features, state = model.features(token, state, token == EOT)
        torch.testing.assert_close(
            reader.read(token[:, 0]), model.logits(features)[:, 0], rtol=1e-4, atol=1e-4
        )
        if t in (4, 12):
            for name, expected in state.tensors().items():
                torch.testing.assert_close(reader.state().tensors()[name], expected, rtol=1e-4, atol=1e-4)


def test_writes_the_most_probable_tokens():
    model = make_model()
    features, state = model.features(torch.tensor([[3, 4]], device=DEVICE))
    reader = Reader(model, -1)
    reader.load(state, model.logits(features)[:, -1])
    written = reader.write(5, temperature=0)
    for token in written[0]:
        assert model.logits(features)[0, -1].argmax() == token
        features, state = model.features(token.view(1, 1), state)


def test_draws_in_proportion_and_by_seed():
    model = make_model(n_layer=1, n_embd=[8], attention_type=["standard"])  # it only has to be read
    reader = Reader(model, -1, lanes=1)
    state = model.features(torch.tensor([[3]], device=DEVICE))[1]
    logits = torch.full((1, VOCABULARY), -torch.inf, device=DEVICE)
    logits[0, 7], logits[0, 9] = 1.0, 0.0

    def first(seed):
        reader.load(state, logits)
        return int(reader.write(1, temperature=1.0, seed=seed)[0, 0])

    drawn = [first(seed) for seed in range(20)]
    assert set(drawn) == {7, 9}
    assert 9 <= drawn.count(7) <= 19  # 14.6 expected
    assert drawn[:3] == [first(seed) for seed in range(3)]


def test_texts_take_turns_with_the_reader(monkeypatch):
    model = make_model()
    plain, quick = decoder.Decoder(model, EOT), decoder.Decoder(model, EOT)
    plain._borrow_reader = lambda: False
    monkeypatch.setattr(decoder, "takes_triton", lambda tensor: True)

    def agree(expected, found):
        torch.testing.assert_close(
            found.next_logits(), expected.next_logits(), rtol=1e-4, atol=1e-4, check_device=False
        )

    def step(token):
        plain.append([token])
        quick.append([token])
        agree(plain, quick)

    agree(plain, quick)
    for token in (3, 4, 5, EOT, 6):
        step(token)
    fork, other = plain.fork(), quick.fork()
    fork._borrow_reader = lambda: False
    for token in (8, 9):
        step(token)
        fork.append([token + 20])
        other.append([token + 20])
        agree(fork, other)
    plain.append([1, 2, 3])
    quick.append([1, 2, 3])
    agree(plain, quick)
    step(11)


@needs_cuda
@pytest.mark.cuda
def test_graph_draws_what_the_kernels_draw():
    model = make_model()
    state = model.features(torch.tensor([[3]], device="cuda"))[1]
    texts = []
    for captured in (True, False):
        reader = Reader(model, EOT)
        if not captured:
            reader._recorded = lambda function: None
        reader.load(state)
        texts.append(reader.write(300, temperature=0.9, seed=4))
    assert torch.equal(*texts)
