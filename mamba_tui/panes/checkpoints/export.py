"""Export of weights: torch is not for this process, so another one writes the file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from core.errors import UserError
from core.system.processes import module_environment

PROGRAM = """
import sys
from pathlib import Path
from core.checkpoint import export_weights
from core.errors import UserError
try:
    size = export_weights(Path(sys.argv[1]), Path(sys.argv[2]))
except (UserError, OSError) as error:
    sys.exit(str(error))
print(f"wrote {size:,} bytes to {sys.argv[2]}")
"""


async def export(checkpoint: Path, name: str) -> str:
    """Write the weights of a checkpoint as safetensors; the sentence that says so. Raises UserError."""
    target = Path(name).expanduser()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", PROGRAM, str(checkpoint), str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=module_environment(),
    )
    out, err = await process.communicate()
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        raise UserError(lines[-1] if lines else f"the export failed with code {process.returncode}")
    return out.decode(errors="replace").strip()
