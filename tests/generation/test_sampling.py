"""Generating: what is sampled, what is shown, and that the carried state equals reading everything again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.sampling import SamplingSettings
from core.config.schema import build
from core.data.tokenizer.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer
from core.errors import UserError
from core.generation.decoder import Decoder, extensions
from core.generation.generation import Generation, generate_text
from core.generation.sampler import next_token_probabilities
from core.generation.text_stream import TextStream
from core.model import GPT

TOKENIZER = byte_tokenizer()


def tiny_model(tokenizer: Tokenizer = TOKENIZER, seed: int = 0) -> GPT:
    """A model with confident predictions, so that its choices don't depend on the last digit."""
    torch.manual_seed(seed)
    kinds = ["mamba", "standard", "mamba2"]
    values = {"n_embd": [16, 8, 16], "n_head": 2, "attention_type": kinds, "block_size": 12}
    model = GPT(build(values).model, tokenizer.vocab_size)
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.embedding.weight)
    return model.eval()


def write(model, prompt="", tokenizer=TOKENIZER, **settings):
    decoder = Decoder(model, tokenizer.eot)
    decoder.append(tokenizer.encode(prompt))
    generation = Generation(decoder, tokenizer, SamplingSettings(**settings))
    return list(generation), generation, decoder


def test_greedy_is_the_argmax_of_a_full_reading():
    model = tiny_model()
    steps, _, _ = write(model, "Once upon a time, long ago", max_new_tokens=40, temperature=0.0)
    text = [TOKENIZER.eot, *TOKENIZER.encode("Once upon a time, long ago").tolist()]
    assert len(steps) > 5
    for step in steps:
        with torch.no_grad():
            own = model(torch.tensor([text])).logits[0, -1].softmax(0)
        assert step.token == int(own.argmax())
        assert step.probability == pytest.approx(float(own.max()), rel=1e-4)
        text.append(step.token)


