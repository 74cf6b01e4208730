"""The rooms of the house: who may import whom (docs/architecture.md), no circles, no torch on the screen."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 450
# Still to be mended; these sets only ever shrink.
BENT: set[tuple[str, str]] = set()
CIRCLES: set[frozenset[str]] = set()
LONG: set[str] = set()


def _modules():
    found = {}
    for top in ("core", "mamba_tui"):
        for path in (ROOT / top).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    assert len(found) > 100
    return found


MODULES = _modules()


def _imports(path):
    """Every module that a file imports anywhere, of this program or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in MODULES else node.module)
    return names


IMPORTS = {name: _imports(path) for name, path in MODULES.items()}


def room(module):
    return ".".join(module.split(".")[:2])


def rooms():
    """The table of docs/architecture.md: room -> the rooms it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \|(.*)\|(.*)\|$", text, re.M)
    assert len(rows) > 10
    return {
        name: (set(re.findall(r"`([\w.]+)`", allowed)), "no torch" in about) for name, about, allowed in rows
    }


def test_every_module_is_in_a_room_of_the_table():
    known = rooms()
    for module in MODULES:
        assert room(module) in known or "." not in module, module


def test_rooms_import_only_rooms_of_their_row():
    known = rooms()
    found = {
        (module, other)
        for module, names in IMPORTS.items()
        for other in names & MODULES.keys()
        if "." in module and room(other) != room(module) and room(other) not in known[room(module)][0]
    }
    assert found == BENT


def test_the_table_has_no_circle():
    known = {name: allowed for name, (allowed, _) in rooms().items()}
    while known:
        free = {name for name, allowed in known.items() if not allowed & known.keys()}
        assert free, f"these rooms import each other in a circle: {sorted(known)}"
        known = {name: allowed for name, allowed in known.items() if name not in free}


def _circles():
    """Groups of modules that import each other in a circle: strongly connected components."""
    reach = {name: names & MODULES.keys() for name, names in IMPORTS.items()}
    closed = {name: set(names) for name, names in reach.items()}
    changed = True
    while changed:
        changed = False
        for names in closed.values():
            wider = names.union(*(closed[other] for other in names))
            if len(wider) > len(names):
                names |= wider
                changed = True
    return {
        frozenset(other for other in closed[name] if name in closed[other])
        for name in closed
        if name in closed[name]
    }


def test_no_module_imports_itself_by_a_detour():
    assert _circles() == CIRCLES


def test_files_are_of_one_idea():
    long = {
        str(path.relative_to(ROOT))
        for path in MODULES.values()
        if len(path.read_text().splitlines()) > LONGEST_FILE
    }
    assert long == LONG


def test_core_knows_nothing_of_the_screen():
    for module, names in IMPORTS.items():
        if module.startswith("core"):
            assert not {name for name in names if name.split(".")[0] in ("textual", "mamba_tui")}, module


def test_the_screen_never_names_torch():
    for module, names in IMPORTS.items():
        if module.startswith("mamba_tui"):
            assert "torch" not in {name.split(".")[0] for name in names}, module


@pytest.mark.parametrize("heavy", ["torch", "tokenizers"])
def test_rooms_without_torch_load_without(heavy):
    free = {name for name, (_, without) in rooms().items() if without}
    names = sorted(
        module
        for module in MODULES
        if room(module) in free and not module.endswith(("__main__", "bpe_training"))
    )
    assert len(names) > 80
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {names!r}];"
        f"sys.exit('{heavy} was imported' if '{heavy}' in sys.modules else 0)"
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
