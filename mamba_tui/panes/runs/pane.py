"""Runs: all runs in one table, to filter, sort and compare, and what can be done with each."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from core.errors import UserError
from core.runs.listing.columns import COLUMNS, chosen
from core.runs.listing.summary import RunSummary
from core.sweeps.plan import common_tag
from mamba_tui import keys
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.run_trash import RunTrash
from mamba_tui.messages import CheckpointsChosen, ConfigurationChosen, RunsChosen, RunStarted
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.runs.actions import RunActions, unknown_column
from mamba_tui.panes.runs.details import comparison_content, details_content, effects_content
from mamba_tui.panes.runs.sweep_actions import SweepActions
from mamba_tui.panes.runs.table import RunTable
from mamba_tui.widgets.dialogs import Page, Prompt
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.text_line import TextLine

REFRESH_SECONDS = 2.0
# The time for one slice of long histories, after which the table is drawn again.
SLICE_SECONDS = 0.05
# Between readings the processor is free for keys and drawing.
PAUSE_SECONDS = 0.02
# How long the first look may take before the table is shown.
LOOK_SECONDS = 0.08
NONE = "No runs yet. Ctrl+R starts one."
LOW = 18


class RunsPane(Pane):
    """Table and details."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("runs")

    def __init__(self, run_client: RunClient, state: ConsoleState, trash: RunTrash, *, id: str) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.state = state
        self.actions = RunActions(self, run_client, trash)
        self.sweeps = SweepActions(self, run_client)
        # Kept by hand: near the end widgets disappear one by one, and the list may still be read.
        self.table = RunTable(id="runs-table")
        self._details = Static()
        self._line = TextLine(id="runs-line")

    def compose(self) -> ComposeResult:
        """Filter, table, details, and one line on what is listed."""
        yield Input(placeholder="lr>1e-3 mamba2 -failed tags=sweep-001; Esc clears", id="runs-filter")
        with Vertical(id="runs-body"):
            yield self.table
            with VerticalScroll(id="runs-details", can_focus=False):
                yield self._details
        yield Static(NONE, id="no-runs", markup=False)
        yield self._line

    def on_mount(self) -> None:
        """Restore columns, order and filter; refresh every two seconds."""
        super().on_mount()
        table, state = self.table, self.state
        if state.run_columns:
            try:
                table.columns = chosen(" ".join(state.run_columns), "columns")
            except UserError:  # from another version
                state.run_columns = []
        table.sort = state.run_sort if table.can_sort(state.run_sort) else "changed"
        table.reverse = state.run_sort_reverse
        self.set_interval(REFRESH_SECONDS, self._refresh_if_shown)

    def shown(self) -> None:
        """Refresh, and focus the table."""
        focused = self.screen.focused
        if focused is None or self not in focused.ancestors:
            self.screen.set_focus(self.table)  # at once, because another tab may be in front later
        self.refresh_soon()

    def on_resize(self) -> None:
        """A low screen has room for the table only."""
        self.set_class(self.size.height < LOW, "-low")

    def run_changed(self) -> None:
        """Another run may be followed."""
        table = self.table
        followed = self.run_client.run.name if self.run_client.run else ""
        if followed != table.followed:
            table.followed = followed
            table.refresh()

    def theme_changed(self) -> None:
        """Redraw the states in their new colors."""
        self.table.refresh()

    def remember(self) -> None:
        """Save columns and order."""
        table = self.table
        self.state.run_columns = list(table.columns)
        self.state.run_sort, self.state.run_sort_reverse = table.sort, table.reverse
        self.run_client.runs.save()

    # -------------------------------------------------------------- showing

    def _refresh_if_shown(self) -> None:
        if self.in_front:
            self.refresh_soon()

    def refresh_soon(self) -> None:
        """Look at all runs, and read on in long histories while there are any."""
        if not any(worker.group == "runs" and worker.is_running for worker in self.workers):
            self.work(self._refresh_runs(), "runs")

    async def _refresh_runs(self) -> None:
        runs = self.run_client.runs
        self._show(await off_thread(runs.look, LOOK_SECONDS))
        while self.in_front and (more := await off_thread(runs.read_on, SLICE_SECONDS)) is not None:
            self._show(more)
            await asyncio.sleep(PAUSE_SECONDS)

    def _show(self, runs: list[RunSummary]) -> None:
        table, before = self.table, self.table.current
        self.run_changed()
        table.show(runs)
        self.set_class(not runs, "-empty")
        self._show_line()
        if table.current != before:
            self.show_details()

    def _show_line(self) -> None:
        table, line = self.table, self._line
        if table.problem:
            line.show(Content.styled(visible(table.problem), "$text-error"))
            return
        count, known = len(table.rows), len(table.everything)
        words = "1 run" if known == 1 else f"{known:,} runs"
        if count != known:
            words = f"{count:,} of {words}"
        unread = sum(not run.complete for run in table.everything)
        parts = [words, f"sorted by {table.sort}{', reversed' if table.reverse else ''}"]
        if table.filter_text:
            parts.append(f"filter {clip(table.filter_text, 40)}")
        if table.marked:
            parts.append(f"{len(table.marked)} marked")
        if table.only_differences:
            parts.append("only what differs (Ctrl+D ends)")
        if unread:
            parts.append(f"reading {unread} long histories")
        line.show(Content(visible("   ".join(parts))))

    @on(Rows.Moved, "#runs-table")
    def show_details(self) -> None:
        """The run under the cursor; if several are marked, their differences."""
        self._details.update(self._details_content())

    def _details_content(self) -> Content:
        several = self.table.chosen if self.table.marked else []
        if len(several) > 1:
            return comparison_content(several)
        return details_content(self.table.current) if self.table.current is not None else Content("")

    def _changed(self) -> None:
        self.table.reorder()
        self._show_line()
        self.show_details()

    # -------------------------------------------------------------- looking

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In read-only mode nothing can be changed."""
        changing = ("note", "tags", "rename", "resume", "delete", "undelete", "use_configuration")
        return not (self.run_client.read_only and action in changing)

    def one(self) -> RunSummary:
        """The run under the cursor. Raises UserError if there is none."""
        if self.table.current is None:
            raise UserError("no run is selected; Esc ends the filter")
        return self.table.current

    def some(self) -> list[RunSummary]:
        """The marked runs, or the one under the cursor. Raises UserError if there is none."""
        return self.table.chosen if self.table.marked else [self.one()]

    @on(Rows.Selected, "#runs-table")
    def _follow(self) -> None:
        if self.table.current is not None:
            self.post_message(RunsChosen([self.table.current.name]))

    def action_mark(self) -> None:
        """Mark or unmark, and go to the next row."""
        table = self.table
        if table.current is None:
            return
        name = table.current.name
        if name in table.marked:
            table.marked.remove(name)
        else:
            table.marked.append(name)
        table.refresh()
        table.action_move_cursor(1)
        self._show_line()
        self.show_details()

    def action_curves(self) -> None:
        """Draw the marked runs together."""
        if self.table.current is not None:
            self.post_message(RunsChosen([run.name for run in self.some()]))

    def action_differences(self) -> None:
        """Only the settings that differ, of the marked or of all listed runs."""
        table = self.table
        table.only_differences = not table.only_differences
        table.first_column = 0
        self._changed()

    def action_sort(self) -> None:
        """Sort by the next column on screen."""
        table = self.table
        names = ["changed", "name", *table.shown_columns]
        at = names.index(table.sort) + 1 if table.sort in names else 0
        self._sort(names[at % len(names)], False)

    def action_sort_reverse(self) -> None:
        """Reverse the order."""
        self._sort(self.table.sort, not self.table.reverse)

    def _sort(self, name: str, reverse: bool) -> None:
        self.table.sort, self.table.reverse = name, reverse
        self._changed()

    @on(Rows.HeaderClicked, "#runs-table")
    def _header(self, event: Rows.HeaderClicked) -> None:
        name = self.table.column_at(event.x)
        if name:
            self._sort(name, name == self.table.sort and not self.table.reverse)

    def action_columns(self) -> None:
        """Choose columns."""
        self.work(self._choose_columns(), "dialog")

    async def _choose_columns(self) -> None:
        text = await self.ask(
            Prompt(
                "Columns",
                f"Any of: {', '.join(COLUMNS)}, and every setting such as dropout. In this order:",
                " ".join(self.table.columns),
                check=unknown_column,
            )
        )
        if text is not None:
            self.table.columns = chosen(text, "columns")
            self.table.first_column = 0
            self._changed()

    # ------------------------------------------------------------ filtering

    def show_only(self, filter_text: str) -> None:
        """Show the runs that pass a filter, and the differences if there are several."""
        find, table = self.query_one("#runs-filter", Input), self.table
        find.set_class(bool(filter_text), "-on")
        find.value = filter_text
        table.marked.clear()
        table.only_differences = bool(filter_text)
        table.first_column = 0
        self.refresh_soon()

    def action_filter(self) -> None:
        """Type a filter."""
        find = self.query_one("#runs-filter", Input)
        find.add_class("-on")
        find.focus()

    @on(Input.Changed, "#runs-filter")
    def _filter(self, event: Input.Changed) -> None:
        self.table.filter_text = event.value
        self._changed()

    @on(Input.Submitted, "#runs-filter")
    def _filtered(self) -> None:
        self.table.focus()

    def action_leave(self) -> None:
        """End the filter; the second time, the marks."""
        find, table = self.query_one("#runs-filter", Input), self.table
        if find.has_class("-on"):
            find.value = ""
            find.remove_class("-on")
        else:
            table.marked.clear()
            table.only_differences = False
        table.focus()
        self._changed()

    # -------------------------------------------------------------- actions

    def action_effects(self) -> None:
        """Which setting mattered."""
        self.work(self._show_effects(), "dialog")

    async def _show_effects(self) -> None:
        runs = self.table.compared
        ranked = await off_thread(self.actions.effects, runs)
        if not ranked:
            raise UserError("nothing to compare: mark runs that differ in a setting and were evaluated")
        self.app.push_screen(Page("Which setting mattered", effects_content(ranked, len(runs))))

    def action_generate(self) -> None:
        """Load its best checkpoint into Generate."""
        self.work(self._generate(), "dialog")

    async def _generate(self) -> None:
        self.post_message(CheckpointsChosen({0: await self.actions.best_checkpoint(self.one())}))

    def action_use_configuration(self) -> None:
        """Edit its configuration in Configure."""
        self.work(self._use_configuration(), "dialog")

    async def _use_configuration(self) -> None:
        run = self.one()
        self.post_message(ConfigurationChosen(await off_thread(run.run.config), f"settings of {run.name}"))

    def action_resume(self) -> None:
        """Resume it."""
        self.work(self._resume(), "start")

    async def _resume(self) -> None:
        name = self.one().name
        await self.run_client.start(None, name, "resume")
        self.post_message(RunStarted(f"{name} resumed"))

    def action_maximize(self) -> None:
        """Show only the details, to scroll through."""
        if self.table.current is not None:
            self.app.push_screen(Page("Details", self._details_content()))

    def action_copy_path(self) -> None:
        """Copy the path of its folder, and show it."""
        if self.table.current is not None:
            path = str(self.table.current.run.path.absolute())
            self.app.copy_to_clipboard(path)
            self.say(f"Copied {path}")

    def action_sweeps(self) -> None:
        """Show, resume or stop a sweep."""
        self.work(self._sweeps(), "sweeps")

    async def _sweeps(self) -> None:
        tag = await self.sweeps.choose(self.table.everything)
        if tag:
            self.show_only(f"tags={common_tag(tag)}")

    def action_note(self) -> None:
        """Write a note."""
        self.work(self._note(), "dialog")

    async def _note(self) -> None:
        await self.actions.note(self.one())
        self.refresh_soon()

    def action_tags(self) -> None:
        """Change tags."""
        self.work(self._tags(), "dialog")

    async def _tags(self) -> None:
        await self.actions.tags(self.some())
        self.refresh_soon()

    def action_rename(self) -> None:
        """Rename."""
        self.work(self._rename(), "dialog")

    async def _rename(self) -> None:
        old = self.one().name
        new = await self.actions.change_name(self.one())
        if new:
            self.table.renamed(old, new)
        self.refresh_soon()

    def action_delete(self) -> None:
        """Delete, after asking."""
        self.work(self._delete(), "dialog")

    async def _delete(self) -> None:
        if await self.actions.delete(self.some()):
            self.table.marked.clear()
        self.refresh_soon()

    def action_undelete(self) -> None:
        """Undelete the last one."""
        self.work(self._undelete(), "dialog")

    async def _undelete(self) -> None:
        await self.actions.undelete()
        self.refresh_soon()