def test_same_seed_same_text_and_another_seed_another():
    model = tiny_model()
    texts = [
        generate_text(model, TOKENIZER, "a", SamplingSettings(seed=seed, temperature=2.0, max_new_tokens=40))
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_long_prompt_is_read_like_a_short_one(monkeypatch):
    model = tiny_model()
    expected = [step.token for step in write(model, "x" * 50, temperature=0.0)[0]]
    monkeypatch.setattr("core.generation.decoder.PREFILL_TOKENS", 7)
    assert [step.token for step in write(model, "x" * 50, temperature=0.0)[0]] == expected


def test_continuing_equals_writing_in_one_go():
    model = tiny_model()
    whole = [step.token for step in write(model, "ab", max_new_tokens=12, temperature=0.0)[0]]
    first, _, decoder = write(model, "ab", max_new_tokens=5, temperature=0.0)
    more = Generation(decoder, TOKENIZER, SamplingSettings(max_new_tokens=7, temperature=0.0))
    assert [step.token for step in first] + [step.token for step in more] == whole


def test_forks_do_not_disturb_each_other():
    model = tiny_model()
    _, _, decoder = write(model, "ab", max_new_tokens=3)
    fork = decoder.fork()
    expected = decoder.fork().next_logits()
    fork.append([65, 66])
    fork.next_logits()
    assert torch.equal(decoder.next_logits(), expected)
    assert not torch.equal(fork.seen, decoder.seen)


def test_generate_text_leaves_mode_and_random_state_alone():
    model = tiny_model().train()
    before = torch.get_rng_state()
    text = generate_text(model, TOKENIZER, "", SamplingSettings(max_new_tokens=10))
    assert isinstance(text, str)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_end_of_the_document_ends_the_text():
    model = tiny_model()
    decoder = Decoder(model, TOKENIZER.eot)
    generation = Generation(decoder, TOKENIZER, SamplingSettings(), first=TOKENIZER.eot)
    (step,) = generation
    assert (generation.reason, step.text) == ("end", "")


def test_a_model_that_diverged_says_so():
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not a number"):
        write(model)


@given(
    # steps that stay apart when a high temperature brings them together
    logits=st.lists(st.integers(-240, 240).map(lambda eighths: eighths / 8), min_size=1, max_size=12),
    temperature=st.sampled_from((0.0, 1e-300, 1e-46, 1e-12, 1e-9, 0.7, 1.0, 100.0)),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_candidates_are_a_distribution_within_the_filters(logits, temperature, top_k, top_p, min_p):
    logits = torch.tensor(logits)
    filters = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = next_token_probabilities(logits, filters)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    kept = weights > 0
    assert logits[kept].max() == logits.max()
    if temperature < 1e-12:
        assert kept.sum() == 1
        return
    assert not top_k or kept.sum() <= top_k
    # nothing that is kept is less probable than something that is not
    if kept.any() and (~kept).any():
        assert logits[kept].min() >= logits[~kept].max()


def test_filters_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    one = {"temperature": 1.0}

    def kept(**changes):
        return (
            next_token_probabilities(logits, SamplingSettings(**one, **changes)).nonzero().flatten().tolist()
        )

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.51) == [0, 1]
    assert kept(min_p=0.29) == [0, 1, 2]
    assert kept(min_p=0.31) == [0, 1]
    assert kept() == [0, 1, 2, 3]
    hot = next_token_probabilities(logits, SamplingSettings(temperature=0.5))
    torch.testing.assert_close(hot, torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2 / 0.365)


def test_repetition_penalty_makes_what_was_seen_less_likely():
    logits, seen = torch.tensor([2.0, 1.9, -1.0, -1.0]), torch.tensor([True, False, True, False])
    penalized = SamplingSettings(temperature=1.0, repetition_penalty=2.0)
    torch.testing.assert_close(
        next_token_probabilities(logits, penalized, seen), torch.tensor([1.0, 1.9, -2.0, -1.0]).softmax(0)
    )
    assert (
        next_token_probabilities(
            logits, SamplingSettings(temperature=0.0, repetition_penalty=2.0), seen
        ).argmax()
        == 1
    )


@given(
    pieces=st.lists(st.sampled_from(["a", "b", "ab", "é", "漢", "stop", "st", "op"]), max_size=12),
    cut=st.integers(1, 3),
    stop=st.sets(st.sampled_from(["stop", "ba", "漢a"]), max_size=2),
)
@settings(max_examples=300, deadline=None)
def test_shown_text_is_the_text_up_to_the_stop(pieces, cut, stop):
    data = "".join(pieces).encode()
    stream, shown = TextStream(tuple(stop)), ""
    for at in range(0, len(data), cut):
        shown += stream.push(data[at : at + cut])
        if stream.stopped:
            break
    found = [at for text in stop if (at := "".join(pieces).find(text)) >= 0]
    assert stream.stopped == bool(found)
    if not stream.stopped:
        shown += stream.flush()
    assert shown == "".join(pieces)[: min(found, default=None)]


def test_incomplete_characters_are_held_back():
    stream = TextStream()
    euro = "€".encode()
    assert [stream.push(euro[:1]), stream.push(euro[1:2]), stream.push(euro[2:])] == ["", "", "€"]
    stream.push(euro[:2])
    assert stream.flush() == "\ufffd"


def test_a_stop_text_ends_the_generation_and_is_not_shown():
    tokenizer = char_tokenizer("")
    model = tiny_model(tokenizer)
    steps, _, _ = write(model, "q", tokenizer, max_new_tokens=30, temperature=0.0)
    text = "".join(step.text for step in steps)
    stop = text[6:8]
    steps, generation, _ = write(model, "q", tokenizer, max_new_tokens=30, temperature=0.0, stop=(stop,))
    assert generation.reason == "stop"
    assert "".join(step.text for step in steps) == text[: text.index(stop)]


def test_alternatives_are_the_most_probable_tokens():
    steps, _, _ = write(tiny_model(), "q", max_new_tokens=3, temperature=0.0, alternatives=4)
    for step in steps:
        ids, texts, probabilities = zip(*step.alternatives)
        assert len(step.alternatives) == 4
        assert ids[0] == step.token
        assert probabilities[0] == pytest.approx(step.probability)
        assert list(probabilities) == sorted(probabilities, reverse=True)
        assert texts[0] == TOKENIZER.token_bytes(step.token).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, 'temperature is "hot"; accepted: a number'),
        ({"top_k": 1.5}, "top_k is 1.5; accepted: a whole number"),
        ({"top_k": True}, "top_k is true"),
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808"),
        ({"stop": [3]}, "stop is"),
        ({"stop": [""]}, "stop is"),
        ({"alternatives": -1}, "alternatives is -1"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(UserError) as caught:
        SamplingSettings.read(values)
    assert str(caught.value).startswith(words)
    assert "accepted" in str(caught.value)


def test_from_mapping_takes_defaults_and_one_stop_text():
    config = SamplingSettings.read({"temperature": 1, "stop": "x", "top_k": None, "prompt": "other"})
    assert config == SamplingSettings(temperature=1.0, stop=("x",))


def test_a_prompt_that_ends_inside_a_token_is_continued_as_if_it_did_not():
    from core.data.tokenizer.tokenizer import Tokenizer
    from core.data.tokenizer.vocabulary import WORD_PATTERN

    tokens = [bytes((value,)) for value in range(256)] + [b" s", b" sa", b" said", b"he"]
    tokenizer = Tokenizer("test", WORD_PATTERN, tokens)
    model = GPT(build({"n_embd": 16, "n_layer": 2, "n_head": 2}).model, tokenizer.vocab_size).eval()
    torch.nn.init.normal_(model.blocks[0].mixer.out.weight)
    space = tokenizer.encode(" ")[-1]
    allowed = set(extensions(tokenizer, space))
    assert {bytes(tokens[token]) for token in allowed} == {b" ", b" s", b" sa", b" said"}
    seen = set()
    for seed in range(60):
        decoder = Decoder(model, tokenizer.eot)
        decoder.prompt(tokenizer, "he ")
        config = SamplingSettings(max_new_tokens=3, temperature=1.0, seed=seed, alternatives=4)
        generation = Generation(decoder, tokenizer, config)
        steps = list(generation)
        assert generation.tokens[0] in allowed
        seen.add(generation.tokens[0])
        assert sum(probability for *_, probability in steps[0].alternatives) == pytest.approx(1.0, abs=1e-4)
        written = [token for token in generation.tokens if token != tokenizer.eot]
        whole = tokenizer.decode_bytes([*tokenizer.encode("he"), *written])
        text = "he " + "".join(step.text for step in steps)
        assert text == whole.decode("utf-8", "replace")
        # The state afterwards is that of the tokens as they now stand.
        assert decoder.unread == [generation.tokens[-1]]
    assert len(seen) > 1


def test_a_prompt_that_was_never_continued_keeps_its_last_token():
    from core.data.tokenizer.tokenizer import Tokenizer
    from core.data.tokenizer.vocabulary import WORD_PATTERN

    tokens = [bytes((value,)) for value in range(256)] + [b" s"]
    tokenizer = Tokenizer("test", WORD_PATTERN, tokens)
    model = GPT(build({"n_embd": 16, "n_layer": 1, "n_head": 2}).model, tokenizer.vocab_size)
    decoder = Decoder(model, tokenizer.eot)
    decoder.prompt(tokenizer, "a ")
    decoder.prompt(tokenizer, "b")
    expected = [tokenizer.eot, *tokenizer.encode("a "), *tokenizer.encode("b")]
    assert decoder.unread + ([decoder.healing] if decoder.healing is not None else []) == expected
