"""Beside the table: one run, or the differences between several."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from core.config.schema import SETTINGS, RunConfig, flat
from core.runs.listing.columns import differing
from core.runs.listing.summary import RunSummary
from core.sweeps.effects import Effect
from mamba_tui.run_columns import setting_text
from mamba_tui.widgets.numbers import compact, duration, loss
from mamba_tui.widgets.safe_text import clip, visible

LONGEST_VALUE = 60
BAR_CELLS = 20
# What is different in every run, and says nothing about what it learns.
_PLACE = ("dataset_dir", "auto")


def details_content(run: RunSummary) -> Content:
    """One run: its state, its note and tags, and its differences from the default."""
    lines: list[Content] = [Content.styled(visible(run.name), "bold $accent")]
    lines.append(Content(visible(f"{run.state}: {run.message}" if run.message else run.state)))
    if run.best is not None:
        read = "" if run.complete else ", so far read"
        lines.append(Content(f"best {loss(run.best)} bits/byte at step {run.best_step:,}{read}"))
    if run.tokens:
        speed = f"{compact(run.tokens)} tokens in {duration(run.seconds)}, {compact(run.tokens_per_second)}/s"
        lines.append(Content.styled(speed, "$text-muted"))
    if run.notes.tags:
        lines.append(Content.assemble(("tags ", "$text-muted"), visible(", ".join(run.notes.tags))))
    if run.notes.note:
        lines.append(Content.assemble(("note ", "$text-muted"), visible(run.notes.note)))
    lines.append(Content.assemble(("in ", "$text-muted"), visible(str(run.run.path))))
    lines += [Content(""), *difference_to_default(run)]
    return Content("\n").join(lines)


def difference_to_default(run: RunSummary) -> list[Content]:
    """Every setting that isn't at its default: the default, then the run's value."""
    if not run.config:
        return [Content.styled("its configuration cannot be read", "$text-error")]
    default = flat(RunConfig())
    lines = [Content.styled("differs from the default", "bold")]
    for key in SETTINGS:
        if key in run.config and key not in _PLACE and run.config[key] != default[key]:
            before = setting_text_of(default[key])
            after = setting_text(run, key)
            lines.append(
                Content.assemble(
                    (f"{key} ", "$text-muted"),
                    f"{before} → ",
                    (visible(clip(after, LONGEST_VALUE)), "$accent"),
                )
            )
    return lines if len(lines) > 1 else [Content.styled("every setting is at its default", "$text-muted")]


def setting_text_of(value: object) -> str:
    """A value as short as in the table."""
    if isinstance(value, (tuple, list)):
        return clip(" ".join(map(str, value)), LONGEST_VALUE)
    return clip(f"{value:.6g}" if isinstance(value, float) else str(value) or '""', LONGEST_VALUE)


def comparison_content(runs: Sequence[RunSummary]) -> Content:
    """Several runs: their best losses, and every setting that differs, one line per run."""
    lines = [Content.styled(f"{len(runs)} runs, only what differs", "bold $accent")]
    for number, run in enumerate(runs, 1):
        lines.append(
            Content.assemble(
                (f"{number} ", "$accent"), visible(clip(run.name, 24)), f"  {loss(run.best)} bits/byte"
            )
        )
    keys = differing(runs)
    for key in keys:
        lines.append(Content.styled(key, "bold"))
        for number, run in enumerate(runs, 1):
            lines.append(
                Content.assemble(
                    (f"  {number} ", "$accent"), visible(clip(setting_text(run, key), LONGEST_VALUE))
                )
            )
    if not keys:
        lines.append(Content.styled("They have the same settings.", "$text-muted"))
    return Content("\n").join(lines)


def effects_content(effects: Sequence[Effect], count: int) -> Content:
    """Which setting mattered: for each, the share it explains, as a bar, and the mean loss of its values."""
    lines = [
        Content.styled(
            f"Of {count} runs: how much of the difference in their best loss (bits per byte) each setting "
            "explains, and the mean best loss of its values. This shows what varied together, not why.",
            "$text-muted",
        )
    ]
    for effect in effects:
        filled = round(BAR_CELLS * effect.share)
        lines.append(Content(""))
        lines.append(
            Content.assemble(
                (effect.key, "bold"),
                f"  {effect.share:.0%} ",
                ("█" * filled, "$accent"),
                ("░" * (BAR_CELLS - filled), "$text-muted"),
                f"  best to worst {effect.spread:.4f}",
            )
        )
        for name, mean, number in effect.means:
            lines.append(
                Content.assemble(
                    f"  {mean:.4f}  {visible(clip(name, 40))}",
                    (f"  {number} run{'s' if number > 1 else ''}", "$text-muted"),
                )
            )
    return Content("\n").join(lines)
