"""Every kernel binds its arguments and compiles for a GPU, on a machine without one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_MAMBA = ("causal_conv", "mamba_mixer", "selective_scan")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("part", ["mamba", "others"])
def test_all_kernels_compile(part):
    """In two parts of about the same length, as it takes long; a new file's kernels are of the second.

    Triton keeps what it compiled with what pytest keeps: the next time only what has changed is compiled.
    """
    everything, kernels = set(), set()
    for path in (ROOT / "core" / "ops" / "triton").rglob("*.py"):
        names = set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M))
        everything |= names
        of_mamba = path.name.startswith(OF_MAMBA) or path.parent.name.startswith(OF_MAMBA)
        if of_mamba == (part == "mamba"):
            kernels |= names
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    cache = str(ROOT / ".pytest_cache" / "triton")
    found = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_kernels", part],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": cache, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert kernels
    assert kernels <= set(found.stdout.split()) <= everything
