"""The text that is looked at: a cursor over tokens, shaded by how much the token under it looks at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.style import Style
from textual.binding import BindingType
from textual.color import Color

from mamba_tui import keys, themes
from mamba_tui.widgets.token_view import Token, TokenView

STEPS = 6


class TokenText(TokenView, inherit_bindings=False):
    """Tokens with a cursor that never leaves them."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("inspected")

    def show(self, tokens: Sequence[Sequence[Any]]) -> None:
        """A text: (id, text, opens a document) of each token. The cursor goes to its last token."""
        self.clear()
        self.follow = False
        self.append([
            Token("⏵" if opens else str(text).replace("\n", "⏎\n"), None, generation=1, index=int(token))
            for token, text, opens in tokens
        ])  # fmt: skip
        self.surprise = True
        self.cursor = len(tokens) - 1 if tokens else None

    def shade_by(self, weights: Sequence[float]) -> None:
        """Shade each token by its weight, the largest most; no weights, no shades."""
        top = max([*weights, 0.0])
        for index, token in enumerate(self.tokens):
            weight = weights[index] if index < len(weights) and top > 0 else 0.0
            level = (max(0.0, weight) / top) ** 0.5 if weight else 0.0
            self.tokens[index] = Token(token.text, level, generation=1, index=token.index)
        self.refresh()

    def shade(self, probability: float | None) -> Style:
        """The ground of a token of a weight between 0 and 1."""
        if not self._shades:
            variables = self.app.theme_variables
            base = Color.parse(variables.get("background", "#000000"))
            text = Color.parse(variables.get("foreground", "#ffffff"))
            hot = Color.parse(variables.get("series-1", "#e69f00"))
            self._shades = [
                themes.shaded(base.blend(hot, 0.8 * step / STEPS), text, base) for step in range(STEPS + 1)
            ]
        return self._shades[round(STEPS * min(1.0, probability or 0.0))]

    def action_edge(self, direction: int) -> None:
        """To the first or the last token."""
        if self.tokens:
            self.cursor = 0 if direction < 0 else len(self.tokens) - 1
