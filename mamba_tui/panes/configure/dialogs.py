"""The questions of Configure: files, presets, names, ramps, lists and differences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from textual.content import Content

from core.config.schema import RunConfig, differences
from core.config.setting import show
from core.errors import UserError
from mamba_tui.backend.run_client import Session, off_thread
from mamba_tui.document import Document
from mamba_tui.panes.base import Pane
from mamba_tui.panes.configure.layer_table import LayerTable
from mamba_tui.panes.configure.settings_list import SettingsList
from mamba_tui.widgets.dialogs import Answer, Choice, Page, Prompt, Question
from mamba_tui.widgets.safe_text import clip, safe, visible


class ConfigDialogs(Pane):
    """What the Configure pane asks. The pane itself shows and starts."""

    document: Document
    session: Session
    path: Path
    run_name: str | None
    _started: object

    def all_changed(self) -> None:
        """Everything on screen is to be shown anew."""
        raise NotImplementedError

    def values_changed(self) -> None:
        """Totals, Start and hint are to be shown anew."""
        raise NotImplementedError

    def reason_against(self) -> str:
        """Why Start cannot be, "" when it can."""
        raise NotImplementedError

    def action_save(self) -> None:
        """Save to the file of the configuration, or another."""
        self.work(self._save(), "config-file")

    async def _save(self) -> None:
        self.query_one(LayerTable).finish()
        self.query_one(SettingsList).finish()
        if self.document.problems:
            self.console.say("not saved: " + self.reason_against(), problem=True)
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
        from core.config.files import save_file

        await off_thread(save_file, self.document.config, path)
        self.path = path
        self.document.saved()
        self.console.say(f"saved {path}")
        self.values_changed()

    def action_load(self) -> None:
        """Load a file."""
        self.work(self._load(), "config-file")

    async def _load(self) -> None:
        from core.config.files import load_file

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
        self.all_changed()

    def action_preset(self) -> None:
        """Choose a preset."""
        self.work(self._preset(), "config-file")

    async def _preset(self) -> None:
        from core.config.files import preset, preset_about, preset_names
        from core.system.hardware import has_cuda

        choices = [(name, name, preset_about(name)) for name in preset_names()]
        name = await self.app.push_screen_wait(Choice("Preset", choices, "Ctrl+Z takes it back."))
        if name:
            config = preset(name, cuda=has_cuda())
            data = dataclasses.replace(config.data, dataset_dir=self.document.config.data.dataset_dir)
            self.document.replace(dataclasses.replace(config, data=data), f"preset {name}")
            self.all_changed()

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
        self.values_changed()

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
        self.all_changed()

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
        from core.config.files import load_file, preset, preset_names
        from core.runs import list_runs
        from core.system.hardware import has_cuda

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
