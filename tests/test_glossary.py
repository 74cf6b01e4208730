"""Words that docs/glossary.md calls gone stay gone: from code, screens and documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEARCHED = ("core", "mamba_tui", "docs", "benchmarks", "README.md", "CONTRIBUTING.md")
# Documents that speak of the words themselves, of the past, or show a program's output.
EXEMPT = {"docs/glossary.md", "docs/lab-notes.md", "docs/tour.md"}

BRITISH = (
    r"(colour|behaviour|neighbour|favour|honour|licence|centre|grey\b|catalogue\b|"
    r"(initial|normal|optim|util|penal|recogn|serial|synchron|summar|organ|memor|emphas|minim|maxim|general|"
    r"categor|final|visual|special|local|real)is(e[srd]?|ing|ation)\b)"
)
# A word of the left column of the glossary -> what to look for.
GONE = {
    "narrow weights": r"\bnarrow (weight|cop|twin|gradient|type|factor)",
    "silent_linear": r"silent_linear",
    "Places": r"\bPlaces\b",
    "lane": r"\blanes?\b",
    "settle": r"(\b|_)settle",
    "Drawer": r"\bDraw(er|n)\b",
    "held out": r"\bheld[ _-]out\b",
    "found": r"(\b|_)found\b *(:=|[:=](?!=)|,)|\b(in|as) found\b(?! in)|\bfound\.\w",
    "Session": r"\bSession\b",
    "close-up": r"\bclose[_ -]up",
    "took back": r"\b(took back|made again)\b",
    "for want of memory": r"\bfor want of\b",
    "colour": BRITISH,
}
# The lanes of a GPU's warps are the field's word, and old checkpoints have a key of that name.
ELSEWHERE = {
    "lane": ("core/ops/triton/", "docs/gpu.md", "core/checkpoint.py"),
}


def texts() -> dict[str, str]:
    tracked = subprocess.run(["git", "ls-files", *SEARCHED], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout", allow_module_level=True)
    names = [name for name in tracked.stdout.splitlines() if name.endswith((".py", ".md", ".toml", ".tcss"))]
    return {
        name: (ROOT / name).read_text() for name in names if name not in EXEMPT and (ROOT / name).exists()
    }


TEXTS = texts()


@pytest.mark.parametrize("word", GONE)
def test_a_word_that_is_gone_stays_gone(word):
    having = {
        name
        for name, text in TEXTS.items()
        if re.search(GONE[word], text, re.IGNORECASE if word == "colour" else 0)
        and not name.startswith(ELSEWHERE.get(word, ()))
    }
    assert not having, "docs/glossary.md says what it is called"


def test_the_glossary_lists_every_word_that_is_gone():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = "\n".join(re.findall(r"^\| (.*?) \|", text.partition("## Words that are gone")[2], re.M))
    assert all(word in rows for word in GONE)
