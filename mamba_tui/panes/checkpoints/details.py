"""Descriptions of one checkpoint, and of two compared."""

from __future__ import annotations

from textual.content import Content

from core.config.schema import SETTINGS, differences
from core.config.setting import show
from core.errors import UserError
from mamba_tui.backend.run_client import CheckpointRow
from mamba_tui.panes.checkpoints.work import Details
from mamba_tui.widgets import hourglass
from mamba_tui.widgets.numbers import bytes_size, loss
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.wording import sample_content


def details_content(row: CheckpointRow, details: Details, verified: bool | None) -> Content:
    """Everything about a checkpoint: figures, file, model, a sample from its step."""
    info = row.info
    parts: list[Content | str | tuple[str, str]] = [
        (visible(clip(row.run.name, 60)), "bold $accent"),
        (f"  step {info.step:,}", "bold"),
        ("  best" if info.best else "", "$accent"),
        ("  latest" if row.latest else "", "$text-success"),
        "\n",
    ]
    losses = f"training {loss(info.train_loss)}  validation {loss(info.validation_loss)}"
    parts += [f"{losses}  {loss(info.bits_per_byte)} bits/byte\n"]
    verdicts = {
        True: "hash verified",
        False: "HASH DIFFERS: the file is damaged",
        None: "h verifies its hash",
    }
    parts.append((f"{bytes_size(info.bytes)}, sha256 {visible(info.sha256[:12])}, "
                  f"{verdicts[verified]}\n", "$muted"))  # fmt: skip
    if info.problem:
        parts.append((visible(info.problem) + "\n", "$text-error"))
    if details.config is not None:
        model = details.config.model
        widths = " ".join(
            f"{hourglass.SIGN[kind]}{width}" for kind, width in zip(model.attention_type, model.n_embd)
        )
        parts += [f"{clip(widths, 200)}\n"]
        parts.append((f"block {model.block_size}, batch {details.config.training.batch_size}, tokenizer "
                      f"{visible(clip(details.tokenizer, 60))}\n", "$muted"))  # fmt: skip
    elif details.problem:
        parts.append((visible(details.problem) + "\n", "$text-error"))
    if details.sample is not None:
        parts.append((f"sample at step {details.sample.step:,}\n", "$accent"))
        parts.append(sample_content(details.sample))
    return Content.assemble(*parts)


def comparison(first: CheckpointRow, second: CheckpointRow) -> Content:
    """Figures side by side, then every setting that differs."""
    lines: list[Content | str | tuple[str, str]] = []
    names = [clip(f"{row.run.name} {row.info.step:,}", 24) for row in (first, second)]
    lines.append((f"{'':<18}{visible(names[0]):>25}{visible(names[1]):>25}\n", "bold $accent"))
    for title, key in (("training loss", "train_loss"), ("validation loss", "validation_loss"),
                       ("bits per byte", "bits_per_byte")):  # fmt: skip
        values = [loss(getattr(row.info, key)) for row in (first, second)]
        lines.append(f"{title:<18}{values[0]:>25}{values[1]:>25}\n")
    try:
        differing = differences(first.run.config(), second.run.config())
    except UserError as error:
        return Content.assemble(*lines, (visible(error), "$text-error"))
    if not differing:
        lines.append(("the same configuration", "$muted"))
    for key, pair in list(differing.items())[:12]:
        one, two = (SETTINGS[key].in_words(value) for value in pair)
        lines.append((f"{key}\n", "bold"))
        lines.append(f"  {visible(clip(show(one), 66))}\n  {visible(clip(show(two), 66))}\n")
    return Content.assemble(*lines)
