"""Checkpoints of all runs, and what can be done with them."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, Static

from core.errors import UserError
from mamba_tui import keys
from mamba_tui.backend.checkpoint_trash import Trash
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import CheckpointRow, RunClient, best_row
from mamba_tui.messages import CheckpointsChosen, RunStarted
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.checkpoints import work as work_on
from mamba_tui.panes.checkpoints.details import comparison, details_content
from mamba_tui.panes.checkpoints.table import COLUMNS, CheckpointTable
from mamba_tui.widgets.dialogs import Answer, Prompt, Question
from mamba_tui.widgets.numbers import bytes_size
from mamba_tui.widgets.rows import Rows

REFRESH_SECONDS = 2.0
NONE = "No checkpoints yet. A run saves one at every evaluation; c in Train saves one now."


class CheckpointsPane(Pane):
    """Table and details."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("checkpoints")

    def __init__(self, run_client: RunClient, state: ConsoleState, trash: Trash, *, id: str) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.state = state
        self.trash = trash
        self._verified: dict[str, bool] = {}

    def compose(self) -> ComposeResult:
        """Table, then details; one sentence if there are none."""
        yield Input(placeholder="show only runs whose name contains this; Esc clears", id="checkpoint-filter")
        with Vertical(id="checkpoints-body"):
            yield CheckpointTable(id="table")
            with VerticalScroll(id="details", can_focus=False):
                yield Static()
        yield Static(NONE, id="none", markup=False)

    def on_mount(self) -> None:
        """Restore pins and sort order; refresh every two seconds."""
        table = self.table
        table.pins = set(self.state.pins)
        table.sort = self.state.sort if self.state.sort in COLUMNS else "time"
        table.reverse = self.state.sort_reverse
        self.set_interval(REFRESH_SECONDS, self._refresh_if_shown)

    @property
    def table(self) -> CheckpointTable:
        """The table."""
        return self.query_one(CheckpointTable)

    def shown(self) -> None:
        """Refresh, and focus the table if it has anything for the keys to act on."""
        if self.table.everything:
            self._focus_table()
        self._refresh_soon()

    def _focus_table(self) -> None:
        focused = self.screen.focused
        if focused is None or self not in focused.ancestors:
            self.screen.set_focus(self.table)

    def remember(self) -> None:
        """Save pins and sort order."""
        self.state.pins = sorted(self.table.pins)
        self.state.sort, self.state.sort_reverse = self.table.sort, self.table.reverse

    def _refresh_if_shown(self) -> None:
        if self.in_front:
            self._refresh_soon()

    def _refresh_soon(self) -> None:
        self.work(self._refresh_rows(), "checkpoints")

    async def _refresh_rows(self) -> None:
        rows = await self.run_client.checkpoint_rows()
        before, were_none = self.table.current, not self.table.everything
        self.table.show(rows)
        self.set_class(not rows, "-empty")
        if rows and were_none and self.in_front:
            self._focus_table()
        now = self.table.current
        if now is not None and (before is None or before.key != now.key):
            self._details_soon()

    # -------------------------------------------------------------- details

    @on(Rows.Moved, "#table")
    def _details_soon(self) -> None:
        self.work(self._show_details(), "details")

    async def _show_details(self) -> None:
        row = self.table.current
        static = self.query_one("#details Static", Static)
        if row is None:
            static.update("")
            return
        details = await off_thread(work_on.read_details, row)
        now = self.table.current  # the list may have been read again in the meantime, and then has new rows
        if now is not None and now.key == row.key:
            static.update(details_content(row, details, self._verified.get(row.key)))

    # -------------------------------------------------------------- actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In read-only mode nothing can be changed."""
        changing = ("resume", "branch", "export", "delete", "undelete")
        return not (self.run_client.read_only and action in changing)

    def _row(self) -> CheckpointRow:
        row = self.table.current
        if row is None:
            raise UserError("there is no checkpoint yet")
        return row

    def action_generate(self, slot: int) -> None:
        """Load into Generate."""
        self.work(self._generate(slot), "generate")

    @on(Rows.Selected, "#table")
    def _chosen(self) -> None:
        self.action_generate(0)

    async def _generate(self, slot: int) -> None:
        row = self._row()
        work_on.without_problem(row)
        self.post_message(CheckpointsChosen({slot: row}))

    def action_mark(self) -> None:
        """Mark or unmark for comparison; a third mark replaces the first."""
        row = self.table.current
        if row is None:
            return
        marked = self.table.marked
        if row.key in marked:
            marked.remove(row.key)
        else:
            marked.append(row.key)
            del marked[:-2]
        self.table.refresh()

    def action_compare(self) -> None:
        """Compare two."""
        self.work(self._compare(), "compare")

    async def _compare(self) -> None:
        by_key = {row.key: row for row in self.table.everything}
        chosen = [by_key[key] for key in self.table.marked if key in by_key]
        if len(chosen) < 2:
            current = self._row()
            best = best_row(self.table.everything, current.run.name)
            others = chosen or ([best] if best else [])
            chosen = [row for row in others if row.key != current.key] + [current]
        if len(chosen) < 2:
            raise UserError("mark a checkpoint with Space first; Ctrl+D compares it with the selected one")
        first, second = chosen[-2:]
        answer = await self.ask(
            Question(
                "Compare",
                await off_thread(comparison, first, second),
                [Answer("close", "Cancel"), Answer("write", "Generate with both", "primary")],
            )
        )
        if answer == "write":
            for row in (first, second):
                work_on.without_problem(row)
            self.post_message(CheckpointsChosen({0: first, 1: second}))

    def action_resume(self) -> None:
        """Resume its run."""
        self.work(self._resume(), "start")

    async def _resume(self) -> None:
        row = self._row()
        if not row.latest:
            answer = await self.ask(
                Question(
                    "Resume",
                    f"{row.run.name} resumes from its newest checkpoint. To continue from step "
                    f"{row.info.step:,}, start a new run there.",
                    [
                        Answer("no", "Cancel"),
                        Answer("newest", "Resume from the newest"),
                        Answer("branch", "New run from here", "primary"),
                    ],
                )
            )
            if answer == "branch":
                await self._branch()
            if answer != "newest":
                return
        await self.run_client.start(None, row.run.name, "resume")
        self.post_message(RunStarted(f"{row.run.name} resumed"))

    def action_branch(self) -> None:
        """Start a new run from here."""
        self.work(self._branch(), "start")

    async def _branch(self) -> None:
        row = self._row()
        work_on.without_problem(row)
        free = await self.run_client.free_name(None)
        name = await self.ask(
            Prompt("New run from here", f"{row.run.name}, step {row.info.step:,}. Name of the new run:", free)
        )
        if not name:
            return
        config = await off_thread(row.run.config)
        steps = None
        if row.info.step >= config.training.max_iters:
            answer = await self.ask(
                Prompt(
                    "New run from here",
                    "The checkpoint is from the last step of its run. Train up to step:",
                    str(row.info.step + config.training.max_iters),
                )
            )
            if not answer or not answer.strip().isdigit():
                return
            steps = int(answer)
        run = await off_thread(work_on.branch, row, self.run_client.root, name.strip(), steps)
        await self.run_client.start(None, run.name, "resume")
        self.post_message(RunStarted(f"{run.name} started from step {row.info.step:,} of {row.run.name}"))

    def action_pin(self) -> None:
        """Pin to the top of the list."""
        row = self.table.current
        if row is not None:
            self.table.pins ^= {row.key}
            self.table.reorder()

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = list(COLUMNS)
        self._sort(names[(names.index(self.table.sort) + 1) % len(names)], False)

    def action_sort_reverse(self) -> None:
        """Reverse the order."""
        self._sort(self.table.sort, not self.table.reverse)

    def _sort(self, name: str, reverse: bool) -> None:
        self.table.sort, self.table.reverse = name, reverse
        self.table.reorder()

    @on(Rows.HeaderClicked, "#table")
    def _header(self, event: Rows.HeaderClicked) -> None:
        name = self.table.column_at(event.x)
        self._sort(name, name == self.table.sort and not self.table.reverse)

    def action_filter(self) -> None:
        """Type a filter."""
        find = self.query_one("#checkpoint-filter", Input)
        find.add_class("-on")
        find.focus()

    @on(Input.Changed, "#checkpoint-filter")
    def _filter(self, event: Input.Changed) -> None:
        self.table.needle = event.value
        self.table.reorder()

    @on(Input.Submitted, "#checkpoint-filter")
    def _filtered(self) -> None:
        self.table.focus()

    def key_escape(self) -> None:
        """End the filter."""
        find = self.query_one("#checkpoint-filter", Input)
        find.value = ""
        find.remove_class("-on")
        self.table.focus()

    def action_verify(self) -> None:
        """Check the hash."""
        self.work(self._verify(), "verify")

    async def _verify(self) -> None:
        row = self._row()
        problem = await off_thread(work_on.verify, row)
        self._verified[row.key] = not problem
        message = f"is damaged: {problem}" if problem else "is intact: its hash matches its manifest"
        self.say(f"{row.info.path.name} {message}", problem=bool(problem))
        self._details_soon()

    def action_export(self) -> None:
        """Export the weights."""
        self.work(self._export(), "export")

    async def _export(self) -> None:
        from mamba_tui.panes.checkpoints.export import export

        row = self._row()
        work_on.without_problem(row)
        name = await self.ask(
            Prompt(
                "Export the weights",
                "File to write (.safetensors):",
                f"{row.run.name}-step-{row.info.step}.safetensors",
            )
        )
        if name:
            self.say("Exporting ...")
            self.say(await export(row.info.path, name))

    def action_delete(self) -> None:
        """Delete, after asking."""
        self.work(self._delete(), "delete")

    async def _delete(self) -> None:
        row = self._row()
        answer = await self.ask(
            Question(
                "Delete",
                f"Delete step {row.info.step:,} of {row.run.name} ({bytes_size(row.info.bytes)})? "
                "Ctrl+Z undeletes it until the console is closed.",
                [Answer("no", "Cancel", "primary"), Answer("yes", "Delete", "error")],
                default="no",
            )
        )
        if answer != "yes":
            return
        await off_thread(self.trash.delete, row)
        self._renew()
        self.say(f"Deleted step {row.info.step:,} of {row.run.name}. Ctrl+Z undeletes it.")

    def action_undelete(self) -> None:
        """Undelete the last one."""
        self.work(self._undelete(), "delete")

    async def _undelete(self) -> None:
        key = await off_thread(self.trash.restore)
        if not key:
            self.say("Nothing to undelete")
            return
        self._renew()
        self.say(f"Undeleted {key}")

    def _renew(self) -> None:
        self.run_client.forget_checkpoints()
        self._refresh_soon()
