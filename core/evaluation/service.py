"""The evaluation process's operation: how well a checkpoint predicts texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.checkpoint import Payload, config_of, has_manifest
from core.data.corpus.reading import Piece
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.evaluation.loss_sum import TextLoss
from core.evaluation.text_loss import Buckets, DocumentReader, Ids, chunk_tokens, in_chunks
from core.evaluation.texts import EvaluationText, Texts, find_texts
from core.model import GPT
from core.runs.event_fields import plain
from core.system.hardware import resolve_device
from core.system.json_lines import Handlers, Request

Load = Callable[[Path, str], tuple[GPT, Tokenizer, Payload]]
PROGRESS_SECONDS = 0.2
MOST_DOCUMENTS = 10_000
"""Documents that are reported individually; further ones only add to the total."""


class EvaluationService:
    """Answers the requests of `core/system/json_lines.py`.

    evaluate  {"id", "checkpoint", "device": "auto", "texts": [path, ...]}
              ->  loaded, progress ..., document ..., done

    The figures of `document` and `done` are those of `TextLoss.figures`; numbers that are not finite are
    text, as in docs/events.md. Canceling stops between two chunks; the figures so far are reported, and
    `complete` is false.
    """

    def __init__(self, load: Load) -> None:
        self._load = load

    def handlers(self) -> Handlers:
        """The handler of each operation."""
        return {"evaluate": self._on_evaluate}

    def _on_evaluate(self, request: Request) -> None:
        path = Path(request.value("checkpoint", str))
        device = resolve_device(request.value("device", str, "auto"))
        paths = request.paths("texts")
        model, tokenizer, payload = self._load(path, device)
        request.reply(
            "loaded",
            step=payload.get("step"),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            block_size=model.config.block_size,
            device=device,
            verified=has_manifest(path),
        )

        def tick(name: str) -> None:
            if request.canceled:
                raise UserError("stopped before anything was read")

        texts = find_texts(paths, config_of(payload, path).data, path.parent, tick)
        _Evaluation(request, model.eval(), tokenizer, texts).run()


class _Evaluation:
    """The answer to one request."""

    def __init__(self, request: Request, model: GPT, tokenizer: Tokenizer, texts: Texts) -> None:
        self._request, self._model, self._tokenizer, self._texts = request, model, tokenizer, texts
        self._total, self._buckets = TextLoss.empty(), Buckets()
        self._documents = 0
        self._began = self._told = time.monotonic()

    def run(self) -> None:
        """Read everything and report."""
        for text in self._texts.texts:
            self._read_file(text)
        seconds = time.monotonic() - self._began
        figures = {
            **self._total.figures(),
            "documents": self._documents,
            "positions": self._buckets.figures(),
            "skipped": self._texts.skipped,
            "complete": not self._request.canceled,
            "share": self._share,
            "seconds": seconds,
            "tokens_per_second": self._total.streamed.tokens / max(seconds, 1e-9),
        }
        self._reply("done", figures)

    def _read_file(self, text: EvaluationText) -> None:
        for number, document in enumerate(documents(text.pieces(self._texts.options)), 1):
            if self._request.canceled:
                return
            name = text.file.name
            if text.facts.documents > 1:
                name += f", document {number}"
            loss = self._read_document(document, name)
            self._documents += 1
            if self._documents <= MOST_DOCUMENTS and loss.streamed.tokens:
                self._reply("document", {"name": name, "side": text.side, **loss.figures()})

    def _read_document(self, document: Iterator[Piece], name: str) -> TextLoss:
        loss, position = TextLoss.empty(), 0
        reader = DocumentReader(self._model, self._tokenizer.eot)
        counted = _Counted(document, self._tokenizer)
        for chunk in in_chunks(counted.ids(), chunk_tokens(self._model)):
            streamed, windows = reader.read(chunk)
            text = int(self._tokenizer.token_lengths[chunk].sum())
            for one in (loss, self._total):
                one.add(streamed, windows)
                one.bytes += text
            self._buckets.add(position, streamed, windows)
            position += len(chunk)
            self._tell_progress(name)
            if self._request.canceled:
                break
        # If a document wasn't read to its end, the characters are approximately those of its tokens.
        characters = counted.characters
        if self._request.canceled and counted.bytes:
            characters = round(characters * loss.bytes / counted.bytes)
        loss.characters = characters
        self._total.characters += characters
        return loss

    @property
    def _share(self) -> float:
        return min(1.0, self._total.bytes / max(1, self._texts.bytes))

    def _tell_progress(self, name: str) -> None:
        now = time.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        speed = self._total.streamed.tokens / max(now - self._began, 1e-9)
        left = (now - self._began) * (1 / max(self._share, 1e-9) - 1)
        self._reply(
            "progress",
            {
                "name": name, "share": self._share, "tokens_per_second": speed, "seconds_left": left,
                "nats_per_token": self._total.streamed.mean,
            },
        )  # fmt: skip

    def _reply(self, event: str, values: dict[str, Any]) -> None:
        self._request.reply(event, **{key: plain(value) for key, value in values.items()})


class _Counted:
    """The tokens of a document's pieces, counting characters and bytes."""

    def __init__(self, pieces: Iterator[Piece], tokenizer: Tokenizer) -> None:
        self._pieces, self._tokenizer = pieces, tokenizer
        self.characters = 0
        self.bytes = 0

    def ids(self) -> Iterator[Ids]:
        """Token ids (N,), piece by piece."""
        for piece in self._pieces:
            ids = self._tokenizer.encode(piece.text)
            self.characters += len(piece.text)
            self.bytes += int(self._tokenizer.token_lengths[ids].sum())
            yield ids


def documents(pieces: Iterator[Piece]) -> Iterator[Iterator[Piece]]:
    """The pieces of each document. A document must be exhausted before the next one is requested."""
    ahead = next(pieces, None)

    def document() -> Iterator[Piece]:
        nonlocal ahead
        while ahead is not None:
            piece, ahead = ahead, next(pieces, None)
            yield piece
            if ahead is not None and ahead.opens:
                return

    while ahead is not None:
        yield document()
