"""Configure: design the hourglass, set everything else, start."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from core.config.schema import RunConfig
from core.config.text_key import text_key
from mamba_tui import keys
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.run_estimate import Estimate, Survey, estimate, survey
from mamba_tui.document import Document, problem_sentence
from mamba_tui.launch_options import LaunchOptions
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.configure.files import ConfigurationFiles
from mamba_tui.panes.configure.layer_dialogs import ask_for_list, ask_for_ramp
from mamba_tui.panes.configure.layer_table import LayerTable
from mamba_tui.panes.configure.next_run import NextRun
from mamba_tui.panes.configure.settings_list import SettingsList
from mamba_tui.panes.configure.sweep import Sweep
from mamba_tui.widgets.hourglass import Hourglass
from mamba_tui.widgets.numbers import bytes_size, compact
from mamba_tui.widgets.plan_words import expected_words, plan_words, time_range
from mamba_tui.widgets.safe_text import clip, safe, visible
from mamba_tui.widgets.text_line import TextLine


class ConfigPane(Pane):
    """The first thing that users see."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("config")

    def __init__(self, document: Document, run_client: RunClient, options: LaunchOptions, *, id: str) -> None:
        super().__init__(id=id)
        self.document = document
        self.run_client = run_client
        self.files = ConfigurationFiles(self, document, run_client, self.all_changed)
        self.next_run = NextRun(self, document, run_client, options)
        self.sweep = Sweep(self, document, run_client, self.next_run)
        self.known = Survey()
        self.cost: Estimate | None = None
        self._surveyed: tuple[object, str] | None = None

    def compose(self) -> ComposeResult:
        """Layers at the left or top, settings at the right or below."""
        read_only = self.run_client.read_only
        yield Static(id="banner")
        with Vertical(id="body"):
            with Vertical(id="design"):
                yield LayerTable(self.document, read_only=read_only, id="layers")
                yield TextLine(id="totals")
                yield Hourglass(id="drawing")
            with Vertical(id="rest"):
                yield Input(placeholder="find a setting; Esc clears", id="find")
                yield SettingsList(self.document, read_only=read_only, id="settings")
                yield TextLine(id="hint")
        yield TextLine(id="plan")
        with Horizontal(id="start-row"):
            yield Button(safe("▶ Start  Ctrl+R"), id="start", variant="success", compact=True)
            yield TextLine(id="ready")

    def on_mount(self) -> None:
        """Show the totals at once, and slower results when they are known."""
        self.values_changed()
        self.call_after_refresh(self._survey_soon)

    def shown(self) -> None:
        """Focus the layers first."""
        if self.screen.focused is None or self.screen.focused not in self.walk_children():
            self.screen.set_focus(self.query_one(LayerTable))
        if self.is_mounted:
            self._survey_soon()

    def run_changed(self) -> None:
        """A run started or ended: say so beside Start."""
        self._show_ready()

    # -------------------------------------------------------------- totals

    def _survey_soon(self) -> None:
        self.work(self._survey(), "survey")

    async def _survey(self) -> None:
        config = self.document.config
        self._surveyed = _looked_at(config)
        self.known = await off_thread(survey, config, self.run_client.root)
        self.values_changed()

    @on(LayerTable.Edited)
    @on(SettingsList.Edited)
    def values_changed(self) -> None:
        """Update totals, Start and hint after every key."""
        config = self.document.config
        if self._surveyed is not None and _looked_at(config) != self._surveyed:
            self._survey_soon()
        layers, totals = self.query_one(LayerTable), self.query_one("#totals", TextLine)
        self.query_one(Hourglass).show(self.document.values["n_embd"], self.document.values["attention_type"])
        self.cost = None
        if self.document.problems:
            layers.show_costs(())
            count = len(self.document.problems)
            first = next(iter(self.document.problems.values()))
            more = f" (and {count - 1} more)" if count > 1 else ""
            totals.show(Content.styled(visible(problem_sentence(first) + more), "$text-error"), layout=True)
        else:
            cost = self.cost = estimate(config, self.known)
            if cost.plan is not None:
                self.document.follow_plan(cost.plan.config)
            layers.show_costs(cost.layers)
            totals.show(self._totals(config, cost), layout=True)
        plan, advice = self._plan(), self._advice()
        words = Content.assemble((visible(plan), "$foreground"), visible(f"; {advice}" if advice else ""))
        self.query_one("#plan", TextLine).show(words if plan else Content(""), layout=True)
        self._show_ready()
        self._show_hint()
        self._show_banner()
        self.query_one(SettingsList).refresh()

    def _totals(self, config: RunConfig, cost: Estimate) -> Content:
        about = "" if cost.exact else "about "
        tokens = config.training.batch_size * config.model.block_size
        tokens *= config.training.gradient_accumulation_steps
        nbsp = "\N{NO-BREAK SPACE}"
        memory = f"{bytes_size(cost.memory)}"
        parts: list[Content | tuple[str, str]] = [
            (f"{about}{compact(cost.parameters)} parameters", "bold $foreground"),
            (f"   {compact(cost.flops_per_token)}FLOP a token", ""),
            (f"   {compact(tokens)} tokens a step", ""),
            ("\n", ""),
            ("memory ", ""),
            (memory.replace(" ", nbsp), "$foreground" if cost.fits else "bold $text-error"),
        ]
        if cost.memory_free:
            parts.append((f" of {bytes_size(cost.memory_free)} free", ""))
        if cost.duration is not None:
            speed = compact(cost.duration.tokens_per_second)
            parts.append((f"   {speed} tokens/s", ""))
            parts.append((f"   {time_range(cost.duration.low, cost.duration.high)} in all", ""))
        return Content.assemble(*parts)

    def _plan(self) -> str:
        """What Start would do, in words; "" while there is no text."""
        cost = self.cost
        if cost is None or cost.plan is None or cost.duration is None:
            return ""
        planned = cost.plan
        return plan_words(
            planned.text.tokens,
            planned.parameters,
            planned.passes,
            cost.duration.seconds,
            exact=planned.text.exact and cost.exact,
        )

    def _advice(self) -> str:
        """The expected loss, and whether the model suits the text."""
        if self.cost is None or self.cost.plan is None:
            return ""
        planned = self.cost.plan
        return ". ".join(part for part in (expected_words(planned.expected), planned.hint) if part)

    def _show_ready(self) -> None:
        if not self.is_mounted:
            return
        button, ready = self.query_one("#start", Button), self.query_one("#ready", TextLine)
        reason = self.next_run.reason_against()
        button.disabled = bool(reason)
        if reason:
            ready.show(Content.styled(visible(reason), "$text-error"))
            return
        changed = (
            "unsaved changes (Ctrl+S saves)" if self.document.changed else visible(self.document.path.name)
        )
        wanted = self.next_run.name
        name = f"run {visible(clip(wanted, 30))}" if wanted else "a new run"
        ready.show(Content.assemble((f"{name}", "$foreground"), (f"   {changed}", "$muted")))

    @on(SettingsList.Moved)
    def _show_hint(self) -> None:
        settings, layers = self.query_one(SettingsList), self.query_one(LayerTable)
        if layers.has_focus:
            self.query_one("#hint", TextLine).show(Content.styled(visible(layers.hint()), ""))
            return
        text, style = settings.hint()
        color = "$text-error" if style == settings.style_of("problem") else ""
        self.query_one("#hint", TextLine).show(Content.styled(visible(text), color))

    def _show_banner(self) -> None:
        banner = self.query_one("#banner", Static)
        empty = self.known.files == 0
        banner.set_class(empty, "-on")
        if empty:
            folder = visible(clip(self.document.config.data.dataset_dir, 60))
            banner.update(
                safe(
                    f"There is no text in {folder} yet. Start offers a sample (Python's language "
                    "reference, 0.5 MB); or put .txt files there."
                )
            )

    # ------------------------------------------------------------- starting

    @on(Button.Pressed, "#start")
    def start(self) -> None:
        """Start a run with what is on screen."""
        self.finish_editing()
        self.work(self._start(), "start")

    async def _start(self) -> None:
        await self.next_run.start()
        self._show_ready()
        self._survey_soon()

    def action_start_after(self) -> None:
        """Start when another run has ended."""
        self.finish_editing()
        self.work(self.next_run.choose_what_to_wait_for(), "start")

    def action_sweep(self) -> None:
        """Start a run for every variant of what is on screen."""
        self.finish_editing()
        self.work(self.sweep.ask_and_start(self.known), "start")

    # -------------------------------------------------------------- actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing is changed in read-only mode."""
        changing = ("undo", "redo", "save", "load", "preset", "name_run", "start_after", "sweep")
        return not (self.run_client.read_only and action in changing)

    def finish_editing(self) -> None:
        """Keep the value that is being typed."""
        self.query_one(LayerTable).finish()
        self.query_one(SettingsList).finish()

    def all_changed(self) -> None:
        """Redraw everything, and end any typing."""
        self.query_one(LayerTable).edit = None
        self.query_one(SettingsList).edit = None
        self.query_one(LayerTable).rows_changed()
        self.query_one(LayerTable).refresh(layout=True)
        self.values_changed()

    def action_undo(self) -> None:
        """Undo the last change."""
        done = self.document.undo()
        self.say(f"Undone: {done}" if done is not None else "Nothing to undo")
        self.all_changed()

    def action_redo(self) -> None:
        """Redo it."""
        done = self.document.redo()
        self.say(f"Redone: {done}" if done is not None else "Nothing to redo")
        self.all_changed()

    def action_save(self) -> None:
        """Save to the file of the configuration, or another."""
        self.finish_editing()
        if self.document.problems:
            self.say("Not saved: " + self.next_run.reason_against(), problem=True)
            return
        self.work(self.files.save(), "dialog")

    def action_load(self) -> None:
        """Load a file."""
        self.work(self.files.load(), "dialog")

    def action_preset(self) -> None:
        """Choose a preset."""
        self.work(self.files.choose_preset(), "dialog")

    def action_compare(self) -> None:
        """Differences to something else."""
        self.work(self.files.compare(), "dialog")

    def action_name_run(self) -> None:
        """Name the run that Start begins."""
        self.work(self._name_run(), "dialog")

    async def _name_run(self) -> None:
        await self.next_run.ask_for_name()
        self.values_changed()

    @on(LayerTable.Wanted)
    def _dialog_wanted(self, event: LayerTable.Wanted) -> None:
        self.work(self._ramp() if event.what == "ramp" else self._list(), "dialog")

    async def _ramp(self) -> None:
        if await ask_for_ramp(self, self.document):
            self.all_changed()

    async def _list(self) -> None:
        text = await ask_for_list(self, self.document)
        if text:
            self.query_one(LayerTable).paste(text)

    def action_filter(self) -> None:
        """Find a setting."""
        find = self.query_one("#find", Input)
        find.add_class("-on")
        find.focus()

    @on(Input.Changed, "#find")
    def _filter(self, event: Input.Changed) -> None:
        self.query_one(SettingsList).filter(event.value)
        self._show_hint()

    @on(Input.Submitted, "#find")
    def _leave_search(self) -> None:
        self.query_one(SettingsList).focus()

    def key_escape(self) -> None:
        """End the search."""
        find = self.query_one("#find", Input)
        if find.has_class("-on"):
            find.value = ""
            find.remove_class("-on")
            self.query_one(SettingsList).focus()


def _looked_at(config: RunConfig) -> tuple[object, str]:
    """The text and the device that a survey belongs to."""
    return text_key(config.data, config.training.seed), config.hardware.device
