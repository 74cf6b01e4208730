"""Every kernel binds its arguments and compiles for a GPU, on a machine without one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_kernels_compile(tmp_path):
    sources = [path.read_text() for path in sorted((ROOT / "core" / "ops").glob("*.py"))]
    kernels = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.M)}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert set(found.stdout.split()) == kernels
