"""Generate: let a checkpoint write, inspect every token, and try alternatives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content

from core.errors import UserError
from core.system.files import write_atomic
from core.system.json_lines_client import AsyncClient, Event
from core.system.processes import module_command
from mamba_tui import keys
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import CheckpointRow, RunClient
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.generate import library
from mamba_tui.panes.generate.lines import knob_line, legend, token_line
from mamba_tui.panes.generate.loading import Loading
from mamba_tui.panes.generate.prompt_commands import carry_out, is_command
from mamba_tui.panes.generate.side import KNOBS, Side, sampling_values
from mamba_tui.widgets.dialogs import Choice, Prompt
from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.prompt_editor import PromptEditor
from mamba_tui.widgets.safe_text import visible
from mamba_tui.widgets.text_line import TextLine
from mamba_tui.widgets.token_view import Token, TokenView
from mamba_tui.wording import free_path

FLUSH_SECONDS = 0.08
EMPTY = "Type how the text begins and press Enter."
ALTERNATIVES = 8


class GeneratePane(Pane):
    """One or two texts, knobs, prompt."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("generate")

    def __init__(
        self, run_client: RunClient, state: ConsoleState, *, id: str, command: Sequence[str] | None = None
    ) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.state = state
        self.client = AsyncClient(
            self._take, command or module_command("core.generation.server"), "the generator"
        )
        self.sides = [Side(0), Side(1)]
        self.loader = Loading(self, run_client, self.client, self.sides)
        self.two = False
        self._news = ""
        self._saved = 0
        self._warming = False
        self._prompt = ""
        self._events: list[Event] = []

    def compose(self) -> ComposeResult:
        """From top to bottom: model, text, what is under the cursor, knobs, prompt."""
        yield TextLine(id="model-line")
        with Horizontal(id="texts"):
            for number in (0, 1):
                with Vertical(classes="side", id=f"side-{number}"):
                    yield TextLine(classes="side-title", id=f"title-{number}")
                    yield TokenView(EMPTY if number == 0 else "", id=f"text-{number}")
        yield TextLine(id="legend")
        yield TextLine(id="token-line")
        yield Knobs(KNOBS, self.state.sampling, id="knobs")
        yield PromptEditor(self.state.prompts, id="prompt")

    def on_mount(self) -> None:
        """Start showing new text."""
        self.set_interval(FLUSH_SECONDS, self._show_news)
        self._show_lines()

    def shown(self) -> None:
        """People come here to type, so the prompt is focused."""
        self.screen.set_focus(self.query_one(PromptEditor))
        if not self._warming:
            self.work(self._warm_up(), "warm-up")
        self._show_lines()

    async def _warm_up(self) -> None:
        self._warming = True
        try:
            await self.loader.warm_up()
        finally:
            self._warming = False
        await self._look_for_news()

    def run_changed(self) -> None:
        """The run that is followed may have saved a checkpoint."""
        history = self.run_client.history
        saved = history.last_checkpoint.step if history is not None and history.last_checkpoint else 0
        if saved != self._saved:
            self._saved = saved
            self.work(self._look_for_news(), "news")

    async def _look_for_news(self) -> None:
        news = await self.loader.news()
        if news and news != self._news and self.in_front:
            self.say(f"Generate: {news}")
        self._news = news
        self._show_lines()

    def remember(self) -> None:
        """Save the knobs; prompts are saved when they are sent."""
        self.state.sampling = dict(self.query_one(Knobs).values)

    async def on_unmount(self) -> None:
        """The generator ends with the console."""
        await self.client.close()

    # -------------------------------------------------------------- loading

    def load(self, row: CheckpointRow, slot: int) -> None:
        """Load a checkpoint into a side."""
        if slot == 1:
            self._show_two(True)
        self.work(self._load(row, slot), f"load-{slot}")

    async def _load(self, row: CheckpointRow, slot: int) -> None:
        self.sides[slot].automatic = False
        await self.loader.load(row, slot)
        await self._look_for_news()

    def action_choose(self) -> None:
        """Choose the checkpoint of the first side."""
        self.work(self._choose(0), "choose")

    async def _choose(self, slot: int) -> None:
        if await self.loader.choose(slot):
            await self._look_for_news()

    def action_beside(self) -> None:
        """Show a second text beside the first, or remove it."""
        self.work(self._beside(), "choose")

    async def _beside(self) -> None:
        if self.two:
            self._show_two(False)
        else:
            if not self.sides[1].name:
                await self._choose(1)
            self._show_two(bool(self.sides[1].name))

    def _show_two(self, two: bool) -> None:
        self.two = two
        self.set_class(two, "-two")
        self._show_lines()

    # -------------------------------------------------------------- writing

    def active_sides(self) -> list[Side]:
        """The sides that are being written to."""
        return self.sides if self.two else self.sides[:1]

    @on(PromptEditor.Submitted)
    def action_generate(self) -> None:
        """Write from the prompt, or do what a command in it says."""
        editor, knobs = self.query_one(PromptEditor), self.query_one(Knobs)
        knobs.finish()
        if is_command(editor.text):
            try:
                self.say(carry_out(editor.text, knobs))
            except UserError as error:
                self.say(error, problem=True)
            else:
                editor.text = self._prompt
                editor.move_cursor(editor.document.end)
            return
        self._prompt = editor.text
        self.work(self._generate(), "write")

    async def _generate(self) -> None:
        prompt = self.query_one(PromptEditor).text
        fresh = not any(side.variants.texts for side in self.sides)
        for side in self.active_sides():
            await self.loader.load_default(side.slot, again=fresh)
        if self._news:  # it may be what was loaded just now
            await self._look_for_news()
        others: dict[str, int] = {}
        for side in self.active_sides():
            await self._halt(side)
            self._view(side).show_text(side.variants.begin([Token(prompt)] if prompt else []))
            values = sampling_values(self.query_one(Knobs).values)
            side.begin(await self.client.send(
                "generate", prompt=prompt, slot=side.slot, alternatives=ALTERNATIVES, **others, **values
            ))  # fmt: skip
            others = {"beside": side.request}
        self._show_lines()

    def action_continue_text(self) -> None:
        """Continue after the last token."""
        self.work(self._continue(), "write")

    async def _continue(self) -> None:
        """Continue what is shown, which may be an earlier text than the generator is in the middle of."""
        others: dict[str, int] = {}
        for side in self.active_sides():
            if side.writing:
                continue
            view = self._view(side)
            if not view.tokens:
                await self._generate()
                return
            values = sampling_values(self.query_one(Knobs).values)
            last = next((token for token in reversed(view.tokens) if token.index >= 0), None)
            view.action_edge(1)
            if side.variants.newest_shown or last is None:
                request = await self.client.send(
                    "generate", prompt="", slot=side.slot, alternatives=ALTERNATIVES, **others, **values,
                    **{"continue": True},
                )  # fmt: skip
            else:
                request = await self.client.send(
                    "branch", of=last.generation, index=last.index + 1, token=None, alternatives=ALTERNATIVES,
                    **others, **values,
                )  # fmt: skip
                side.variants.written = view.tokens
            side.begin(request)
            others = {"beside": request}
        self._show_lines()

    def action_variant(self, by: int) -> None:
        """Show an earlier or later text of the side in use, or of both."""
        focused = self.screen.focused
        sides = [side for side in self.active_sides() if self._view(side) is focused] or self.active_sides()
        for side in sides:
            tokens = side.variants.turn(by)
            if tokens is not None:
                self._view(side).show_text(tokens)
        self._show_lines()

    def action_library(self) -> None:
        """Choose a prompt, or keep the one in the editor."""
        self.work(self._library(), "choose")

    async def _library(self) -> None:
        editor, kept = self.query_one(PromptEditor), self.state.library
        answer = await self.ask(Choice("Prompts", library.choices(editor.text, kept, self.state.prompts)))
        if answer is None:
            return
        prompt = library.chosen(answer, editor.text, kept)
        if prompt is None:
            self.say("Kept in the library" if answer == library.KEEP else "Removed from the library")
            return
        editor.text = prompt
        editor.move_cursor(editor.document.end)
        editor.focus()

    def action_regenerate(self) -> None:
        """Again, with the next seed."""
        knobs = self.query_one(Knobs)
        knobs.values["seed"] = int(knobs.values["seed"]) + 1
        knobs.refresh()
        self.action_generate()

    def action_halt(self) -> None:
        """Stop at once; if nothing is being written, focus the prompt."""
        writing = [side for side in self.sides if side.writing]
        if not writing:
            self.query_one(PromptEditor).focus()
        for side in writing:
            self.work(self._halt(side), f"halt-{side.slot}")

    async def _halt(self, side: Side) -> None:
        if side.writing:
            request, side.stopping = side.request, True
            await self.client.cancel(request)

    @on(TokenView.Wanted)
    def _wanted(self, event: TokenView.Wanted) -> None:
        side = self.sides[int((event.view.id or "text-0")[-1])]
        if event.what == "copy":
            self.app.copy_to_clipboard(event.view.text)
            self.say("copied")
        elif event.what == "branch":
            self.work(self._branch(side, None, next_seed=True), "write")
        else:
            self.work(self._alternatives(side), "choose")

    async def _alternatives(self, side: Side) -> None:
        token = self._view(side).current
        if token is None or token.index < 0:
            return
        if not token.alternatives or not token.alternative_ids:
            self.say("the alternatives of this token are no longer known")
            return
        choices = [
            (str(place), repr(visible(text)), f"{probability:.1%}")
            for place, (text, probability) in enumerate(token.alternatives)
        ]
        answer = await self.ask(Choice("Another token here", choices))
        if answer is not None:
            place = int(answer)
            await self._branch(side, token.alternative_ids[place])

    async def _branch(self, side: Side, token_id: int | None, *, next_seed: bool = False) -> None:
        view = self._view(side)
        token, place = view.current, view.cursor
        if token is None or place is None or token.index < 0:
            self.say("go to a token of the answer with the arrows first")
            return
        await self._halt(side)
        knobs = self.query_one(Knobs)
        if next_seed:
            knobs.values["seed"] = int(knobs.values["seed"]) + 1
            knobs.refresh()
        values = sampling_values(knobs.values)
        request = await self.client.send(
            "branch",
            of=token.generation,
            index=token.index,
            token=token_id,
            alternatives=ALTERNATIVES,
            **values,
        )
        view.show_text(side.variants.begin(view.tokens[:place]))
        side.begin(request)
        self._show_lines()

    # -------------------------------------------------------------- showing

    def _view(self, side: Side) -> TokenView:
        return self.query_one(f"#text-{side.slot}", TokenView)

    def _take(self, event: Event) -> None:
        self._events.append(event)

    def _show_news(self) -> None:
        """Everything that has arrived since the last call, at most twelve times a second."""
        if not self._events or not self.app.is_running:
            return
        events, self._events = self._events, []
        new: dict[int, list[Token]] = {0: [], 1: []}
        for event in events:
            side = next((side for side in self.sides if side.owns(event.get("id"))), None)
            problem = None
            if event["event"] == "ended":
                for each in self.sides:
                    each.lost()
                problem = "the generator ended; the next Enter starts it again"
            elif event["event"] == "error":
                problem = str(event.get("message"))
            if side is not None:
                new[side.slot] += side.take(event)
            if problem is not None:
                self.say(problem, problem=True)
        for side in self.sides:
            if side.variants.newest_shown:
                self._view(side).append(new[side.slot])
            else:
                side.variants.written += new[side.slot]
        self._show_lines()

    @on(TokenView.Moved)
    @on(Knobs.Changed)
    def _show_lines(self) -> None:
        if not self.is_mounted:
            return
        for side in self.sides:
            self.query_one(f"#title-{side.slot}", TextLine).show(side.line())
        self.query_one("#model-line", TextLine).show(self._model_line())
        self.query_one("#token-line", TextLine).show(self._token_line())
        if self._view(self.sides[0]).surprise:
            self.query_one("#legend", TextLine).show(legend(self._view_in_use()))

    def _model_line(self) -> Content:
        first = self.sides[0]
        if self.two:
            line = Content.styled("two checkpoints in turns, the same prompt and seed", "$muted")
        else:
            line = first.line(empty="Enter loads the best checkpoint; Ctrl+L chooses one")
        parts = [(f"  {self._news}", "bold $accent")] if self._news else []
        if first.variants.words:
            parts.append((f"  {first.variants.words}", "$muted"))
        return Content.assemble(line, *parts)

    def _view_in_use(self) -> TokenView:
        focused = self.screen.focused
        return focused if isinstance(focused, TokenView) else self._view(self.sides[0])

    def _token_line(self) -> Content:
        if isinstance(self.screen.focused, Knobs):
            return knob_line(self.query_one(Knobs))
        return token_line(self._view_in_use(), self.size.width)

    def action_surprise(self) -> None:
        """Turn shading by surprise on or off."""
        for side in self.sides:
            view = self._view(side)
            view.surprise = not view.surprise
        self.set_class(self._view(self.sides[0]).surprise, "-surprise")
        self._show_lines()

    def action_write_file(self) -> None:
        """Write the text to a file."""
        self.work(self._write_file(), "choose")

    async def _write_file(self) -> None:
        view = self._view_in_use()
        if not view.tokens:
            raise UserError("there is no text to write yet")
        name = await self.ask(Prompt("Write the text", "File to write:", str(free_path(Path("text.txt")))))
        if not name:
            return
        path, text = Path(name).expanduser(), view.text
        await off_thread(lambda: write_atomic(path, text.encode("utf-8", "replace"), private=False))
        self.say(f"wrote {compact(len(text))} characters to {path}")

    async def written(self) -> None:
        """Wait until nothing is being written (for tests and recordings)."""
        while any(side.writing for side in self.sides) or self._events:
            await asyncio.sleep(0.02)

    def values(self) -> dict[str, Any]:
        """The knobs' values."""
        return dict(self.query_one(Knobs).values)
