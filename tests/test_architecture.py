"""The floors of the house: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE_CORE = [
    "core.budget",
    "core.config",
    "core.config_files",
    "core.corpus",
    "core.hardware",
    "core.loader",
    "core.runs",
    "core.sample_text",
    "core.tokenizer",
]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 5
    return found


def test_core_knows_nothing_of_the_screen():
    for path in modules("core"):
        for name in imports(path):
            top = name.partition(".")[0]
            assert top not in ("textual", "mamba_tui"), f"{path} imports {name}"


def test_the_screen_never_names_torch():
    for path in modules("mamba_tui"):
        assert not any(name.partition(".")[0] == "torch" for name in imports(path)), path


@pytest.mark.parametrize("heavy", ["torch", "tokenizers", "textual"])
def test_lower_floors_load_without(heavy):
    code = (
        f"import sys; [__import__(name) for name in {TORCH_FREE_CORE!r}];"
        f"sys.exit('{heavy} was imported' if '{heavy}' in sys.modules else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_console_and_the_command_line_load_without_torch():
    names = ["mamba_tui.app"] + [
        f"mamba_tui.{path.stem}" for path in (ROOT / "mamba_tui").glob("*.py") if path.stem != "__init__"
    ]
    code = (
        f"import sys; [__import__(name) for name in {names!r}];"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_no_registry_is_named():
    hosts = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        text = (ROOT / name).read_text(errors="ignore")
        assert not any(host in text for host in hosts), name
