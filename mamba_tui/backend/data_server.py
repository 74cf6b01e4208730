"""The process behind the Data tab: `python -P -m mamba_tui.backend.data_server`, JSON lines in and out.

    -> {"op": "prepare", "id": 1, "config": {...}}      the flat configuration of core/config/schema.py
    <- {"event": "progress", "id": 1, "fraction": 0.4, "text": "encoding 40%, 9.1 MB/s, 3 s left: a.txt"}
    <- {"event": "corpus", "id": 1, "files": [...], "count": 6, "totals": [[...], ...], "notices": []}
    -> {"op": "preview", "id": 2, "name": "a.txt", "start": 0, "count": 1000}
    <- {"event": "preview", "id": 2, "name": "a.txt", "start": 0, "tokens": [[id, text, opens], ...]}
    -> {"op": "cancel", "id": 3}   takes effect while preparing; what is finished stays
    <- {"event": "error", "id": 1, "message": "one sentence"}      -> {"op": "quit"}, or the end of input

Preparing may take minutes and all cores, and a console must go on drawing: hence a process.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from typing import IO, Any

from core.config.schema import build
from core.config.setting import ConfigError
from core.data.corpus import Corpus, FileReport, Progress, prepare
from core.data.corpus.preview import token_texts
from core.errors import UserError
from mamba_tui import data_wording as data_words

MOST_FILES = 20_000
MOST_TOKENS = 20_000
CANCELLED = "preparing was cancelled; what is finished stays, and the next time goes on from there"

Request = dict[str, Any]


class _CancelledError(Exception):
    """The console wants no more of this."""


class DataProcess:
    """Answers requests one after the other; a thread reads them, so that cancelling works meanwhile."""

    def __init__(self, source: IO[str], sink: IO[str]) -> None:
        self._source = source
        self._sink = sink
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._newest: Request | None = None  # the request to prepare that is still wanted
        self._corpus: Corpus | None = None

    def serve(self) -> None:
        """Until the console goes away."""
        threading.Thread(target=self._read, daemon=True).start()
        while (request := self._requests.get()) is not None:
            try:
                if request.get("op") == "prepare":
                    self._prepare(request)
                elif request.get("op") == "preview":
                    self._preview(request)
            except _CancelledError:
                self._tell("error", request, message=CANCELLED)
            except (ConfigError, UserError) as error:
                self._tell("error", request, message=str(error))
            except (LookupError, TypeError, ValueError, OSError) as error:
                self._tell("error", request, message=f"the text cannot be shown: {error}")

    def _read(self) -> None:
        for line in self._source:
            try:
                request = json.loads(line)
            except ValueError:
                continue
            if not isinstance(request, dict):
                continue
            if request.get("op") == "quit":
                break
            if request.get("op") in ("cancel", "prepare"):
                self._newest = request if request["op"] == "prepare" else None
            self._requests.put(request)
        self._newest = None
        self._requests.put(None)

    def _prepare(self, request: Request) -> None:
        self._corpus = None
        config = build(request["config"])

        def tell(progress: Progress) -> None:
            if request is not self._newest:
                raise _CancelledError
            text = data_words.progress_line(progress)
            self._tell("progress", request, fraction=progress.fraction, text=text)

        corpus = prepare(config.data, config.training.seed, progress=tell)
        self._corpus = corpus
        self._tell(
            "corpus",
            request,
            files=[_row(file) for file in corpus.report[:MOST_FILES]],
            count=len(corpus.report),
            totals=data_words.totals(corpus),
            notices=corpus.notices,
        )

    def _preview(self, request: Request) -> None:
        if self._corpus is None:
            return
        (file,) = (file for file in self._corpus.read if file.name == request["name"])
        start, count = max(0, int(request["start"])), min(int(request["count"]), MOST_TOKENS)
        ids = self._corpus.file_tokens(file, start, count)
        tokens = [[token.id, token.text, token.opens] for token in token_texts(self._corpus.tokenizer, ids)]
        self._tell("preview", request, name=file.name, start=start, tokens=tokens)

    def _tell(self, event: str, request: Request, **fields: object) -> None:
        try:
            self._sink.write(json.dumps({"event": event, "id": request.get("id"), **fields}) + "\n")
            self._sink.flush()
        except (BrokenPipeError, ValueError):
            raise SystemExit(0) from None


def _row(file: FileReport) -> dict[str, object]:
    """A file as the console shows it."""
    return {
        "name": file.name,
        "split": file.split,
        "split_name": data_words.split_name(file),
        "encoding": data_words.encoding_name(file),
        "bytes": file.bytes,
        "documents": file.documents,
        "tokens": file.tokens,
        "validation_tokens": file.validation_tokens,
        "longest_line": file.longest_line,
        "notes": data_words.notes(file),
    }


if __name__ == "__main__":
    DataProcess(sys.stdin, sys.stdout).serve()
