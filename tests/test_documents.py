"""The documents tell the truth about the tree: files and functions they name exist, links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What happened, and where things were then: not a description of the tree.
HISTORY = {"CHANGELOG.md", "docs/lab-notes.md", "docs/glossary.md", "docs/tour.md"}


def documents():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        return sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.md") if ".venv" not in path.parts)
    return [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]


def names_of_files(text: str) -> set[str]:
    """Words in backticks that are paths of this tree: with a slash and a suffix, or a room's folder."""
    words = {word.strip() for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()}
    rooms = ("core/", "mamba_tui/", "tests/", "benchmarks/", "docs/")
    return {word for word in words if word.startswith(rooms) and not set(word) & set("<>*{}[]$")}


def functions(path: Path) -> set[str]:
    """Every class, function, method (`Class.method`) and top-level name of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    names.add(f"{node.name}.{inner.name}")
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    names.add(f"{node.name}.{inner.target.id}")
    return names


@pytest.mark.parametrize("document", [name for name in documents() if name not in HISTORY])
def test_files_named_in_a_document_exist(document):
    text = (ROOT / document).read_text()
    here = (ROOT / document).parent
    missing = {
        name
        for name in names_of_files(text)
        if not (ROOT / name.rstrip(":,.")).exists() and not (here / name).exists()
    }
    if document.endswith("/README.md"):  # a folder's README names its own files without the folder
        words = re.findall(r"`([\w./]+(?:\.py|\.md|/))`", text)
        missing |= {name for name in words if not (here / name).exists() and not (ROOT / name).exists()}
    assert not missing


@pytest.mark.parametrize("document", documents())
def test_links_lead_to_files(document):
    text = (ROOT / document).read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    broken = {
        target
        for target in targets
        if "://" not in target and not ((ROOT / document).parent / target).resolve().is_relative_to(ROOT)
    }
    broken |= {
        target
        for target in targets
        if "://" not in target and not ((ROOT / document).parent / target).exists()
    }
    assert not broken


def steps() -> list[tuple[str, str]]:
    """`file.py: name` of every step that docs/architecture.md follows through the house."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = re.findall(r"`((?:core|mamba_tui)/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text)
    return [(path, name) for path, names in found for name in re.findall(r"`([\w.]+)`", names)]


def test_the_walk_through_the_house_has_steps():
    assert len(steps()) >= 30


@pytest.mark.parametrize(("path", "name"), steps())
def test_a_step_of_the_walk_exists(path, name):
    assert name in functions(ROOT / path)


@pytest.mark.parametrize("document", documents())
def test_no_document_refers_to_a_folder_outside(document):
    text = (ROOT / document).read_text()
    assert not re.search(r"(?<![\w.])\.\./shared|/work/|ANCHORS", text)
