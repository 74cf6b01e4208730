"""Descriptions of files that the data command and the Data tab share."""

from __future__ import annotations

from core.data.corpus import FileReport, Progress
from core.data.corpus.figures import CorpusFigures
from core.data.corpus.token_stream import count
from mamba_tui.widgets.numbers import bytes_size

ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 (BOM)",
    "utf-16": "UTF-16",
    "utf-32": "UTF-32",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
}
SPLITS = {"train": "train", "validation": "validation", "tail": "train + tail", "skipped": "not read"}


def encoding_name(file: FileReport) -> str:
    """A short name of a file's encoding, with a question mark if it was guessed."""
    guessed = any("guessed" in note for note in file.notes)
    return ENCODINGS.get(file.encoding, file.encoding) + ("?" if guessed else "")


def split_name(file: FileReport) -> str:
    """Which part of a file is used for training."""
    return SPLITS[file.split]


def notes(file: FileReport) -> list[str]:
    """Notable facts about a file, one sentence each."""
    sentences = list(file.notes)
    if file.duplicate_of:
        sentences.append(f"the same text as {file.duplicate_of}")
    return sentences


def progress_line(progress: Progress) -> str:
    """`encoding 43%, 12.3 MB/s, 8 s left: moby-dick.txt`."""
    return progress.text + (f": {progress.file}" if progress.file and progress.total else "")


def totals(figures: CorpusFigures) -> list[tuple[str, str]]:
    """The whole corpus: titles and values."""
    share = figures.validation_tokens / max(figures.train_tokens + figures.validation_tokens, 1)
    lines = ", ".join(f"{size:,} bytes ({name})" for size, name in figures.longest_lines)
    rows = [
        (
            "text",
            f"{bytes_size(figures.text_bytes)} in {count(figures.files, 'file')}, "
            f"{count(figures.documents, 'document')}",
        ),
        ("vocabulary", f"{figures.tokenizer}, {figures.vocab_size:,} tokens"),
        ("training", f"{figures.train_tokens:,} tokens, {figures.train_bytes_per_token:.2f} bytes each"),
        (
            "validation",
            f"{figures.validation_tokens:,} tokens, {figures.validation_bytes_per_token:.2f} bytes each, "
            f"{share:.1%}",
        ),
        ("longest lines", lines),
    ]
    if figures.duplicates:
        rows.append(("duplicates", f"{count(figures.duplicates, 'file')} with the same text as another"))
    if figures.skipped:
        rows.append(("not read", f"{count(figures.skipped, 'file')}; the notes say why"))
    return rows
