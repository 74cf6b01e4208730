"""Text files to token streams. `prepare` does everything; docs/text.md explains it with pictures."""

from core.data.corpus.cache import cache_folder, read_split, save_split
from core.data.corpus.pipeline import prepare
from core.data.corpus.progress import Progress
from core.data.corpus.token_stream import Corpus, FileReport, TokenStream

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
