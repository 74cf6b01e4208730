"""The passages of the dataset that are most similar to one: a list, and the passage under its cursor."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.segment import Segment
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from core.system.json_lines_client import AsyncClient, Event
from core.system.processes import module_command
from mamba_tui.widgets.dialogs import Dialog
from mamba_tui.widgets.numbers import bytes_size
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import clip, pad, safe, visible
from mamba_tui.widgets.token_view import Token

WORDS = 100
"""How many words around the cursor are searched for: as many as a passage of the texts has."""
HITS = 100
_SPLIT_CHARACTER = re.compile("((?:⟨[0-9A-F]{2}⟩)+)")


def passage_around(tokens: Sequence[Token], cursor: int | None) -> str:
    """The words around a token of the Data tab's text, inside its document; "" if there are none."""
    at = min(cursor or 0, len(tokens))
    # An opening token is marked by this shade, see TextView.show.
    opens = [index for index, token in enumerate(tokens) if token.probability == 2.0]
    begin = max((index + 1 for index in opens if index <= at), default=0)
    end = min((index for index in opens if index > at), default=len(tokens))
    at = max(at, begin)
    before = _plain(tokens[begin:at]).split(" ")
    after = _plain(tokens[at:end])
    # The cursor may be inside a word, whose first half is the last of `before`.
    first = before.pop() + after
    words = first.split()[: WORDS // 2]
    kept = " ".join(before).split()
    return " ".join([*kept[len(kept) - min(len(kept), WORDS - len(words)) :], *words])


def _plain(tokens: Sequence[Token]) -> str:
    """The text of tokens, without the symbols that represent line ends and bytes of a character."""
    text = "".join(token.text for token in tokens).replace("⏎\n", "\n")
    parts = _SPLIT_CHARACTER.split(text)
    for index in range(1, len(parts), 2):
        parts[index] = bytes.fromhex(re.sub("[⟨⟩]", "", parts[index])).decode("utf-8", "replace")
    return "".join(parts)


@dataclass(frozen=True)
class Search:
    """What to search for, where, and with which model."""

    passage: str
    folder: str
    checkpoint: str
    checkpoint_name: str


class HitRows(Rows):
    """One passage per row: similarity, position, first words."""

    def __init__(self) -> None:
        super().__init__(id="similar-rows")
        self.hits: list[dict[str, Any]] = []
        self.folder = ""

    @property
    def row_count(self) -> int:
        """All passages of the answer."""
        return len(self.hits)

    @property
    def current(self) -> dict[str, Any] | None:
        """The passage under the cursor."""
        return self.hits[self.cursor] if self.hits else None

    def place(self, hit: dict[str, Any]) -> str:
        """File, document and character."""
        name = os.path.relpath(hit["file"], self.folder) if self.folder else hit["file"]
        document = f", document {hit['document']:,}" if hit["document"] > 1 else ""
        return f"{name}{document}, character {hit['character']:,}"

    def header_segments(self, width: int) -> list[Segment]:
        """Titles."""
        text = f" nearness  {pad('passage', self._place_cells(width))}"
        return [Segment(text, self.style_of("header"))]

    def _place_cells(self, width: int) -> int:
        return max(10, (width - 11) // 2)

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """One passage."""
        hit, cells = self.hits[index], self._place_cells(width)
        words = " ".join(hit["text"].split())
        return [
            Segment(f" {hit['nearness']:>8.3f}  ", self.style_of("accent")),
            Segment(pad(clip(self.place(hit), cells - 2), cells), self.rich_style),
            Segment(pad(clip(words, max(0, width - 11 - cells)), max(0, width - 11 - cells)),
                    self.style_of("muted")),
        ]  # fmt: skip


class SimilarDialog(Dialog):
    """Searches when it opens. The search process is `client`, which outlives the dialog."""

    DEFAULT_CSS = """
    SimilarDialog > .dialog { width: 96%; height: 92%; }
    SimilarDialog Rows { background: $surface; height: 3fr; }
    SimilarDialog Static { height: auto; }
    SimilarDialog #similar-for { max-height: 3; color: $text-muted; }
    SimilarDialog VerticalScroll { height: 2fr; border-top: solid $line; }
    """

    def __init__(self, searcher: Searcher, search: Search) -> None:
        super().__init__()
        self.searcher, self.search = searcher, search
        self.request = 0

    def compose(self) -> ComposeResult:
        """What is searched for, the progress, the passages, and the one under the cursor."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe("Similar passages")
            box.border_subtitle = safe("↑↓ PgUp PgDn move, Esc close")
            yield Static(safe(clip(self.search.passage, 400)), id="similar-for")
            yield Static("", id="similar-state", markup=False)
            yield HitRows()
            with VerticalScroll(can_focus=False):
                yield Static("", id="similar-text", markup=False)

    def on_mount(self) -> None:
        """Start the search."""
        rows = self.query_one(HitRows)
        rows.folder = self.search.folder
        rows.focus()
        self._say(f"starting, with {self.search.checkpoint_name} ...")
        self.run_worker(self._begin(), group="similar")

    async def _begin(self) -> None:
        self.request = await self.searcher.begin(self, self.search)

    def on_unmount(self) -> None:
        """Nobody wants the answer any more."""
        self.searcher.forget(self)

    def take(self, event: Event) -> None:
        """An event of the search."""
        kind = event["event"]
        if kind == "progress":
            share = event["done"] / max(1, event["size"])
            what = f"reading {event['name']}: {share:.0%} of {bytes_size(event['size'])}"
            self._say(what if event["size"] else f"checking {event['name']}")
        elif kind == "done":
            rows = self.query_one(HitRows)
            rows.hits = event["hits"]
            rows.rows_changed()
            self._show()
            self._say(
                f"{len(event['hits']):,} of {event['passages']:,} passages in {event['files']:,} files, "
                f"by {self.search.checkpoint_name}"
            )
        elif kind == "error":
            self._say(event["message"], "$text-error")
        elif kind == "ended":
            self._say("the search process ended unexpectedly; close this and try again", "$text-error")

    @on(Rows.Moved, "#similar-rows")
    def _show(self) -> None:
        rows = self.query_one(HitRows)
        hit = rows.current
        if hit is not None:
            head = (visible(rows.place(hit)), "bold $foreground")
            text = Content.assemble(head, "\n", visible(hit["text"], lines=True))
            self.query_one("#similar-text", Static).update(text)
            self.query_one(VerticalScroll).scroll_home(animate=False)

    def _say(self, text: str, style: str = "$text-muted") -> None:
        self.query_one("#similar-state", Static).update(Content.styled(visible(text), style))


class Searcher:
    """The search process of the Data tab; it keeps its model, so that a second search is quick."""

    def __init__(self, command: list[str] | None = None) -> None:
        command = command or module_command("core.features.server")
        self._client = AsyncClient(self._handle, command, "the search process")
        self._dialog: SimilarDialog | None = None
        self._request = 0

    async def begin(self, dialog: SimilarDialog, search: Search) -> int:
        """Search for a dialog. Returns the request's id. Raises UserError if the process can't be started."""
        self._dialog = dialog
        self._request = await self._client.send(
            "similar", passage=search.passage, texts=[search.folder], checkpoint=search.checkpoint,
            count=HITS, per=f"{WORDS} words",
        )  # fmt: skip
        return self._request

    def forget(self, dialog: SimilarDialog) -> None:
        """The dialog was closed."""
        if self._dialog is dialog:
            self._dialog = None
            dialog.app.run_worker(self._client.cancel(self._request), group="similar", exit_on_error=False)

    async def close(self) -> None:
        """End the process."""
        await self._client.close()

    def _handle(self, event: Event) -> None:
        dialog = self._dialog
        if dialog is None or not dialog.is_mounted:
            return
        if event["event"] == "ended" or event.get("id") == self._request:
            dialog.take(event)
