"""A package called `core` on the path is not ours, and does not take its place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from mamba_tui.cli.main import main; sys.exit(main(sys.argv[1:]))"
CHILD = """
import subprocess, sys
import mamba_tui
from core.system.processes import module_command, module_environment
command = module_command("core.data.tokenizer.bpe_training", "300")
result = subprocess.run(command, env=module_environment(), input=b"", stdout=subprocess.PIPE)
sys.exit(result.returncode or b'"kind": "auto"' not in result.stdout)
"""


@pytest.fixture
def environment(tmp_path):
    """Where the user keeps a `core` of their own, before this program on the path."""
    (tmp_path / "mine" / "core").mkdir(parents=True)
    (tmp_path / "mine" / "core" / "__init__.py").write_text("raise SystemExit('the wrong core')")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "mine"), str(ROOT)])}


@pytest.mark.parametrize("how", [["-c", PROGRAM], ["-m", "mamba_tui"], ["-P", "-m", "mamba_tui"]])
@pytest.mark.parametrize("where", [".", "mine"])
def test_the_command_runs_with_a_foreign_core_on_the_path(tmp_path, environment, how, where):
    command = [sys.executable, *how, "--version"]
    result = subprocess.run(
        command, env=environment, cwd=tmp_path / where, capture_output=True, text=True, timeout=240
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("mamba-tui ")


def test_its_child_processes_run_too(tmp_path, environment):
    result = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=environment,
        cwd=tmp_path / "mine",
        capture_output=True,
        timeout=240,
    )
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_foreign_core_that_is_loaded_already_makes_room(environment):
    code = (
        "import sys, types; sys.modules['core'] = types.ModuleType('core'); import mamba_tui; "
        "from core.errors import UserError; print(UserError.__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.stdout == "core.errors\n"
