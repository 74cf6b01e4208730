"""Texts read in parallel, one token at a time, compared with the model itself."""

from __future__ import annotations

import pytest
import torch

from core.compression.row_decoder import RowDecoder
from core.data.tokenizer.tokenizer import byte_tokenizer
from tests.compression.checkpoints import model_of

TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "learned"},
        {"position": "none", "d_conv": 2},
        {"block_size": 1},
        {"tie_embeddings": False},
    ],
)
def test_reads_what_the_model_reads(changes):
    model = model_of(TOKENIZER, **changes).double()
    tokens = torch.randint(0, 256, (3, 20))
    with torch.inference_mode():
        expected = model(tokens)
        rows = RowDecoder(model, 3)
        read = torch.stack([rows.read(tokens[:, t]) for t in range(20)], 1)
        torch.testing.assert_close(read, expected.logits, rtol=1e-9, atol=1e-9)
        for name, tensor in rows.state().tensors().items():
            torch.testing.assert_close(tensor, expected.state.tensors()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("before", [2, 11])
def test_every_row_goes_on_from_the_state_of_one(before):
    model = model_of(TOKENIZER).double()
    text, more = torch.randint(0, 256, (1, before)), torch.randint(0, 256, (4, 12))
    with torch.inference_mode():
        _, _, state = model(text)
        rows = RowDecoder(model, 4)
        rows.read(more[:, 0])  # whatever was read before is gone
        rows.load(state)
        read = torch.stack([rows.read(more[:, t]) for t in range(12)], 1)
        expected = model(torch.cat((text.expand(4, -1), more), 1)).logits[:, before:]
    torch.testing.assert_close(read, expected, rtol=1e-9, atol=1e-9)
