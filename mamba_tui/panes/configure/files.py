"""Configuration files, presets, and differences to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from textual.content import Content

from core.config.files import load_file, preset, preset_about, preset_names
from core.config.schema import SETTINGS, RunConfig, differences
from core.config.setting import show
from core.errors import UserError
from core.system.hardware import has_cuda
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.document import Document
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Choice, Page, Prompt, Question
from mamba_tui.widgets.safe_text import clip, safe, visible


class ConfigurationFiles:
    """Saves, loads and compares the document. `changed` is called when its values change."""

    def __init__(
        self, pane: Pane, document: Document, run_client: RunClient, changed: Callable[[], None]
    ) -> None:
        self._pane = pane
        self._document = document
        self._run_client = run_client
        self._changed = changed

    async def save(self) -> None:
        """Save to the document's file, or another."""
        answer = await self._pane.ask(
            Prompt("Save the configuration", "File to write (.json or .toml):", str(self._document.path))
        )
        if answer:
            path = Path(answer).expanduser()
            await off_thread(self._document.save, path)
            self._pane.say(f"Saved {path}")
            self._changed()

    async def load(self) -> None:
        """Load a file."""
        answer = await self._pane.ask(
            Prompt("Load a configuration", "File to read (.json or .toml):", str(self._document.path))
        )
        if not answer:
            return
        path = Path(answer).expanduser()
        try:
            config = await off_thread(load_file, path)
        except UserError as error:
            await self._pane.ask(Question("Not loaded", str(error), [Answer("ok", "OK")]))
            return
        self._document.replace(config, f"load {path.name}", path=path)
        self._changed()

    async def choose_preset(self) -> None:
        """Load a preset, but keep the text."""
        choices = [(name, name, preset_about(name)) for name in preset_names()]
        name = await self._pane.ask(Choice("Preset", choices, "Ctrl+Z undoes it."))
        if name:
            config = preset(name, cuda=has_cuda())
            data = dataclasses.replace(config.data, dataset_dir=self._document.config.data.dataset_dir)
            self._document.replace(dataclasses.replace(config, data=data), f"preset {name}")
            self._changed()

    async def compare(self) -> None:
        """Show every setting that differs from the file, a preset or a run."""
        from core.runs import list_runs

        runs = {run.name: run for run in await off_thread(list_runs, self._run_client.root)}
        choices = [("file", str(self._document.path), "the file of this configuration")]
        choices += [(f"preset {name}", name, "preset") for name in preset_names()]
        choices += [(f"run {name}", name, "run") for name in runs]
        wanted = await self._pane.ask(Choice("Compare with", choices))
        if not wanted:
            return
        if wanted == "file":
            other = await off_thread(load_file, self._document.path)
        elif wanted.startswith("preset "):
            other = preset(wanted.removeprefix("preset "), cuda=has_cuda())
        else:
            other = await off_thread(runs[wanted.removeprefix("run ")].config)
        page = Page(f"Differences from {wanted}", difference_page(other, self._document.config))
        self._pane.app.push_screen(page)


def difference_page(old: RunConfig, new: RunConfig) -> Content:
    """Every key that differs: old value, new value."""
    differing = differences(old, new)
    if not differing:
        return safe("No differences.")
    lines: list[Content | str] = []
    for key, pair in differing.items():
        before, after = (SETTINGS[key].in_words(value) for value in pair)
        lines.append(Content.styled(f"{key}\n", "bold"))
        lines.append(Content.assemble(("  there  ", "$muted"), visible(clip(show(before), 400)), "\n"))
        lines.append(
            Content.assemble(("  here   ", "$muted"), (visible(clip(show(after), 400)), "$accent"), "\n")
        )
    return Content.assemble(*lines)
