"""Streams coded with the decoder that generation uses on CUDA; elsewhere in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE

from core.compression.streams import _GraphRows, decode_streams, document_start, encode_streams  # isort: skip
from core.data.tokenizer.tokenizer import byte_tokenizer  # isort: skip
from tests.compression.checkpoints import model_of  # isort: skip


def test_streams_come_back():
    tokenizer = byte_tokenizer()
    model = model_of(tokenizer).to(DEVICE)
    start = document_start(model, tokenizer.eot)
    tokens = torch.randint(0, 256, (11,)).numpy()
    rows = _GraphRows(model, 3, tokenizer.eot)
    steps = []
    coded = encode_streams(rows, 3, start, tokens, steps.append)
    assert decode_streams(rows, start, coded, steps.append).tolist() == tokens.tolist()
    assert steps == [3] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
def test_streams_come_back_through_a_captured_step():
    tokenizer = byte_tokenizer()
    model = model_of(tokenizer).to("cuda")
    start = document_start(model, tokenizer.eot)
    tokens = torch.randint(0, 256, (1000,)).numpy()
    for streams in (3, 33):
        rows = _GraphRows(model, streams, tokenizer.eot)
        assert rows.can_be_captured
        coded = encode_streams(rows, streams, start, tokens, lambda count: None)
        for again in (rows, _GraphRows(model, streams, tokenizer.eot)):
            assert decode_streams(again, start, coded, lambda count: None).tolist() == tokens.tolist()
