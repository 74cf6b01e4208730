"""The inspection process's operations: what the layers of a checkpoint do with a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.checkpoint import Payload, config_of, has_manifest
from core.config.schema import STANDARD
from core.data.corpus import Progress
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.inspection import report
from core.inspection.heat_map import HeatMaps
from core.inspection.lens import lens_losses
from core.inspection.text import (
    MOST_TOKENS,
    USUAL_TOKENS,
    InspectedText,
    text_of_files,
    typed_text,
    validation_text,
)
from core.inspection.trace import Trace
from core.model import GPT
from core.runs.event_fields import plain
from core.system.hardware import resolve_device
from core.system.json_lines import Handlers, Request

Load = Callable[[Path, str], tuple[GPT, Tokenizer, Payload]]
MOST_ANSWERS = 100


class InspectionService:
    """Answers the requests of `core/system/json_lines.py`.

    load     {"id", "checkpoint", "device": "auto"}  ->  loaded {shape of the model}
    read     {"id", "text" or "texts": files, "count": 512}  ->  progress ..., text {tokens}
             without a text, the last one that the run validates on
    layers   {"id"}  ->  layers {"layers", "waist", "lens_loss"}
    lens     {"id", "token", "top": 5}  ->  lens
    map      {"id", "layer", "group": -1 for all of them, "token", "queries", "keys"}  ->  map
    memory   {"id", "layer"}  ->  memory
    inspect  {"id", "checkpoint", "device", "text" or "texts", "count", "token": -1 for the last, "layer": -1
             for all, "top"}  ->  loaded, progress ..., report

    Numbers that aren't finite are text, as in docs/events.md. The figures are those of
    `core/inspection/report.py`.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._model: GPT | None = None
        self._tokenizer: Tokenizer | None = None
        self._payload: Payload = {}
        self._path = Path()
        self._text: InspectedText | None = None
        self._seen: Trace | None = None
        self._maps: HeatMaps | None = None

    def handlers(self) -> Handlers:
        """The handler of each operation."""
        return {
            "load": self._on_load,
            "read": self._on_read,
            "layers": self._on_layers,
            "lens": self._on_lens,
            "map": self._on_map,
            "memory": self._on_memory,
            "inspect": self._on_inspect,
        }

    def _on_load(self, request: Request) -> None:
        path = Path(request.value("checkpoint", str))
        device = resolve_device(request.value("device", str, "auto"))
        self._model = self._text = self._seen = self._maps = None
        self._model, self._tokenizer, self._payload = self._load(path, device)
        self._model.eval()
        self._path = path
        self._reply(
            request,
            "loaded",
            {
                "name": f"{path.absolute().parent.name}/{path.name}",
                "step": self._payload.get("step"),
                "device": device,
                "verified": has_manifest(path),
                **report.about_model(self._model),
            },
        )

    def _on_read(self, request: Request) -> None:
        model, tokenizer = self._loaded()
        self._text = self._wanted_text(request, tokenizer)
        self._seen = report.look_at(model, self._text)
        self._maps = HeatMaps(self._seen)
        self._reply(request, "text", report.about_text(self._text, tokenizer))

    def _on_layers(self, request: Request) -> None:
        seen, _ = self._looked()
        figures = []
        for layer in range(len(seen.layers)):
            if request.canceled:
                raise UserError("stopped")
            figures.append(report.layer_figures(seen, layer))
        self._reply(
            request,
            "layers",
            {
                "layers": figures,
                "waist": report.waist_figures(seen),
                "lens_loss": lens_losses(seen),
            },
        )

    def _on_lens(self, request: Request) -> None:
        seen, _ = self._looked()
        _, tokenizer = self._loaded()
        token = _within(request, "token", len(seen.tokens))
        self._reply(request, "lens", report.answers(seen, tokenizer, token, _top(request)))

    def _on_map(self, request: Request) -> None:
        seen, _ = self._looked()
        assert self._maps is not None
        layer = _within(request, "layer", len(seen.layers))
        group = request.value("group", int, -1)
        groups = self._maps.groups(layer)
        if not -1 <= group < groups:
            raise UserError(f"group is {group}; accepted: -1 for all, or a number from 0 to {groups - 1}")
        token = _within(request, "token", len(seen.tokens))
        queries = max(1, request.value("queries", int))
        keys = max(1, request.value("keys", int))
        self._reply(request, "map", self._maps.around(layer, group, token, queries, keys))

    def _on_memory(self, request: Request) -> None:
        seen, text = self._looked()
        layer = _within(request, "layer", len(seen.layers))
        if seen.model.config.attention_type[layer] == STANDARD:
            raise UserError(f"layer {layer} is an attention layer, whose memory is its window")
        self._reply(request, "memory", report.memory_figures(seen, text, layer))

    def _on_inspect(self, request: Request) -> None:
        self._on_load(request)
        model, tokenizer = self._loaded()
        last = model.config.n_layer - 1
        layer = request.value("layer", int, -1)
        if not -1 <= layer <= last:
            raise UserError(f"--layer is {layer}; accepted: a layer's number from 0 to {last}")
        text = self._wanted_text(request, tokenizer)
        count = len(text.tokens)
        token = request.value("token", int, -1)
        if not -1 <= token < count:
            raise UserError(f"--token is {token}; accepted for this text: a number from 0 to {count - 1}")
        layers = list(range(last + 1)) if layer < 0 else [layer]
        seen = report.look_at(model, text)
        chosen = count - 1 if token < 0 else token
        figures = report.whole_report(seen, text, tokenizer, layers, chosen, _top(request))
        if layer >= 0:
            figures["map"] = HeatMaps(seen).rows(layer, chosen)
        self._reply(request, "report", figures)

    def _wanted_text(self, request: Request, tokenizer: Tokenizer) -> InspectedText:
        count = request.value("count", int, USUAL_TOKENS)
        if not 2 <= count <= MOST_TOKENS:
            raise UserError(f"--tokens is {count}; accepted: a whole number from 2 to {MOST_TOKENS:,}")
        config = config_of(self._payload, self._path)
        if request.values.get("texts") is not None:
            return text_of_files(request.paths("texts"), config, self._path.parent, tokenizer, count)
        if request.values.get("text") is not None:
            return typed_text(request.value("text", str), tokenizer, count)

        def tell(progress: Progress) -> None:
            if request.canceled:
                raise UserError("stopped")
            request.reply("progress", text=progress.text, share=progress.fraction)

        return validation_text(config, self._path.parent, tokenizer, count, tell)

    def _loaded(self) -> tuple[GPT, Tokenizer]:
        if self._model is None or self._tokenizer is None:
            raise UserError("no checkpoint is loaded yet")
        return self._model, self._tokenizer

    def _looked(self) -> tuple[Trace, InspectedText]:
        if self._seen is None or self._text is None:
            raise UserError("no text has been read yet")
        return self._seen, self._text

    def _reply(self, request: Request, event: str, values: dict[str, Any]) -> None:
        request.reply(event, **{key: plain(value) for key, value in values.items()})


def _within(request: Request, key: str, count: int) -> int:
    value = request.value(key, int)
    if not 0 <= value < count:
        raise UserError(f"{key} is {value}; accepted: a whole number from 0 to {count - 1}")
    return value


def _top(request: Request) -> int:
    top = request.value("top", int, 5)
    if not 1 <= top <= MOST_ANSWERS:
        raise UserError(f"--top is {top}; accepted: a whole number from 1 to {MOST_ANSWERS}")
    return top
