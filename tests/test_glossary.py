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
    "narrow weights": r"\bnarrow (weight|cop|twin|gradient)",
    "silent_linear": r"silent_linear",
    "Places": r"\bPlaces\b",
    "lane": r"\blanes?\b",
    "settle": r"\bsettle",
    "Drawer": r"\bDraw(er|n)\b",
    "held out": r"\bheld[ _-]out\b",
    "found": r"\bfound\b *(:=|[:=](?!=)|,)|\b(in|as) found\b(?! in)|\bfound\.\w",
    "Session": r"\bSession\b",
    "close-up": r"\bclose[_ -]up",
    "took back": r"\b(took back|made again)\b",
    "for want of memory": r"\bfor want of\b",
    "colour": BRITISH,
}
# The lanes of a GPU's warps are the field's word; Gutenberg's marker lines are quoted as they are.
ALLOWED = {"lane": ("core/ops/triton/", "docs/gpu.md")}
# Files that still have the word. Entries only ever go.
STILL: dict[str, set[str]] = {
    "narrow weights": {
        "core/training/bf16_weights.py",
        "core/training/cuda_graph_step.py",
    },
    "lane": {
        "core/data/loader.py",
        "core/training/cuda_graph_step.py",
        "core/training/step.py",
        "docs/events.md",
    },
    "settle": {
        "core/system/device_usage.py",
    },
    "held out": {
        "benchmarks/recipe.py",
        "benchmarks/recipe_arm.py",
        "benchmarks/recipe_experiments.py",
        "core/data/corpus/cache.py",
        "core/data/corpus/cleaning.py",
        "core/data/corpus/split.py",
        "core/data/sample_corpus.py",
        "core/training/build.py",
        "mamba_tui/cli/data.py",
        "mamba_tui/data_wording.py",
        "mamba_tui/panes/data/pane.py",
    },
    "found": {
        "core/checkpoint.py",
        "core/data/corpus/assembly.py",
        "core/data/corpus/cache.py",
        "core/data/corpus/corpus_tokenizer.py",
        "core/data/corpus/encode.py",
        "core/data/corpus/listing.py",
        "core/data/corpus/pipeline.py",
        "core/data/corpus/reading.py",
        "core/data/corpus/survey.py",
        "core/data/corpus/workers.py",
        "core/runs/events.py",
        "core/sweeps/axes.py",
        "core/sweeps/effects.py",
        "core/sweeps/progress.py",
        "core/training/build.py",
        "core/training/checkpoint_saver.py",
        "core/training/compilation.py",
        "core/training/cuda_graph_step.py",
        "core/training/process.py",
        "core/training/step.py",
        "core/training/trainer.py",
        "mamba_tui/backend/checkpoint_trash.py",
        "mamba_tui/cli/completion.py",
        "mamba_tui/cli/run_options.py",
        "mamba_tui/cli/runs.py",
        "mamba_tui/cli/sweep.py",
        "mamba_tui/data_wording.py",
        "mamba_tui/panes/checkpoints/details.py",
        "mamba_tui/panes/configure/estimates.py",
        "mamba_tui/panes/configure/files.py",
        "mamba_tui/panes/configure/settings_list.py",
        "mamba_tui/panes/generate/side.py",
        "mamba_tui/panes/runs/runs_screen.py",
        "mamba_tui/panes/train/charts.py",
        "mamba_tui/widgets/bars.py",
        "mamba_tui/widgets/chart/frame.py",
    },
    "Session": {
        "core/training/process.py",
    },
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
        and not name.startswith(ALLOWED.get(word, ()))
    }
    assert having <= STILL.get(word, set()), "docs/glossary.md says what it is called"


def test_the_glossary_lists_every_word_that_is_gone():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = "\n".join(re.findall(r"^\| (.*?) \|", text.partition("## Words that are gone")[2], re.M))
    assert all(word in rows for word in GONE)
