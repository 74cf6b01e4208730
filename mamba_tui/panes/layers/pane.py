"""Layers: a text, a cursor over its tokens, and what each layer of a checkpoint does there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content

from core.errors import UserError
from mamba_tui import keys
from mamba_tui.backend.run_client import CheckpointRow, RunClient
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.checkpoint_choices import checkpoint_choices, checkpoint_name
from mamba_tui.panes.layers import views
from mamba_tui.panes.layers.inspection import Inspection
from mamba_tui.panes.layers.picture import LABEL_CELLS, Picture, heat_lines
from mamba_tui.panes.layers.text_dialog import TextDialog
from mamba_tui.panes.layers.token_text import TokenText
from mamba_tui.panes.layers.words import word
from mamba_tui.widgets.dialogs import Choice, Prompt
from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.text_line import TextLine
from mamba_tui.widgets.token_view import TokenView

VIEWS = ("lens", "attention", "memory", "layers")
TOP = 5
EMPTY = "Ctrl+L chooses a checkpoint; t types a text."


class LayersPane(Pane):
    """The model, the text, and one of four views of what happens at the token under the cursor."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("inspect")

    def __init__(self, run_client: RunClient, *, id: str, command: Sequence[str] | None = None) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.inspection = Inspection(self._changed, command)
        self.view = "lens"
        self.chosen_layer = 0
        self.group = -1
        self._typed = ""
        self._begun = False

    def compose(self) -> ComposeResult:
        """From top to bottom: model, text, the names of the views, the view."""
        yield TextLine(id="layers-model")
        yield TokenText(EMPTY, id="layers-text")
        yield TextLine(id="layers-views")
        yield Picture(id="layers-picture")

    def shown(self) -> None:
        """Begin with the best checkpoint; the text has the keys."""
        focused = self.screen.focused
        if focused is None or self not in focused.ancestors:
            self.tokens.focus()
        if not self._begun:
            self._begun = True
            self.work(self._load_default(), "load")
        self._show()

    async def on_unmount(self) -> None:
        """The process ends with the console."""
        await self.inspection.close()

    @property
    def tokens(self) -> TokenText:
        """The text."""
        return self.query_one(TokenText)

    @property
    def picture(self) -> Picture:
        """The view."""
        return self.query_one(Picture)

    # -------------------------------------------------------------- choosing

    async def _load_default(self) -> None:
        row = await self.run_client.default_checkpoint()
        if row is not None:
            await self._load(row)

    async def _load(self, row: CheckpointRow) -> None:
        self.tokens.show([])
        self.chosen_layer, self.group = 0, -1
        await self.inspection.load(str(row.info.path), checkpoint_name(row))
        if self._typed:
            await self.inspection.read(text=self._typed)
        else:
            await self.inspection.read()
        self._show()

    def action_choose(self) -> None:
        """Choose the checkpoint."""
        self.work(self._choose(), "choose")

    async def _choose(self) -> None:
        rows = [row for row in await self.run_client.checkpoint_rows() if not row.info.problem]
        if not rows:
            raise UserError("no run has saved a checkpoint yet; in Train, c saves one")
        key = await self.ask(Choice("Checkpoint", checkpoint_choices(rows)))
        chosen = next((row for row in rows if row.key == key), None)
        if chosen is not None:
            await self._load(chosen)

    def action_type_text(self) -> None:
        """Type or paste a text."""
        self.work(self._type_text(), "choose")

    async def _type_text(self) -> None:
        text = await self.ask(TextDialog(self._typed))
        if text:
            await self._read_text(text)

    async def _read_text(self, text: str) -> None:
        self._check_loaded()
        self._typed = text
        await self.inspection.read(text=text)

    def action_open_file(self) -> None:
        """Read a file."""
        self.work(self._open_file(), "choose")

    async def _open_file(self) -> None:
        path = await self.ask(Prompt("Look at a file", "Text file to read:", ""))
        if path:
            self._check_loaded()
            self._typed = ""
            await self.inspection.read(texts=[path])

    def action_validation_text(self) -> None:
        """Read the run's last validation text again."""
        self.work(self._read_validation(), "choose")

    async def _read_validation(self) -> None:
        self._check_loaded()
        self._typed = ""
        await self.inspection.read()

    def _check_loaded(self) -> None:
        if not self.inspection.name:
            raise UserError("no checkpoint is loaded; Ctrl+L chooses one")

    # --------------------------------------------------------------- looking

    def action_view(self, view: str) -> None:
        """Another view."""
        self.view = view
        self._look()

    def action_next_view(self) -> None:
        """The next view."""
        self.action_view(VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)])

    def action_layer(self, by: int) -> None:
        """Another layer."""
        if self.inspection.model is not None:
            count = len(self.inspection.model["layers"])
            self.chosen_layer, self.group = (self.chosen_layer + by) % count, -1
            self._look()

    def action_group(self, by: int) -> None:
        """Another head or channel; before the first is the mean of all."""
        if self.inspection.model is not None:
            groups = int(self.inspection.model["layers"][self.chosen_layer]["groups"])
            self.group = (self.group + 1 + by) % (groups + 1) - 1
            self._look()

    @on(Picture.Turned)
    def _turned(self, turned: Picture.Turned) -> None:
        if turned.layer:
            self.action_layer(turned.layer)
        else:
            self.action_group(turned.group)

    @on(TokenView.Moved)
    def _moved(self) -> None:
        self._look()

    def on_resize(self) -> None:
        """Another part of a map may fit."""
        self._look()

    def _look(self) -> None:
        """Show what is there, and ask for what the view needs and is not there."""
        if self.is_mounted:
            self._show()
            self.work(self._want(), "want")

    async def _want(self) -> None:
        inspection, token = self.inspection, self.tokens.cursor
        if inspection.text is None or token is None:
            return
        if self.view == "lens":
            await inspection.want("lens", token=token, top=TOP)
        elif self.view == "attention":
            width, height = self.picture.size
            await inspection.want(
                "map", layer=self.chosen_layer, group=self.group, token=token,
                queries=max(1, height - 2), keys=max(1, width - LABEL_CELLS - 2),
            )  # fmt: skip
        elif self.view == "memory" and not self._is_attention():
            if self.chosen_layer not in inspection.memory:
                await inspection.want("memory", layer=self.chosen_layer)
        elif inspection.layers is None:
            await inspection.want("layers")

    def _is_attention(self) -> bool:
        model = self.inspection.model
        return model is not None and model["layers"][self.chosen_layer]["kind"] == "standard"

    # --------------------------------------------------------------- showing

    def _changed(self, kind: str) -> None:
        if not self.is_mounted or not self.app.is_running:
            return
        inspection = self.inspection
        if inspection.problem:
            self.say(inspection.problem, problem=True)
            inspection.problem = ""
        if kind == "text" and inspection.text is not None:
            self.tokens.show(inspection.text["tokens"])
            return  # the cursor's move asks for the picture
        self._show()
        wish = inspection.next_wish()
        if wish is not None:
            operation, values = wish
            self.work(inspection.want(operation, **values), "want")

    def _show(self) -> None:
        if not self.is_mounted:
            return
        self.query_one("#layers-model", TextLine).show(self._model_line())
        self.query_one("#layers-views", TextLine).show(self._views_line())
        if self.view != "attention":
            self.tokens.shade_by(())
        lines, kept = self._lines()
        self.picture.show(lines, kept)

    def _model_line(self) -> Content:
        inspection = self.inspection
        if not inspection.name:
            return Content.styled(EMPTY, "$muted")
        parts: list[Content | str | tuple[str, str]] = [(visible(clip(inspection.name, 40)), "bold $accent")]
        if inspection.model is not None:
            parts.append((f"  {compact(inspection.model['parameters'])} parameters", "$muted"))
        if inspection.text is not None:
            parts.append((f"  {visible(clip(inspection.text['name'], 30))}", "$muted"))
        if inspection.state:
            parts.append((f"  {visible(clip(inspection.state, 60))}", "$text-success"))
        return Content.assemble(*parts)

    def _views_line(self) -> Content:
        parts: list[Content | str | tuple[str, str]] = []
        for number, view in enumerate(VIEWS, 1):
            parts.append((f" {number}", "$accent"))
            parts.append((f" {view.capitalize()} ", "bold reverse" if view == self.view else "$muted"))
        token = self.tokens.current
        if token is not None:
            parts.append((f"   token {self.tokens.cursor:,} {word(token.text)}", "$accent"))
        return Content.assemble(*parts)

    @on(events.Click, "#layers-views")
    def _clicked_view(self, event: events.Click) -> None:
        left = event.x - 1
        for view in VIEWS:
            left -= len(view) + 4
            if left < 0:
                self.action_view(view)
                return

    def _lines(self) -> tuple[list[views.Line], int]:
        """What is known of the view, and the line to keep in view."""
        inspection, token = self.inspection, self.tokens.cursor
        model, (width, height) = inspection.model, self.picture.size
        if model is None or inspection.text is None or token is None:
            return [], 0
        shape = model["layers"]
        if self.view == "lens" and inspection.lens is not None:
            return views.lens_lines(inspection.lens, shape, self.chosen_layer, width)
        if self.view == "attention" and inspection.map is not None:
            self.tokens.shade_by(inspection.map["row"])
            head = views.map_head(inspection.map, shape)
            return heat_lines(inspection.map, inspection.text["tokens"], head, height), 0
        if self.view == "memory" and self._is_attention():
            figures = None if inspection.layers is None else inspection.layers["layers"][self.chosen_layer]
            return views.window_lines(figures, self.chosen_layer, int(model["block_size"]), width), 0
        if self.view == "memory" and self.chosen_layer in inspection.memory:
            return views.memory_lines(inspection.memory[self.chosen_layer], shape, width, height, token), 0
        if self.view == "layers" and inspection.layers is not None:
            return views.layer_lines(inspection.layers, self.chosen_layer, width)
        return [[("looking ...", "muted")]], 0
