"""How a training process sets its device up."""

from __future__ import annotations

import os

import pytest
import torch

from core.config.schema import build
from core.errors import UserError
from core.training.build import open_device, prefer_static_products

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.mark.parametrize(
    ("widths", "before", "after"),
    [([768, 1024, 768], None, ":0:0"), ([768, 512, 768], None, None), ([768] * 3, ":16:8", ":16:8")],
)
def test_wide_layers_leave_cublas_no_workspace(monkeypatch, widths, before, after):
    monkeypatch.setenv(VARIABLE, before or "")
    if before is None:
        monkeypatch.delenv(VARIABLE)
    prefer_static_products(build({"n_layer": 3, "n_embd": widths, "n_head": 8}).model)
    assert os.environ.get(VARIABLE) == after


def test_a_cpu_needs_none_of_it(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert open_device(build({"n_embd": 1024, "device": "cpu"})) == torch.device("cpu")
    assert VARIABLE not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_missing_device_is_one_sentence():
    with pytest.raises(UserError, match=r'device is "cuda".*accepted here'):
        open_device(build({"device": "cuda"}))
