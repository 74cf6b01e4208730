"""How small other programs make the same bytes: gzip, xz and, if installed, PPMd."""

from __future__ import annotations

import gzip
import importlib
import lzma
import shutil
import subprocess
import tempfile
from pathlib import Path

LIMIT = 1 << 28
PPMD_ORDER, PPMD_MEMORY = 16, 1 << 28


def compare(data: bytes) -> dict[str, int | None]:
    """Bytes by program; None for programs that aren't installed."""
    return {
        "gzip -9": len(gzip.compress(data, 9)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "PPMd": ppmd(data),
    }


def ppmd(data: bytes) -> int | None:
    """Bytes with PPMd (variant H), from the Python package pyppmd or from 7-Zip; None without both."""
    try:
        package = importlib.import_module("pyppmd")
    except ImportError:
        return _seven_zip(data)
    encoder = package.Ppmd7Encoder(PPMD_ORDER, PPMD_MEMORY)
    return len(encoder.encode(data)) + len(encoder.flush())


def _seven_zip(data: bytes) -> int | None:
    program = next(filter(None, map(shutil.which, ("7z", "7zz", "7za"))), None)
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="mamba-tui-") as folder:
        archive = Path(folder) / "compared.7z"
        (Path(folder) / "data").write_bytes(data)
        method = f"-m0=PPMd:o={PPMD_ORDER}:mem={PPMD_MEMORY}b"
        done = subprocess.run(
            [program, "a", method, str(archive), "data"], cwd=folder, capture_output=True, check=False
        )
        return archive.stat().st_size if done.returncode == 0 else None
