"""The process that prepares text for the console: `python -P -m core.data.server`.

It speaks as `core/system/json_lines.py` says:

    -> {"op": "prepare", "id": 1, "config": {...}}      the flat configuration of core/config/schema.py
    <- {"event": "progress", "id": 1, ...}              the fields of core.data.corpus.Progress
    <- {"event": "corpus", "id": 1, "files": [...], "count": 6, "figures": {...}, "notices": []}
                                                        the fields of FileReport, and of CorpusFigures
    -> {"op": "preview", "id": 2, "name": "a.txt", "start": 0, "count": 1000}
    <- {"event": "preview", "id": 2, "name": "a.txt", "start": 0, "tokens": [[id, text, opens], ...]}

Preparing may take minutes and all cores while the console must keep drawing, hence a process. Canceling
takes effect at the next progress event; finished work is kept.
"""

from __future__ import annotations

import dataclasses
import sys

from core.config.schema import build
from core.data.corpus import Corpus, Progress, prepare
from core.data.corpus.figures import CorpusFigures
from core.data.corpus.preview import token_texts
from core.errors import UserError
from core.system.json_lines import Handlers, Request, serve_standard_streams

MOST_FILES = 20_000
MOST_TOKENS = 20_000
CANCELED = "preparing was canceled; finished work is kept, and the next time continues from there"


class DataService:
    """Prepares the text of a configuration and shows parts of it as tokens."""

    def __init__(self) -> None:
        self._corpus: Corpus | None = None

    def handlers(self) -> Handlers:
        """The handler of each operation."""
        return {"prepare": self._prepare, "preview": self._preview}

    def _prepare(self, request: Request) -> None:
        self._corpus = None
        config = build(request.value("config", dict))

        def tell(progress: Progress) -> None:
            if request.canceled:
                raise UserError(CANCELED)
            request.reply("progress", **dataclasses.asdict(progress))

        try:
            corpus = prepare(config.data, config.training.seed, progress=tell)
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise UserError(f"the text cannot be prepared: {error}") from error
        self._corpus = corpus
        request.reply(
            "corpus",
            files=[dataclasses.asdict(file) for file in corpus.report[:MOST_FILES]],
            count=len(corpus.report),
            figures=dataclasses.asdict(CorpusFigures.of(corpus)),
            notices=corpus.notices,
        )

    def _preview(self, request: Request) -> None:
        if self._corpus is None:
            raise UserError("no text has been prepared yet")
        name = request.value("name", str)
        file = next((file for file in self._corpus.read if file.name == name), None)
        if file is None:
            raise UserError(f"name is {name!r}; accepted: a file of the text that was prepared")
        start = max(0, request.value("start", int))
        count = min(request.value("count", int), MOST_TOKENS)
        try:
            ids = self._corpus.file_tokens(file, start, count)
        except (LookupError, ValueError, OSError) as error:
            raise UserError(f"the text cannot be shown: {error}") from error
        tokens = [[token.id, token.text, token.opens] for token in token_texts(self._corpus.tokenizer, ids)]
        request.reply("preview", name=file.name, start=start, tokens=tokens)


if __name__ == "__main__":
    sys.exit(serve_standard_streams(lambda: DataService().handlers()))
