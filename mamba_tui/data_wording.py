"""What the data command and the Data tab say about files, in the same words."""

from __future__ import annotations

from core.data.corpus import Corpus, FileReport, Progress
from core.data.corpus.token_stream import count
from mamba_tui.widgets.numbers import bytes_size

ENCODINGS = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 mark",
    "utf-16": "UTF-16",
    "utf-32": "UTF-32",
    "utf-16-le": "UTF-16 LE",
    "utf-16-be": "UTF-16 BE",
}
SPLITS = {"train": "train", "validation": "held out", "tail": "end held out", "skipped": "not read"}


def encoding_name(file: FileReport) -> str:
    """A short name of a file's encoding; a question mark behind one that was guessed."""
    guessed = any("guessed" in note for note in file.notes)
    return ENCODINGS.get(file.encoding, file.encoding) + ("?" if guessed else "")


def split_name(file: FileReport) -> str:
    """Which part of a file is trained on."""
    return SPLITS[file.split]


def notes(file: FileReport) -> list[str]:
    """What is remarkable about a file, a sentence each."""
    found = list(file.notes)
    if file.duplicate_of:
        found.append(f"the same text as {file.duplicate_of}")
    return found


def progress_line(progress: Progress) -> str:
    """`encoding 43%, 12.3 MB/s, 8 s left: moby-dick.txt`."""
    return progress.text + (f": {progress.file}" if progress.file and progress.total else "")


def totals(corpus: Corpus) -> list[tuple[str, str]]:
    """The corpus as a whole: titles and values."""
    train, held = corpus.train, corpus.validation
    share = len(held) / max(len(train) + len(held), 1)
    read = corpus.read
    documents = sum(file.documents for file in read)
    lines = sorted(read, key=lambda file: file.longest_line, reverse=True)[:3]
    rows = [
        (
            "text",
            f"{bytes_size(train.text_bytes + held.text_bytes)} in {count(len(read), 'file')}, "
            f"{count(documents, 'document')}",
        ),
        ("vocabulary", f"{corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} tokens"),
        ("training", f"{len(train):,} tokens, {train.bytes_per_token:.2f} bytes each"),
        ("held out", f"{len(held):,} tokens, {held.bytes_per_token:.2f} bytes each, {share:.1%}"),
        ("longest lines", ", ".join(f"{file.longest_line:,} bytes ({file.name})" for file in lines)),
    ]
    twins = sum(bool(file.duplicate_of) for file in read)
    if twins:
        rows.append(("duplicates", f"{count(twins, 'file')} with the text of another one"))
    skipped = sum(file.split == "skipped" for file in corpus.report)
    if skipped:
        rows.append(("not read", f"{count(skipped, 'file')}; the notes say why"))
    return rows
