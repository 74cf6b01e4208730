"""Any bytes as tokens, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.compression.exact_tokens import to_bytes, to_tokens
from core.data.tokenizer.tokenizer import WORD_PATTERN, Tokenizer, byte_tokenizer, char_tokenizer

BYTES = [bytes((value,)) for value in range(256)]
TOKENIZERS = {
    "byte": byte_tokenizer(),
    "char": char_tokenizer("éжß鯨"),
    "words": Tokenizer("auto", WORD_PATTERN, [*BYTES, b"th", b" th", "é".encode()]),
    # passes over everything that is not a letter, so that most text has to be spelled
    "lossy": Tokenizer("auto", r"\p{L}+", [*BYTES, b"th"]),
}
MIXED = st.lists(
    st.one_of(st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")), st.binary())
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(MIXED)
def test_gives_back_exactly_the_bytes(name, parts):
    tokenizer, data = TOKENIZERS[name], b"".join(parts)
    tokens = to_tokens(tokenizer, data)
    assert to_bytes(tokenizer, tokens) == data
    assert tokenizer.eot not in tokens


def test_text_around_a_stray_byte_stays_text():
    tokens = to_tokens(TOKENIZERS["words"], b"th th\xff th th")
    assert len(tokens) == 5


def test_a_text_that_spells_the_end_of_a_document_ends_none():
    assert TOKENIZERS["words"].eot not in to_tokens(TOKENIZERS["words"], b"a<|endoftext|>b")
