"""Where the tests of Triton kernels run: on CUDA if there is one, else in Triton's interpreter on the CPU.

Import this before any kernel. The interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
"""For what the interpreter cannot show: 16-bit arithmetic, PTX, graphs."""
