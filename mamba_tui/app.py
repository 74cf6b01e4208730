"""The console: its tabs, everything that they share, and how it ends."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import actions, on
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.reactive import reactive
from textual.screen import Screen
from textual.theme import ThemeProvider
from textual.widgets import ContentSwitcher

from core.config.files import WORKING_FILE
from core.errors import UserError
from mamba_tui import keys, themes
from mamba_tui.backend.checkpoint_trash import Trash
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_alerts import RunAlerts
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.run_trash import RunTrash
from mamba_tui.document import Document
from mamba_tui.launch_options import LaunchOptions
from mamba_tui.messages import (
    CheckpointsChosen,
    ConfigurationChosen,
    Notice,
    RunListRequested,
    RunRenamed,
    RunsChosen,
    RunsQueued,
    RunStarted,
    RunStateChanged,
)
from mamba_tui.panes.base import Pane
from mamba_tui.panes.make import TABS, Belongings, make_pane
from mamba_tui.widgets.bars import KeyBar, TabBar
from mamba_tui.widgets.safe_text import safe
from mamba_tui.widgets.status_line import StatusLine

if TYPE_CHECKING:
    from textual.dom import DOMNode

    from mamba_tui.commands import Command

__all__ = ["LaunchOptions", "MambaTUI", "main"]

# Four times a second looks alive and leaves the processor to the run.
FLUSH_SECONDS = 0.25


class MambaTUI(App[int]):
    """The application. Panes are imported and mounted when they are first shown."""

    TITLE = "mamba-tui"
    ENABLE_COMMAND_PALETTE = True
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("app")
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    tab = reactive("configure", init=False)

    def __init__(self, options: LaunchOptions, *, state_path: Path | None = None, notice: str = "") -> None:
        super().__init__()
        from mamba_tui.backend.console_state import ConsoleState

        self.options = options
        self.document = Document(options.config, options.config_path or WORKING_FILE)
        self.run_client = RunClient(options, RunAlerts(self._alert))
        self.trash = Trash()
        self.run_trash = RunTrash()
        self.state = ConsoleState.load(state_path)
        for theme in themes.THEMES:
            self.register_theme(theme)
        self.theme = self.state.theme if self.state.theme in self.available_themes else themes.DEFAULT
        # Kept by hand: the top screen may be a dialog, and near the end there may be none.
        self.tab_bar = TabBar(list(TABS))
        self.panes = ContentSwitcher(id="panes")
        self.status_line = StatusLine()
        self.generator_command: list[str] | None = None
        self.inspector_command: list[str] | None = None
        self._notice = notice
        self._dirty = False
        self._failed = False
        self._mounting = asyncio.Lock()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Series colors for themes that don't define them."""
        return themes.fallback_variables(self.current_theme.dark)

    # ---------------------------------------------------------------- shape

    def compose(self) -> ComposeResult:
        """The frame; panes are added when they are first shown."""
        yield self.tab_bar
        yield self.panes
        yield KeyBar()
        yield self.status_line

    async def on_mount(self) -> None:
        """Show the first pane, then start everything that can wait."""
        known = [name for name, *_ in self.tab_bar.tabs]
        first = self.state.tab if self.state.tab in known else "configure"
        first = "train" if self.options.attach else first
        self.tab_bar.active = first
        await self._show(first)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        if self._notice:
            self.say(self._notice, problem=True)
        self.run_worker(self._watch(), group="run_client", name="watch")
        self.set_interval(FLUSH_SECONDS, self._show_news)

    async def _watch(self) -> None:
        # These import numpy, which takes a while, and the screen must not wait for it.
        for name in ("core.runs", "core.runs.history"):
            await off_thread(importlib.import_module, name)
        from core.runs import Run

        if self.options.attach:
            self.run_client.follow(Run(self.options.checkpoints / self.options.attach))
        else:
            newest = await self.run_client.newest_run()
            if newest is not None and self.run_client.run is None and not self.run_client.starting:
                self.run_client.follow(newest.run)
                if newest.status.alive:
                    self.say(f"{newest.name} is training. F3 shows it.")
        self.run_worker(self._take_over_deleted(), group="run_client", name="deleted")
        self.run_worker(off_thread(importlib.import_module, "mamba_tui.panes.runs.pane"), group="ahead")
        await self.run_client.follow_for_ever(self._changed)

    async def _take_over_deleted(self) -> None:
        """Report checkpoints that were deleted in a console that was killed before it was closed."""
        if self.options.read_only:
            return
        from core.runs import list_runs

        folders = [run.path for run in await off_thread(list_runs, self.options.checkpoints)]
        count = await off_thread(self.trash.take_over, folders)
        if count:
            what = "A checkpoint was" if count == 1 else f"{count:,} checkpoints were"
            self.say(
                f"{what} deleted in a console that was killed. Ctrl+Z in Checkpoints (F4) undeletes, "
                "until this console is closed."
            )

    @on(RunStateChanged)
    def _changed(self) -> None:
        self._dirty = True

    def _show_news(self) -> None:
        """Show news four times a second, and only on the visible pane."""
        self._show_status()
        if not self._dirty or not self.is_running:
            return
        self._dirty = False
        pane = self.pane
        if pane is not None:
            pane.run_changed()

    def _show_status(self) -> None:
        from mamba_tui.wording import short_status

        bar = self.tab_bar
        bar.status, bar.short_status, bar.status_style = short_status(self.run_client)

    @property
    def pane(self) -> Pane | None:
        """The pane on screen; None near the end, when widgets disappear one by one."""
        if not self.is_running or not self.panes.is_attached:
            return None
        current = self.panes.visible_content
        return current if isinstance(current, Pane) else None

    async def _show(self, tab: str) -> None:
        switcher = self.panes
        async with self._mounting:  # a second caller must not find a pane without its widgets
            if not switcher.query(f"#{tab}"):
                await switcher.mount(self._make_pane(tab))
        switcher.current = tab
        self.tab = tab
        self.tab_bar.active = tab
        pane = self.pane
        if pane is not None:
            pane.shown()

    def _make_pane(self, tab: str) -> Pane:
        own = Belongings(self.document, self.run_client, self.state, self.options, self.trash, self.run_trash)
        return make_pane(tab, own, self.generator_command, self.inspector_command)

    # ------------------------------------------------- what panes ask for

    @on(Notice)
    def _say_notice(self, notice: Notice) -> None:
        self.say(notice.text, problem=notice.problem)

    @on(RunStarted)
    async def _show_started_run(self, started: RunStarted) -> None:
        await self._show("train")
        self.say(started.sentence)

    @on(CheckpointsChosen)
    async def _load_checkpoints(self, chosen: CheckpointsChosen) -> None:
        from mamba_tui.panes.generate.pane import GeneratePane

        await self._show("generate")
        pane = self.panes.query_one(GeneratePane)
        for slot, row in chosen.slots.items():
            pane.load(row, slot)

    @on(ConfigurationChosen)
    async def _edit_configuration(self, chosen: ConfigurationChosen) -> None:
        from mamba_tui.panes.configure.pane import ConfigPane

        await self._show("configure")
        self.document.replace(chosen.config, chosen.source)
        self.panes.query_one(ConfigPane).all_changed()
        self.say(f"Configure has the {chosen.source}. Ctrl+Z undoes it.")

    @on(RunsChosen)
    async def _show_runs_together(self, chosen: RunsChosen) -> None:
        self._follow(chosen.names[0])
        if len(chosen.names) > 1:
            self.state.overlays = sorted(chosen.names[1:])
        await self._show("train")

    @on(RunsQueued)
    async def _show_queued_runs(self, queued: RunsQueued) -> None:
        from mamba_tui.panes.runs.pane import RunsPane

        await self._show("runs")
        self.panes.query_one(RunsPane).show_only(queued.filter)
        self.say(queued.sentence)

    @on(RunRenamed)
    def _rename_run(self, renamed: RunRenamed) -> None:
        state = self.state
        state.overlays = [renamed.new if name == renamed.old else name for name in state.overlays]
        if self.run_client.run is not None and self.run_client.run.name == renamed.old:
            self._follow(renamed.new)

    def _follow(self, name: str) -> None:
        """Follow a run, unless that is done already."""
        from core.runs import Run

        if self.run_client.run is None or self.run_client.run.name != name:
            self.run_client.follow(Run(self.run_client.root / name))

    @on(RunListRequested)
    def _list_runs(self) -> None:
        self.run_worker(self._choose_run(), group="runs", exclusive=True)

    async def _choose_run(self) -> None:
        from mamba_tui.panes.runs.runs_screen import RunsScreen

        overlays = set(self.state.overlays)
        name = await self.push_screen_wait(RunsScreen(self.run_client, overlays))
        if name is not None:
            self._follow(name)
            overlays.discard(name)
        self.state.overlays = sorted(overlays)
        if self.pane is not None:
            self.pane.run_changed()

    # -------------------------------------------------------------- talking

    def say(self, message: object, *, problem: bool = False) -> None:
        """Show a message in the status line."""
        self.status_line.say(message, problem=problem)

    def _alert(self, sentence: str, sequence: str, problem: bool) -> None:
        self.say(sentence, problem=problem)
        if sequence and self._driver is not None:
            self._driver.write(sequence)

    def show_messages(self) -> None:
        """Show the latest messages again."""
        from mamba_tui.widgets.dialogs import Page

        self.push_screen(Page("Messages", self.status_line.history()))

    def action_help(self) -> None:
        """Show all keys, this tab's first."""
        from mamba_tui.widgets.help import HelpScreen

        if not any(isinstance(screen, HelpScreen) for screen in self.screen_stack):
            self.push_screen(HelpScreen(list(keys.sections(self.tab))))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette's entries: everything that keys do in any tab, and the themes."""
        from mamba_tui.commands import all_commands

        labels = {tab: label for tab, _, label in TABS}
        for command in all_commands(labels, self.tab):
            run = partial(self.call_later, self._run_command, command)
            yield SystemCommand(command.title, command.shortcut, run)
        yield SystemCommand("Choose a color theme", "", self.search_themes)
        yield SystemCommand("Show the last messages again", "", self.show_messages)

    async def _run_command(self, command: Command) -> None:
        """Go to where a command belongs, and run it if it is possible now."""
        context, target = command.context, cast("DOMNode", self)
        if context.tab:
            await self._show(context.tab)
            assert self.pane is not None
            target = self.pane.target(context.widget)
        _, name, parameters = actions.parse(command.action)
        if target.check_action(name, parameters) is False:
            self.say(f"Not possible now: {command.title}")
            return
        await self.run_action(command.action, target)

    async def action_tab(self, tab: str) -> None:
        """Go to a tab."""
        if len(self.screen_stack) == 1 and any(name == tab for name, *_ in self.tab_bar.tabs):
            await self._show(tab)

    async def action_next_tab(self, by: int) -> None:
        """Go to a neighboring tab."""
        names = [name for name, *_ in self.tab_bar.tabs]
        await self.action_tab(names[(names.index(self.tab) + by) % len(names)])

    async def on_tab_bar_chosen(self, event: TabBar.Chosen) -> None:
        """A tab was clicked."""
        await self._show(event.tab)

    def action_next_theme(self) -> None:
        """Switch to the next of our own themes; the palette has all of them."""
        at = themes.NAMES.index(self.theme) if self.theme in themes.NAMES else -1
        self.theme = themes.NAMES[(at + 1) % len(themes.NAMES)]
        self.say(f"Theme: {self.theme}")

    def watch_theme(self, theme: str) -> None:
        """Remember the theme."""
        self.state.theme = theme

    def action_command_palette(self) -> None:
        """All commands, to search."""
        from mamba_tui.widgets.modal import Palette

        if not any(isinstance(screen, Palette) for screen in self.screen_stack):
            self.push_screen(Palette())

    def search_themes(self) -> None:
        """All color themes, to search."""
        from mamba_tui.widgets.modal import Palette

        self.push_screen(Palette(providers=[ThemeProvider], placeholder="Search for themes…"))

    def action_screenshot_file(self) -> None:
        """Save a picture of the screen in the working folder."""
        from core.system.files import write_atomic
        from mamba_tui.wording import free_path

        path = free_path(Path(f"mamba-tui-{self.tab}.svg"))
        try:
            write_atomic(path, self.export_screenshot(title="mamba-tui").encode(), private=False)
        except OSError as error:
            self.say(f"{path} cannot be written: {error.strerror}", problem=True)
            return
        self.say(f"Screenshot saved as {path}")

    async def action_start(self) -> None:
        """Start training with the configuration on screen."""
        if len(self.screen_stack) > 1:
            return
        from mamba_tui.panes.configure.pane import ConfigPane

        if not self.panes.query(ConfigPane):
            await self._show("configure")
        self.panes.query_one(ConfigPane).start()

    # -------------------------------------------------------------- the end

    def _handle_exception(self, error: Exception) -> None:
        """An internal error: its traceback goes to a file, the screen shows a sentence.

        In tests it is raised, as Textual does.
        """
        if self.is_headless:
            super()._handle_exception(error)
            return
        if self._failed:  # anything that breaks while the first failure ends the program adds nothing
            return
        self._failed = True
        from mamba_tui.quitting import last_words, write_crash_report

        report = write_crash_report(error, self.options.checkpoints)
        self.exit(1, return_code=1, message=safe(last_words(error, report, self.run_client)))

    def action_leave(self) -> None:
        """Quit; if a run is training, ask what to do with it."""
        self.run_worker(self._leave(), group="leave")

    async def action_quit(self) -> None:
        """Textual's own quit (command palette) asks too."""
        self.action_leave()

    async def _leave(self) -> None:
        from mamba_tui.quitting import ask_before_quitting
        from mamba_tui.widgets.dialogs import Question

        if any(isinstance(screen, Question) for screen in self.screen_stack):
            return
        try:
            last_words = await ask_before_quitting(self.push_screen_wait, self.document, self.run_client)
        except UserError as error:
            self.say(error, problem=True)
            return
        if last_words is not None:
            self._close_console(last_words)

    def _close_console(self, message: str = "") -> None:
        for pane in self.panes.query(Pane):
            pane.remember()
        self.trash.empty()
        self.run_trash.empty()
        self.state.tab = self.tab
        self.state.save()
        self.exit(0, message=safe(message) if message else None)


def main(options: LaunchOptions) -> int:
    """Open the console. Returns the exit code of the program."""
    from mamba_tui.backend.console_state import default_path
    from mamba_tui.terminal_encoding import adapt_terminal

    # Textual removes NO_COLOR from the environment; a trainer that we start should still find it.
    no_color = os.environ.get("NO_COLOR")
    app = MambaTUI(options, state_path=default_path(options.checkpoints), notice=adapt_terminal())
    if no_color is not None:
        os.environ["NO_COLOR"] = no_color
    result = app.run()
    return app.return_code or (result or 0)
