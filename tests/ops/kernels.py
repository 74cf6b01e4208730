"""Where tests of Triton kernels run: on CUDA if available, otherwise in Triton's interpreter on the CPU.

Import this before any kernel, because the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


def keep_language_interpreted() -> None:
    """Have the interpreter replace Triton's language once a function, not at every call of one in a kernel.

    What a kernel computes stays the same; looking through the language took a third of its time.
    """
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):
        return  # another Triton, which does it in another way
    replace = interpreter._patch_lang

    @functools.cache
    def replaced(function):
        replace(function)
        return interpreter._LangPatchScope()  # with nothing to take back

    interpreter._patch_lang = replaced


if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
    keep_language_interpreted()

needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
"""For tests that the interpreter can't run: 16-bit arithmetic, PTX, graphs."""
