"""One side of Generate: a slot of the generator, its checkpoint, and the text that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.content import Content

from core.config.sampling import SAMPLING
from core.system.json_lines_client import Event
from mamba_tui.backend.run_client import CheckpointRow
from mamba_tui.panes.generate.variants import Variants
from mamba_tui.widgets.knobs import Knob
from mamba_tui.widgets.numbers import compact, duration
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.token_view import Token


def _knob(key: str, label: str, step: float, *, default: float | None = None, help: str = "") -> Knob:
    """A sampling setting with its own bounds."""
    item = SAMPLING[key]
    assert isinstance(item.default, (int, float))
    assert item.low is not None
    assert item.high is not None
    start = item.default if default is None else default
    return Knob(key, label, start, item.low, item.high, step, help or item.help)


KNOBS = (
    _knob("temperature", "temperature", 0.1),
    _knob("top_k", "top-k", 5),
    _knob("top_p", "top-p", 0.05),
    _knob("min_p", "min-p", 0.01),
    _knob("repetition_penalty", "repetition", 0.05),
    _knob("seed", "seed", 1, default=1, help=f"{SAMPLING['seed'].help}; Ctrl+B takes the next"),
    _knob("max_new_tokens", "length", 50),
    Knob("stop", "stop at", "", help="a text that ends the generation and isn't part of it"),
)
REASONS = {
    "length": "length reached",
    "stop": "stop text reached",
    "end": "end of document",
    "stopped": "stopped",
}


def sampling_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs in the form that the generator accepts."""
    settings = {key: value for key, value in values.items() if key != "stop"}
    stop = str(values.get("stop", ""))
    # A stop text is typed on one line: \n stands for a line end.
    settings["stop"] = [stop.replace("\\n", "\n")] if stop else []
    return settings


class Side:
    """What is loaded and what is being written. `take` turns events into tokens."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.name = ""
        self.row: CheckpointRow | None = None
        self.automatic = False
        self.variants = Variants()
        self.about = ""
        self.load_request = 0
        self.request = 0
        self.generation = 0
        self.writing = False
        self.stopping = False
        self.is_loading = False
        self.count = 0
        self.speed = ""

    def loading(self, name: str) -> None:
        """A checkpoint is being loaded."""
        self.name = name
        self.about = ""
        self.speed = ""
        self.is_loading = True
        self.writing = False

    def begin(self, request: int) -> None:
        """Writing was requested."""
        self.request = self.generation = request
        self.writing, self.stopping = True, False
        self.count = 0
        self.speed = ""

    def lost(self) -> None:
        """The process is gone, and with it the loaded checkpoint."""
        self.writing = self.is_loading = False
        self.name = self.about = self.speed = ""

    def owns(self, request: object) -> bool:
        """Whether an event answers this side's last request."""
        return request in (self.load_request, self.request) and request != 0

    def take(self, event: Event) -> list[Token]:
        """The tokens of an event; figures and states are stored."""
        kind = event["event"]
        if kind == "token":
            self.count += 1
            return [token_of(event)]
        if kind == "loaded":
            self.is_loading = False
            self.about = f"{compact(_number(event, 'parameters'))} parameters on {event.get('device')}"
        elif kind == "error":
            if event.get("id") == self.load_request:
                self.name, self.is_loading = "", False
            self.writing = False
        elif kind == "done":
            self.writing = False
            self.speed = self._figures(event)
            tail = event.get("text")
            if isinstance(tail, str) and tail:
                return [Token(tail, None, generation=self.generation, index=-1)]
        return []

    def _figures(self, event: Event) -> str:
        first = _number(event, "time_to_first_token")
        parts = [f"{compact(_number(event, 'tokens'))} tokens"]
        parts.append(f"{compact(_number(event, 'tokens_per_second'))}/s")
        if first is not None:
            parts.append(f"first in {f'{first * 1000:.0f} ms' if first < 1 else duration(first)}")
        parts.append(REASONS.get(str(event.get("reason")), str(event.get("reason"))))
        return ", ".join(parts)

    def line(self, empty: str = "Ctrl+L chooses a checkpoint") -> Content:
        """Name, state and figures."""
        if not self.name:
            return Content.styled(empty, "$muted")
        state = "loading ..." if self.is_loading else "" if self.speed else self.about
        parts: list[Content | str | tuple[str, str]] = [
            (visible(clip(self.name, 40)), "bold $accent"),
            (f"  {visible(state)}", "$muted"),
        ]
        if self.writing:
            waiting = "" if self.count else " the first word ..."
            parts.append((f"  writing{waiting} {self.count or ''}  Esc stops", "$text-success"))
        elif self.speed:
            parts.append((f"  {visible(self.speed)}", ""))
        return Content.assemble(*parts)


def _number(event: Event, key: str) -> float | None:
    value = event.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def token_of(event: Event) -> Token:
    """A token event in its compact form; malformed parts are left out."""
    alternatives = event.get("alternatives")
    pairs: list[tuple[str, float]] = []
    if isinstance(alternatives, list):
        for entry in alternatives:
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], (int, float)):
                pairs.append((str(entry[0]), float(entry[1])))
    ids = event.get("alternative_tokens")
    known = isinstance(ids, list) and len(ids) == len(pairs) and all(isinstance(one, int) for one in ids)
    index, request = event.get("index"), event.get("id")
    return Token(
        str(event.get("text", "")),
        _number(event, "probability"),
        tuple(pairs),
        tuple(ids) if known and isinstance(ids, list) else (),
        request if isinstance(request, int) else 0,
        index if isinstance(index, int) else -1,
    )
