"""Exports weights. This process never imports torch, so another one writes the file."""

from __future__ import annotations

from pathlib import Path

from core.system.json_lines_client import answer
from core.system.processes import module_command


async def export(checkpoint: Path, name: str) -> str:
    """Write a checkpoint's weights as safetensors. Returns a message that says so; raises UserError."""
    target = Path(name).expanduser()
    done = await answer(
        module_command("core.checkpoint_export"), "the export", "export",
        checkpoint=str(checkpoint), target=str(target),
    )  # fmt: skip
    return f"Wrote {done['bytes']:,} bytes to {target}"
