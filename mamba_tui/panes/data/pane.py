"""Data: how every text file was used, the progress of preparing, and the text as the model sees it."""

from __future__ import annotations

import asyncio
import math
import os
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from core.config.schema import RunConfig, flat
from core.data.corpus import FileReport, Progress
from core.data.corpus.figures import CorpusFigures
from core.errors import UserError
from core.runs.events import FilesEvent
from core.system.json_lines_client import AsyncClient, Event
from core.system.processes import module_command
from mamba_tui import data_wording, keys
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.document import Document
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.data.file_table import FileTable, TextFile, TextView, losses_words
from mamba_tui.panes.data.similar import Search, Searcher, SimilarDialog, passage_around
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.token_view import TokenView

STRETCH = 1000
PAUSE = 0.08
BAR = 20


class DataPane(Pane):
    """Head, table of files, view of the text. core/data/server.py does the work."""

    DEFAULT_CSS = css_beside(__file__)
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("data")

    def __init__(self, document: Document, run_client: RunClient, *, id: str) -> None:
        super().__init__(id=id)
        self.document = document
        self.run_client = run_client
        self._losses_of: FilesEvent | None = None
        self._corpus_words: list[str] = []
        self.process = AsyncClient(
            self._handle, module_command("core.data.server"), "the process that prepares the text"
        )
        self.searcher = Searcher()
        self.preparing = 0
        self.prepared_for: tuple[object, ...] = ()
        self.start = 0
        self._wanted_preview = 0

    def compose(self) -> ComposeResult:
        """Head, files, text."""
        yield Static(id="data-head", markup=False)
        with Vertical(id="data-body"):
            yield FileTable(id="data-files")
            with Vertical(id="data-rest"):
                yield Static(id="data-about", markup=False)
                yield TextView("", id="data-text")

    @property
    def files(self) -> FileTable:
        """The table."""
        return self.query_one(FileTable)

    @property
    def text(self) -> TextView:
        """The view of the text."""
        return self.query_one(TextView)

    @property
    def config(self) -> RunConfig:
        """The configuration that is being worked on."""
        return self.document.config

    def shown(self) -> None:
        """Prepare if the configuration has changed since; focus the table."""
        focused = self.screen.focused
        if focused is None or self not in focused.ancestors:
            self.screen.set_focus(self.files)
        if self._needs() != self.prepared_for:
            self.action_prepare()

    def _needs(self) -> tuple[object, ...]:
        """Everything that the prepared text depends on."""
        return self.config.data, self.config.training.seed

    async def close(self) -> None:
        """End the process."""
        await self.process.close()
        await self.searcher.close()

    # -------------------------------------------------------------- actions

    def action_prepare(self) -> None:
        """Prepare the text, or check it again."""
        self.work(self._prepare(), "data-prepare")

    async def _prepare(self) -> None:
        self.prepared_for = self._needs()
        self._head(f"checking {self.config.data.dataset_dir} ...")
        if self.preparing:
            await self._cancel()
        self.preparing = await self.process.send("prepare", config=flat(self.config))

    def action_cancel(self) -> None:
        """Stop preparing."""
        if self.preparing:
            self.work(self._cancel(), "data-cancel")

    async def _cancel(self) -> None:
        await self.process.cancel(self.preparing)

    def action_sample(self) -> None:
        """Write the built-in sample text."""
        if self.run_client.read_only:
            self.say("this console is read-only", problem=True)
            return
        self.work(self._sample(), "data-sample")

    async def _sample(self) -> None:
        from core.data.sample_corpus import write_sample

        self.say(await off_thread(write_sample, self.config.data.dataset_dir))
        await self._prepare()

    def action_similar(self) -> None:
        """Find the passages nearest to the words around the cursor."""
        passage = passage_around(self.text.tokens, self.text.cursor)
        if not passage.strip():
            self.say("there are no words here to look for; choose a file with text", problem=True)
            return
        self.work(self._similar(passage), "data-similar")

    async def _similar(self, passage: str) -> None:
        row = await self.run_client.default_checkpoint()
        if row is None:
            raise UserError("no run has saved a checkpoint yet; in Train, c saves one")
        name = f"{row.run.name}, step {row.info.step:,}"
        search = Search(passage, self.config.data.dataset_dir, str(row.info.path), name)
        await self.ask(SimilarDialog(self.searcher, search))

    def action_turn(self, by: int) -> None:
        """Move to the next or previous part of the text."""
        file = self.files.current
        if file is not None and 0 <= self.start + by * STRETCH < file.tokens:
            self.start += by * STRETCH
            self.work(self._preview(), "data-preview")

    @on(Rows.Selected, "#data-files")
    def _read_text(self) -> None:
        self.text.focus()

    @on(Rows.Moved, "#data-files")
    def _other_file(self) -> None:
        self.start = 0
        self._about()
        self.work(self._preview(), "data-preview")

    async def _preview(self) -> None:
        # While the cursor runs over a hundred files, only the one it stops at is worth reading.
        await asyncio.sleep(PAUSE)
        file = self.files.current
        if file is None or not file.tokens or self.preparing:
            self.text.show([])
            return
        self._wanted_preview = await self.process.send(
            "preview", name=file.name, start=self.start, count=STRETCH
        )

    # --------------------------------------------------------------- events

    def _handle(self, event: Event) -> None:
        kind, current = event["event"], event.get("id") == self.preparing
        if kind in ("progress", "error", "ended"):
            self._corpus_words = []
        if kind == "progress" and current:
            progress = Progress(**_fields(event))
            filled = round(BAR * progress.fraction)
            words = clip(data_wording.progress_line(progress), 200)
            self._head("█" * filled + "░" * (BAR - filled) + " " + words)
        elif kind == "corpus" and current:
            self._take_corpus(event)
        elif kind == "preview" and event.get("id") == self._wanted_preview:
            self.text.show([(token, text, opens) for token, text, opens in event["tokens"]])
            self._about()
        elif kind == "error" and current:
            self.preparing = 0
            self._head(visible(event["message"]), "$text-error")
            self.files.show([])
            self.text.show([])
            self._about()
        elif kind == "ended":
            self.preparing = 0
            self.prepared_for = ()
            self._head(
                "the process that prepares the text ended unexpectedly; p starts it again", "$text-error"
            )

    def _take_corpus(self, event: dict[str, Any]) -> None:
        self.preparing = 0
        totals = dict(data_wording.totals(CorpusFigures.from_json(event["figures"])))
        more = event["count"] - len(event["files"])
        lines = [
            f"{totals['text']}; vocabulary: {totals['vocabulary']}",
            f"training {totals['training']}; validation {totals['validation']}",
            *event["notices"],
        ]
        if more > 0:
            lines.append(f"{more:,} more files are included but not listed here")
        self._corpus_words = lines
        self.files.show([TextFile.of(FileReport(**row)) for row in event["files"]])
        self._show_losses()
        self._other_file()

    # --------------------------------------------------------------- losses

    def run_changed(self) -> None:
        """Show the losses of files when the followed run has new ones."""
        if self._corpus_words and self._losses() is not self._losses_of:
            self._show_losses()

    def _losses(self) -> FilesEvent | None:
        """Of the followed run's best evaluation, if it reads the texts that are shown."""
        history = self.run_client.history
        if history is None or history.files is None or history.run is None:
            return None
        folder = str(history.run.config.get("dataset_dir", ""))
        here = os.path.abspath(os.path.expanduser(self.config.data.dataset_dir))
        return history.files if os.path.abspath(os.path.expanduser(folder)) == here else None

    def _show_losses(self) -> None:
        losses = self._losses_of = self._losses()
        rows = losses.files if losses is not None else ()
        self.files.show_losses({name: bits for name, _, _, bits in rows if math.isfinite(bits)})
        words = list(self._corpus_words)
        if losses is not None and self.run_client.run is not None and self.files.losses:
            words.append(losses_words(self.run_client.run.name, losses.step, self.files.losses))
        self._head("\n".join(visible(line) for line in words))

    def _head(self, text: str, style: str = "") -> None:
        self.query_one("#data-head", Static).update(Content.styled(text, style) if style else Content(text))

    @on(TokenView.Moved)
    def _about(self) -> None:
        """The file under the cursor, or the token under the text's cursor, in a few words."""
        file, token = self.files.current, self.text.current
        parts: list[Content | str | tuple[str, str]] = []
        if file is not None:
            parts.append((visible(clip(file.name, 60)), "bold $foreground"))
            if file.tokens:
                last = min(self.start + STRETCH, file.tokens)
                parts.append(f"  tokens {self.start:,} to {last:,} of {file.tokens:,}")
                parts.append(f", longest line {file.longest_line:,} bytes")
        if token is not None:
            at = self.start + (self.text.cursor or 0)
            size = len(token.text.replace("⏎\n", "\n").encode("utf-8", "replace"))
            parts.append(f"\ntoken {at:,}: id {token.index}, {size} byte{'s' if size != 1 else ''}")
        elif file is not None and file.notes:
            parts.append("\n" + visible(clip("; ".join(file.notes), 300)))
        self.query_one("#data-about", Static).update(Content.assemble(*parts))


def _fields(event: Event) -> dict[str, Any]:
    """An event's own fields, without those that every event has."""
    return {key: value for key, value in event.items() if key not in ("event", "id")}
