"""Sampling ahead of the host gives the same text, state and reasons as generating token by token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda

from core.generation import generation as generations  # isort: skip
from core.generation.cuda.graph_decoder import shared_graph_decoder  # isort: skip
from core.errors import UserError  # isort: skip
from core.config.sampling import SamplingSettings  # isort: skip
from core.generation.decoder import Decoder  # isort: skip
from core.generation.generation import Generation  # isort: skip
from core.data.tokenizer.tokenizer import byte_tokenizer  # isort: skip
from core.config.schema import build  # isort: skip
from core.model import GPT  # isort: skip

TOKENIZER = byte_tokenizer()
EOT, VOCABULARY = 39, 40  # of the byte tokenizer's: more would only take longer
GREEDY = {"temperature": 0.0, "max_new_tokens": 12}
WARM = {"temperature": 1.5, "max_new_tokens": 9, "seed": 3}


@pytest.fixture
def on_device(monkeypatch):
    """Decode as on CUDA; yields a switch."""
    monkeypatch.setattr(generations, "takes_triton", lambda *_: True)

    def switch(on):
        monkeypatch.setattr(generations, "takes_triton", lambda *_: on)

    return switch


def make_model():
    """A small model with confident predictions, so that its choices don't depend on the last digit."""
    torch.manual_seed(8)  # greedy texts that do not soon repeat themselves
    values = {"n_layer": 2, "n_embd": [8, 4], "n_head": 2, "attention_type": ["mamba", "standard"]}
    model = GPT(build(values | {"block_size": 6}).model, VOCABULARY)
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.embedding.weight)
    return model.eval().to(DEVICE).requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return make_model()


def begun(model, eot=EOT):
    decoder = Decoder(model, EOT)
    decoder.eot = eot  # -1: nothing that is sampled ends the text
    decoder.append([0, 1])
    return decoder


