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
from mamba_tui.panes.generate.side import KNOBS, Side, sampling_values
from mamba_tui.widgets.dialogs import Choice, Prompt
from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.numbers import age, compact, loss
from mamba_tui.widgets.prompt_editor import PromptEditor
from mamba_tui.widgets.safe_text import clip, visible
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
        self.two = False
        self._events: list[Event] = []

    def compose(self) -> ComposeResult:
        """From top to bottom: model, text, what is under the cursor, knobs, prompt."""
        yield TextLine(id="model-line")
        with Horizontal(id="texts"):
            for number in (0, 1):
                with Vertical(classes="side", id=f"side-{number}"):
                    yield TextLine(classes="side-title", id=f"title-{number}")
                    yield TokenView(EMPTY if number == 0 else "", id=f"text-{number}")
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
        side = self.sides[slot]
        side.loading(f"{row.run.name} step {row.info.step:,}{_marks(row)}")
        self._show_lines()
        side.load_request = await self.client.send(
            "load", checkpoint=str(row.info.path), slot=slot, device="auto"
        )
        self._show_lines()

    async def _load_default(self, slot: int) -> None:
        row = await self.run_client.default_checkpoint()
        if row is None:
            raise UserError("no run has saved a checkpoint yet; in Train, c saves one")
        await self._load(row, slot)

    def action_choose(self) -> None:
        """Choose the checkpoint of the first side."""
        self.work(self._choose(0), "choose")

    async def _choose(self, slot: int) -> None:
        rows = [row for row in await self.run_client.checkpoint_rows() if not row.info.problem]
        if not rows:
            raise UserError("no run has saved a checkpoint yet; in Train, c saves one")
        choices = [
            (
                row.key,
                f"{row.run.name}  step {row.info.step:,}{_marks(row)}",
                f"validation {loss(row.info.validation_loss)}, {age(row.info.time)} ago",
            )
            for row in rows[:1000]
        ]
        key = await self.ask(Choice("Checkpoint", choices))
        chosen = next((row for row in rows if row.key == key), None)
        if chosen is not None:
            await self._load(chosen, slot)

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
        """Write from the prompt."""
        self.query_one(Knobs).finish()
        self.work(self._generate(), "write")

    async def _generate(self) -> None:
        prompt = self.query_one(PromptEditor).text
        for side in self.active_sides():
            if not side.name:
                await self._load_default(side.slot)
            await self._halt(side)
            view = self._view(side)
            view.clear()
            if prompt:
                view.append([Token(prompt)])
            values = sampling_values(self.query_one(Knobs).values)
            side.begin(await self.client.send(
                "generate", prompt=prompt, slot=side.slot, alternatives=ALTERNATIVES, **values
            ))  # fmt: skip
        self._show_lines()

    def action_continue_text(self) -> None:
        """Continue after the last token."""
        self.work(self._continue(), "write")

    async def _continue(self) -> None:
        values = sampling_values(self.query_one(Knobs).values)
        for side in self.active_sides():
            if side.writing:
                continue
            if not self._view(side).tokens:
                await self._generate()
                return
            self._view(side).action_edge(1)
            values["continue"] = True
            side.begin(await self.client.send(
                "generate", prompt="", slot=side.slot, alternatives=ALTERNATIVES, **values
            ))  # fmt: skip
        self._show_lines()

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
        view.cut(place)
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
            if new[side.slot]:
                self._view(side).append(new[side.slot])
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

    def _model_line(self) -> Content:
        first = self.sides[0]
        if not self.two:
            return first.line(empty="Enter loads the best checkpoint; Ctrl+L chooses one")
        return Content.styled("two checkpoints, the same prompt and seed", "$muted")

    def _token_line(self) -> Content:
        focused = self.screen.focused
        if isinstance(focused, Knobs):
            return Content.styled(visible(focused.knob.help), "$muted")
        view = focused if isinstance(focused, TokenView) else self.query_one("#text-0", TokenView)
        token = view.current
        if token is None or token.probability is None:
            return Content.styled(
                "Tab goes to the text: arrows choose a token, Enter shows others for it.", "$muted"
            )
        parts: list[Content | str | tuple[str, str]] = [
            (repr(visible(clip(token.text, 20))), "bold"),
            f" {token.probability:.1%}   ",
        ]
        room = max(20, self.size.width) - 34
        for text, probability in token.alternatives:
            shown = f"{visible(clip(text, 12))!r} {probability:.0%}  "
            if len(shown) > room:
                break
            room -= len(shown)
            parts.append((shown, "$accent" if text == token.text else "$muted"))
        return Content.assemble(*parts)

    def action_surprise(self) -> None:
        """Turn shading by surprise on or off."""
        for side in self.sides:
            view = self._view(side)
            view.surprise = not view.surprise

    def action_write_file(self) -> None:
        """Write the text to a file."""
        self.work(self._write_file(), "choose")

    async def _write_file(self) -> None:
        focused = self.screen.focused
        view = focused if isinstance(focused, TokenView) else self._view(self.sides[0])
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


def _marks(row: CheckpointRow) -> str:
    """Whether a checkpoint is the best or the newest of its run."""
    marks = [name for name, applies in (("★ best", row.info.best), ("newest", row.latest)) if applies]
    return f"  {', '.join(marks)}" if marks else ""
