"""Text files to token streams. `prepare` does it all; docs/text.md explains it with drawings."""

from core.corpus.cache import cache_folder, read_split, save_split
from core.corpus.pipeline import prepare
from core.corpus.progress import Progress
from core.corpus.stream import Corpus, FileReport, TokenStream

__all__ = [
    "Corpus",
    "FileReport",
    "Progress",
    "TokenStream",
    "cache_folder",
    "prepare",
    "read_split",
    "save_split",
]
