"""Configure: design the hourglass, set everything else, start."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input, Static

from core.config import RunConfig, differences, show
from core.errors import UserError
from mamba_tui import keys
from mamba_tui.document import Document
from mamba_tui.launch_options import LaunchOptions, Mode
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.config_estimates import Estimate, Survey, estimate, survey
from mamba_tui.panes.layer_table import LayerTable
from mamba_tui.panes.settings_list import SettingsList
from mamba_tui.session import Session, off_thread
from mamba_tui.widgets.dialogs import Answer, Choice, Page, Prompt, Question
from mamba_tui.widgets.hourglass import Hourglass
from mamba_tui.widgets.numbers import age, bytes_size, compact
from mamba_tui.widgets.safe_text import clip, safe, visible
from mamba_tui.widgets.text_line import TextLine

WORKING_FILE = Path("current_configuration.json")


class ConfigPane(Pane):
    """The first thing a user sees."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("config")

    def __init__(self, options: LaunchOptions, session: Session, *, id: str) -> None:
        super().__init__(id=id)
        self.options = options
        self.session = session
        self.document = Document(options.config)
        self.path = options.config_path or WORKING_FILE
        self.run_name = options.run_name
        self.mode: Mode = options.mode
        self.known = Survey()
        self._surveyed: tuple[str, str] = ("", "")
        self._started: object = None

    def compose(self) -> ComposeResult:
        """Design at the left or top, settings at the right or below."""
        read_only = self.session.read_only
        yield Static(id="banner")
        with Vertical(id="body"):
            with Vertical(id="design"):
                yield LayerTable(self.document, read_only=read_only, id="layers")
                yield TextLine(id="totals")
                with Horizontal(id="start-row"):
                    yield Button(safe("▶ Start  Ctrl+R"), id="start", variant="success", compact=True)
                    yield TextLine(id="ready")
                yield Hourglass(id="drawing")
            with Vertical(id="rest"):
                yield Input(placeholder="find a setting; Esc ends", id="find")
                yield SettingsList(self.document, read_only=read_only, id="settings")
                yield TextLine(id="hint")

    def on_mount(self) -> None:
        """Show the totals at once, and what takes longer when it is known."""
        self._changed()
        self.call_after_refresh(self._survey_soon)

    def shown(self) -> None:
        """The layers come first."""
        if self.screen.focused is None or self.screen.focused not in self.walk_children():
            self.query_one(LayerTable).focus()
        if self.is_mounted:
            self._survey_soon()

    def session_changed(self) -> None:
        """A run began or ended: say so beside Start."""
        self._show_ready()

    # -------------------------------------------------------------- totals

    def _survey_soon(self) -> None:
        self.work(self._survey(), "survey")

    async def _survey(self) -> None:
        config = self.document.config
        self._surveyed = (config.data.dataset_dir, config.hardware.device)
        self.known = await off_thread(survey, config, self.session.root)
        self._changed()

    @on(LayerTable.Edited)
    @on(SettingsList.Edited)
    def _changed(self) -> None:
        """Totals, Start and hint follow every key."""
        config = self.document.config
        if (config.data.dataset_dir, config.hardware.device) != self._surveyed and self._surveyed[0]:
            self._survey_soon()
        layers, totals = self.query_one(LayerTable), self.query_one("#totals", TextLine)
        self.query_one(Hourglass).show(self.document.values["n_embd"], self.document.values["attention_type"])
        if self.document.problems:
            layers.show_costs(())
            count = len(self.document.problems)
            first = next(iter(self.document.problems.values()))
            more = f" (and {count - 1} more)" if count > 1 else ""
            totals.show(Content.styled(visible(f"{first}{more}"), "$text-error"), layout=True)
        else:
            cost = estimate(config, self.known)
            layers.show_costs(cost.layers)
            totals.show(self._totals(config, cost), layout=True)
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
            parts.append((f" of {bytes_size(cost.memory_free)} free on {cost.device}", ""))
        if cost.tokens_per_second:
            seconds = config.training.max_iters * tokens / cost.tokens_per_second
            speed = compact(cost.tokens_per_second)
            parts.append((f"   about {speed} tokens/s, {age(0, seconds)} in all", ""))
        return Content.assemble(*parts)

    def _show_ready(self) -> None:
        if not self.is_mounted:
            return
        button, ready = self.query_one("#start", Button), self.query_one("#ready", TextLine)
        reason = self._reason_against()
        button.disabled = bool(reason)
        if reason:
            ready.show(Content.styled(visible(reason), "$text-error"))
            return
        changed = "unsaved changes, Ctrl+S saves" if self.document.changed else visible(self.path.name)
        name = f"run {visible(clip(self.run_name, 30))}" if self.run_name else "a new run"
        ready.show(Content.assemble((f"{name}", "$foreground"), (f"   {changed}", "$muted")))

    def _reason_against(self) -> str:
        if self.session.read_only:
            return "read-only: this console starts nothing"
        if self.session.starting:
            return f"{self.session.starting} is starting ..."
        count = len(self.document.problems)
        if count:
            return f"{count} problem{'s' if count > 1 else ''} to solve first, shown in the rows"
        return ""

    @on(SettingsList.Moved)
    def _show_hint(self) -> None:
        settings = self.query_one(SettingsList)
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
    async def _pressed(self) -> None:
        await self.console.action_start()

    async def start(self) -> None:
        """Check, ask what must be asked, start, and show the run."""
        self.query_one(LayerTable).finish()
        self.query_one(SettingsList).finish()
        reason = self._reason_against()
        if reason:
            self.console.say(reason, problem=True)
            return
        try:
            if not await self._have_text() or not await self._may_be_second():
                return
            name = await self.session.free_name(self.run_name)
            self.console._changed()
            run = await self.session.start(self.document.config, name, self.mode)
            self._started = self.document.values
        except UserError as error:
            self._show_ready()
            await self.app.push_screen_wait(Question("Not started", str(error), [Answer("ok", "OK")]))
            return
        # The name and mode given on the command line hold for the first start only.
        self.run_name, self.mode = None, "auto"
        self._show_ready()
        await self.console.show_tab("train")
        self.console.say(f"{run.name} started; it goes on when the console is closed")

    async def _have_text(self) -> bool:
        from core.sample_text import has_texts, write_sample

        folder = self.document.config.data.dataset_dir
        if await off_thread(has_texts, folder):
            return True
        answer = await self.app.push_screen_wait(
            Question(
                "No text yet",
                f"There is no .txt file in {folder}. mamba-tui can write a sample there to learn from: the "
                "Python language reference that comes with this Python, about 0.5 MB. Nothing is downloaded.",
                [Answer("sample", "Write the sample and start", "success"), Answer("no", "Not now")],
            )
        )
        if answer != "sample":
            return False
        await off_thread(write_sample, folder)
        self.console.say(f"wrote the sample to {folder}")
        self._survey_soon()
        return True

    async def _may_be_second(self) -> bool:
        session = self.session
        if session.run is None or not session.alive or session.run.name == self.run_name:
            return True
        answer = await self.app.push_screen_wait(
            Question(
                "A run is training",
                f"{session.run.name} is training. Two runs share the machine and are slower each.",
                [Answer("no", "Not now", "primary"), Answer("yes", "Start another beside it")],
            )
        )
        return answer == "yes"

    # -------------------------------------------------------------- actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing is changed in read-only mode."""
        changing = ("undo", "redo", "save", "load", "preset", "name_run")
        return not (self.session.read_only and action in changing)

    def _all_changed(self) -> None:
        self.query_one(LayerTable).edit = None
        self.query_one(SettingsList).edit = None
        self.query_one(LayerTable).rows_changed()
        self.query_one(LayerTable).refresh(layout=True)
        self._changed()

    def action_undo(self) -> None:
        """Take the last change back."""
        done = self.document.undo()
        self.console.say(f"took back: {done}" if done is not None else "nothing to take back")
        self._all_changed()

    def action_redo(self) -> None:
        """Make it again."""
        done = self.document.redo()
        self.console.say(f"made again: {done}" if done is not None else "nothing to make again")
        self._all_changed()

    def action_save(self) -> None:
        """Save to the file of the configuration, or another."""
        self.work(self._save(), "config-file")

    async def _save(self) -> None:
        self.query_one(LayerTable).finish()
        self.query_one(SettingsList).finish()
        if self.document.problems:
            self.console.say("not saved: " + self._reason_against(), problem=True)
            return
        answer = await self.app.push_screen_wait(
            Prompt("Save the configuration", "File to write (.json or .toml):", str(self.path))
        )
        if answer:
            await self.save_to(Path(answer).expanduser())

    @property
    def worth_saving(self) -> bool:
        """Whether there are good changes that neither a file nor a run has."""
        unkept = self.document.changed and self.document.values != self._started
        return unkept and not self.document.problems and not self.session.read_only

    async def save_to(self, path: Path) -> None:
        """Write the configuration to a file. Raises UserError."""
        from core.config_files import save_file

        await off_thread(save_file, self.document.config, path)
        self.path = path
        self.document.saved()
        self.console.say(f"saved {path}")
        self._changed()

    def action_load(self) -> None:
        """Load a file."""
        self.work(self._load(), "config-file")

    async def _load(self) -> None:
        from core.config_files import load_file

        answer = await self.app.push_screen_wait(
            Prompt("Load a configuration", "File to read (.json or .toml):", str(self.path))
        )
        if not answer:
            return
        try:
            config = await off_thread(load_file, Path(answer).expanduser())
        except UserError as error:
            await self.app.push_screen_wait(Question("Not loaded", str(error), [Answer("ok", "OK")]))
            return
        self.path = Path(answer).expanduser()
        self.document.replace(config, f"load {self.path.name}", saved=True)
        self._all_changed()

    def action_preset(self) -> None:
        """Choose a preset."""
        self.work(self._preset(), "config-file")

    async def _preset(self) -> None:
        from core.config_files import preset, preset_about, preset_names
        from core.hardware import has_cuda

        choices = [(name, name, preset_about(name)) for name in preset_names()]
        name = await self.app.push_screen_wait(Choice("Preset", choices, "Ctrl+Z takes it back."))
        if name:
            config = preset(name, cuda=has_cuda())
            data = dataclasses.replace(config.data, dataset_dir=self.document.config.data.dataset_dir)
            self.document.replace(dataclasses.replace(config, data=data), f"preset {name}")
            self._all_changed()

    def action_name_run(self) -> None:
        """Name the run that Start begins."""
        self.work(self._name_run(), "config-file")

    async def _name_run(self) -> None:
        from core.runs import check_name

        free = await self.session.free_name(self.run_name)
        answer = await self.app.push_screen_wait(
            Prompt("Name of the run", "A folder of this name is made in " + str(self.session.root), free)
        )
        if answer is None:
            return
        try:
            if answer.strip():
                check_name(answer.strip())
        except UserError as error:
            self.console.say(error, problem=True)
            return
        self.run_name = answer.strip() or None
        self._show_ready()

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
    def _found(self) -> None:
        self.query_one(SettingsList).focus()

    def key_escape(self) -> None:
        """End the search."""
        find = self.query_one("#find", Input)
        if find.has_class("-on"):
            find.value = ""
            find.remove_class("-on")
            self.query_one(SettingsList).focus()

    @on(LayerTable.Wanted)
    def _wanted(self, event: LayerTable.Wanted) -> None:
        work = self._ramp() if event.what == "ramp" else self._list()
        self.work(work, "layers-dialog")

    async def _ramp(self) -> None:
        widths = self.document.values["n_embd"]
        answer = await self.app.push_screen_wait(
            Prompt(
                "Ramp",
                "Width of the first and of the last layer, then `even` or `geometric`. A third number makes "
                "an hourglass: first, waist, last.",
                f"{widths[0]} {widths[-1]} even",
            )
        )
        if not answer:
            return
        words = answer.replace(",", " ").split()
        numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 6]
        if len(numbers) not in (2, 3) or not all(1 <= number <= 65536 for number in numbers):
            self.console.say(
                "a ramp is two or three widths from 1 to 65536, such as: 256 128 even", problem=True
            )
            return
        geometric = any(word.startswith("g") for word in words)
        if len(numbers) == 2:
            self.document.ramp(numbers[0], numbers[1], geometric=geometric)
        else:
            self.document.hourglass(*numbers, geometric=geometric)
        self._all_changed()

    async def _list(self) -> None:
        answer = await self.app.push_screen_wait(
            Prompt(
                "List",
                "Widths (256,192,128), types (mamba,standard,m2) or `heads 4,4,8`: one a layer.",
                ",".join(str(width) for width in self.document.values["n_embd"]),
            )
        )
        if answer:
            self.query_one(LayerTable).paste(answer)

    def action_compare(self) -> None:
        """Differences to something else."""
        self.work(self._compare(), "config-file")

    async def _compare(self) -> None:
        from core.config_files import load_file, preset, preset_names
        from core.hardware import has_cuda
        from core.runs import list_runs

        choices = [("file", str(self.path), "the file of this configuration")]
        choices += [(f"preset {name}", name, "preset") for name in preset_names()]
        runs = await off_thread(list_runs, self.session.root)
        choices += [(f"run {run.name}", run.name, "run") for run in runs]
        wanted = await self.app.push_screen_wait(Choice("Compare with", choices))
        if not wanted:
            return
        try:
            if wanted == "file":
                other = await off_thread(load_file, self.path)
            elif wanted.startswith("preset "):
                other = preset(wanted.removeprefix("preset "), cuda=has_cuda())
            else:
                run = next(run for run in runs if run.name == wanted.removeprefix("run "))
                other = await off_thread(run.config)
        except (UserError, StopIteration) as error:
            self.console.say(error or "that run is gone", problem=True)
            return
        self.app.push_screen(Page(f"Differences to {wanted}", difference_page(other, self.document.config)))


def difference_page(old: RunConfig, new: RunConfig) -> Content:
    """Every key that differs: old value, new value."""
    found = differences(old, new)
    if not found:
        return safe("No differences.")
    lines: list[Content | str] = []
    for key, (before, after) in found.items():
        lines.append(Content.styled(f"{key}\n", "bold"))
        lines.append(Content.assemble(("  there  ", "$muted"), visible(clip(show(before), 400)), "\n"))
        lines.append(
            Content.assemble(("  here   ", "$muted"), (visible(clip(show(after), 400)), "$accent"), "\n")
        )
    return Content.assemble(*lines)
