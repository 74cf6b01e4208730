"""A new state replaces the old one only where a flag says so."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE

from core.ops.triton.conditional_copy import conditional_copy  # isort: skip


def make_states():
    """What models propose and hold: views, transposed memory, other types, numbers of documents."""
    torch.manual_seed(0)
    seen = torch.randn(2, 3, 40, 4, device=DEVICE)
    new = [
        torch.arange(5, device=DEVICE),
        seen[:, :, 9:],
        torch.randn(2, 6, 5, device=DEVICE).transpose(1, 2),
        torch.randn(2, 5, 3, 7, device=DEVICE),
        torch.randn(3, 9000, device=DEVICE),
        *[torch.randn(2, size, device=DEVICE) for size in range(1, 20)],
    ]
    old = [torch.full_like(tensor, 7) for tensor in new]
    old[1] = torch.full((2, 3, 31, 4), 7.0, device=DEVICE, dtype=torch.float16)
    old[2] = torch.full((2, 6, 5), 7.0, device=DEVICE).transpose(1, 2)
    new[4][0, 0] = float("nan")
    return new, old


@pytest.mark.parametrize("good", [True, False])
def test_all_or_nothing(good):
    new, old = make_states()
    wanted = [found.to(held.dtype) if good else torch.full_like(held, 7) for found, held in zip(new, old)]
    conditional_copy(new, old, torch.tensor(good, device=DEVICE))
    for held, expected in zip(old, wanted):
        torch.testing.assert_close(held, expected, rtol=0, atol=0, equal_nan=True)
