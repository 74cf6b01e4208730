"""The graph decoder compared with the model itself, token by token."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda

from core.config.sampling import SamplingSettings  # isort: skip
from core.config.schema import build  # isort: skip
from core.generation.cuda import graph_decoder  # isort: skip
from core.generation.cuda.graph_decoder import GraphDecoder, shared_graph_decoder  # isort: skip
from core.generation.cuda.lookahead import LookaheadSampler  # isort: skip
from core.generation.decoder import Decoder, never  # isort: skip
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
@pytest.mark.parametrize("many", [16, 2])
def test_reads_what_the_model_reads(changes, many, monkeypatch):
    """With the kernel's own products, and with the library's, which many rows use."""
    monkeypatch.setattr(graph_decoder, "MANY_ROWS", many)
    model = make_model(**changes)
    # So long that the ring of the keys is full before a document begins, and again after the second.
    tokens = torch.randint(0, EOT, (2, 13), device=DEVICE)
    tokens[0, 8] = tokens[1, 7] = EOT
    _, state = model.features(tokens[:, :3])
    graph = GraphDecoder(model, EOT, rows=2)
    graph.load(state)
    for t in range(3, 13):
        token = tokens[:, t : t + 1]
        features, state = model.features(token, state, token == EOT)
        torch.testing.assert_close(
            graph.read(token[:, 0]), model.logits(features)[:, 0], rtol=1e-4, atol=1e-4
        )
        if t in (4, 12):
            for name, expected in state.tensors().items():
                torch.testing.assert_close(graph.state().tensors()[name], expected, rtol=1e-4, atol=1e-4)


def test_generates_the_most_probable_tokens():
    model = make_model()
    features, state = model.features(torch.tensor([[3, 4]], device=DEVICE))
    graph = GraphDecoder(model, -1)
    graph.load(state, model.logits(features)[:, -1])
    generated = graph.generate(5, temperature=0)
    for token in generated[0]:
        assert model.logits(features)[0, -1].argmax() == token
        features, state = model.features(token.view(1, 1), state)


def test_samples_in_proportion_and_by_seed():
    model = make_model(n_layer=1, n_embd=[8], attention_type=["standard"])  # it only has to be read
    graph = GraphDecoder(model, -1, rows=1)
    state = model.features(torch.tensor([[3]], device=DEVICE))[1]
    logits = torch.full((1, VOCABULARY), -torch.inf, device=DEVICE)
    logits[0, 7], logits[0, 9] = 1.0, 0.0

    def first(seed):
        graph.load(state, logits)
        return int(graph.generate(1, temperature=1.0, seed=seed)[0, 0])

    sampled = [first(seed) for seed in range(20)]
    assert set(sampled) == {7, 9}
    assert 9 <= sampled.count(7) <= 19  # 14.6 expected
    assert sampled[:3] == [first(seed) for seed in range(3)]


def test_texts_take_turns_with_the_graph_decoder():
    """Each continues as if it were alone, and is where its tokens say when it returns the decoder."""
    model = make_model()
    graph = GraphDecoder(model, EOT)
    settings = SamplingSettings(temperature=2.0, seed=3, max_new_tokens=20)
    decoders = [Decoder(model, EOT), Decoder(model, EOT)]
    decoders[1].append([3, 4, 5])
    fork = decoders[1].fork()
    samplers = [LookaheadSampler(graph, decoder, settings, 0) for decoder in decoders]
    texts = [[EOT], [EOT, 3, 4, 5]]
    for turn in (0, 1, 1, 0, 1, 0, 0):
        texts[turn].append(samplers[turn].next_token(never).token)
    for sampler, decoder, text in zip(samplers, decoders, texts):
        sampler.release()
        plain = Decoder(model, EOT)
        plain.append(text[1:])
        assert decoder.unread == text[-1:]
        assert torch.equal(decoder.seen, plain.seen)
        torch.testing.assert_close(decoder.next_logits(), plain.next_logits(), rtol=1e-4, atol=1e-4)
    assert fork.unread == [EOT, 3, 4, 5]


def test_a_graph_decoder_goes_with_its_model():
    """A model that nobody uses any more must not keep GPU memory."""
    model = make_model()
    graph, gone = shared_graph_decoder(model, EOT), weakref.ref(model)
    assert shared_graph_decoder(model, EOT) is graph
    del model
    gc.collect()
    assert gone() is None


@needs_cuda
@pytest.mark.cuda
def test_the_graph_samples_what_the_kernels_sample():
    model = make_model()
    state = model.features(torch.tensor([[3]], device="cuda"))[1]
    texts = []
    for captured in (True, False):
        graph = GraphDecoder(model, EOT)
        if not captured:
            graph._captured = lambda function: None
        graph.load(state)
        texts.append(graph.generate(300, temperature=0.9, seed=4))
    assert torch.equal(*texts)