def same_place(one, other):
    """Two texts are at the same place, as far as a reader can tell."""
    assert one.unread == other.unread
    assert torch.equal(one.seen, other.seen)
    for name, tensor in one.state.tensors().items():
        torch.testing.assert_close(tensor, other.state.tensors()[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [{}, {"repetition_penalty": 1.8, "alternatives": 3}])
def test_greedy_writes_what_the_host_writes(model, on_device, choice):
    texts = []
    for on in (True, False):
        on_device(on)
        decoder = begun(model)
        generation = Generation(decoder, TOKENIZER, SamplingSettings(**GREEDY | choice))
        texts.append((list(generation), generation, decoder))
    (quick, first, one), (plain, second, other) = texts
    assert first.reason == second.reason
    assert len(quick) == len(plain) > 4
    for found, expected in zip(quick, plain):
        assert (found.index, found.token, found.text) == (expected.index, expected.token, expected.text)
        assert found.probability == pytest.approx(expected.probability, rel=1e-3)
        shares = [[share for *_, share in step.alternatives] for step in (found, expected)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-3)
        tokens = [[alternative[:2] for alternative in step.alternatives] for step in (found, expected)]
        assert tokens[0] == tokens[1]
    same_place(one, other)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_stop_leaves_the_text_where_it_was(model, on_device, after):
    """After this many tokens: inside of bursts, and between them."""
    decoder = begun(model, eot=-1)
    config = SamplingSettings(**WARM)
    steps = []
    generation = Generation(decoder, TOKENIZER, config, stopped=lambda: len(steps) == after)
    for step in generation:
        steps.append(step)
    assert generation.reason == "stopped"
    assert len(steps) == after
    short = begun(model, eot=-1)
    expected = list(Generation(short, TOKENIZER, dataclasses.replace(config, max_new_tokens=after)))
    assert [step.token for step in steps] == [step.token for step in expected]
    # Bit for bit: the same kernels have read the same tokens, and nothing else.
    for name, tensor in decoder.state.tensors().items():
        assert torch.equal(tensor, short.state.tensors()[name]), name
    same_place(decoder, short)
    torch.testing.assert_close(decoder.next_logits(), short.next_logits())


def test_a_stop_text_ends_inside_a_burst(model, on_device):
    config = SamplingSettings(**GREEDY)
    text = "".join(step.text for step in Generation(begun(model, eot=-1), TOKENIZER, config))
    stop = text[5:7]
    decoder = begun(model, eot=-1)
    generation = Generation(decoder, TOKENIZER, dataclasses.replace(config, stop=(stop,)))
    assert "".join(step.text for step in generation) == text[: text.index(stop)]
    assert generation.reason == "stop"
    again = begun(model, eot=-1)
    again.append(generation.tokens)
    torch.testing.assert_close(decoder.next_logits(), again.next_logits(), rtol=1e-3, atol=1e-3)


def test_the_end_of_the_document_ends_inside_a_burst(model, on_device):
    plain = list(Generation(begun(model, eot=-1), TOKENIZER, SamplingSettings(**GREEDY)))
    last = plain[5].token
    first = [step.token for step in plain].index(last)
    decoder = begun(model, eot=-1)
    decoder.eot = last
    generation = Generation(decoder, TOKENIZER, SamplingSettings(**GREEDY))
    steps = list(generation)
    assert generation.reason == "end"
    assert len(steps) == first + 1
    assert steps[-1].text == ""
    assert decoder.unread == [last]


def test_same_seed_same_text_however_it_is_read(model, on_device):
    def tokens(**changes):
        decoder = begun(model, eot=-1)
        return [step.token for step in Generation(decoder, TOKENIZER, SamplingSettings(**WARM | changes))]

    whole = tokens()
    assert tokens() == whole
    assert tokens(max_new_tokens=5) == whole[:5]
    assert tokens(seed=4, max_new_tokens=5) != whole[:5]
    # Somebody who looks at the text between two tokens finds it where the sampler was leased.
    decoder, seen = begun(model, eot=-1), []
    for step in Generation(decoder, TOKENIZER, SamplingSettings(**WARM)):
        seen.append(step.token)
        if step.index in (1, 4):
            assert decoder.fork().next_logits() is not None
    assert seen == whole
    assert decoder.unread == whole[-1:]


def test_two_texts_take_turns(model, on_device):
    def writer():
        return Generation(begun(model, eot=-1), TOKENIZER, SamplingSettings(**WARM | {"max_new_tokens": 4}))

    whole = [step.token for step in writer()]
    turns = [(one.token, other.token) for one, other in zip(writer(), writer())]
    assert [one for one, _ in turns] == [other for _, other in turns] == whole


def test_an_abandoned_text_can_be_continued(model, on_device):
    config = SamplingSettings(**GREEDY)
    whole = [step.token for step in Generation(begun(model, eot=-1), TOKENIZER, config)]
    decoder = begun(model, eot=-1)
    for step in Generation(decoder, TOKENIZER, config):
        if step.index == 3:
            break
    rest = Generation(decoder, TOKENIZER, dataclasses.replace(config, max_new_tokens=8))
    assert [step.token for step in rest] == whole[4:]


def test_a_set_token_comes_first(model, on_device):
    config = SamplingSettings(**WARM)
    decoder = begun(model, eot=-1)
    steps = list(Generation(decoder, TOKENIZER, config, first=7))
    again = begun(model, eot=-1)
    again.append([7])
    assert steps[0].token == 7
    assert len(steps) == 9
    assert len(decoder.unread) == 1
    expected = Generation(again, TOKENIZER, dataclasses.replace(config, temperature=0.0, max_new_tokens=1))
    greedy = Generation(
        begun(model, eot=-1), TOKENIZER, SamplingSettings(temperature=0.0, max_new_tokens=2), first=7
    )
    assert [step.token for step in expected] == [step.token for step in greedy][1:]


def test_a_held_token_is_drawn_by_the_host(model, on_device):
    decoder = begun(model, eot=-1)
    decoder.healing = 9
    generation = Generation(decoder, TOKENIZER, SamplingSettings(**WARM))
    steps = list(generation)
    assert steps[0].token == 9  # no other begins with it
    assert decoder.healing is None
    assert len(steps) == 9


def test_a_text_begins_with_nothing(model, on_device):
    """The first token of a document is read from an empty state."""
    quick = list(Generation(Decoder(model, EOT), TOKENIZER, SamplingSettings(**GREEDY)))
    on_device(False)
    plain = list(Generation(Decoder(model, EOT), TOKENIZER, SamplingSettings(**GREEDY)))
    assert [step.token for step in quick] == [step.token for step in plain]


def test_a_model_that_diverged_says_so(on_device):
    model = make_model()
    decoder = begun(model)
    model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not a number"):
        list(Generation(decoder, TOKENIZER, SamplingSettings()))
    assert len(decoder.unread) == 1


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("choice", [{}, {"top_k": 40, "top_p": 0.9, "alternatives": 5}])
def test_graphs_write_what_the_kernels_write(choice):
    texts = []
    for captured in (True, False):
        model = make_model()
        if not captured:
            shared_graph_decoder(model, -1)._captured = lambda function: None
        config = SamplingSettings(**WARM | {"max_new_tokens": 100} | choice)
        texts.append(list(Generation(begun(model, eot=-1), TOKENIZER, config)))
    assert texts[0] == texts[1]
