"""The texts that one side of Generate has generated: a retry or a branch keeps the previous one."""

from __future__ import annotations

from mamba_tui.widgets.token_view import Token

KEPT = 20


class Variants:
    """Lists of tokens, one of which is shown, and one, perhaps another, is being written."""

    def __init__(self) -> None:
        self.texts: list[list[Token]] = []
        self.at = -1
        self.written: list[Token] = []

    def begin(self, tokens: list[Token]) -> list[Token]:
        """Start another text with these tokens, and show it. The oldest ones are dropped."""
        self.texts = [text for text in self.texts if len(text) > 0]
        self.texts.append(tokens)
        del self.texts[:-KEPT]
        self.at = len(self.texts) - 1
        self.written = tokens
        return tokens

    def turn(self, by: int) -> list[Token] | None:
        """Show an earlier or later text; None at either end."""
        target = self.at + by
        if not 0 <= target < len(self.texts):
            return None
        self.at = target
        return self.texts[target]

    @property
    def newest_shown(self) -> bool:
        """Whether the shown text is the one that the generator is continuing."""
        return bool(self.texts) and self.texts[self.at] is self.written

    @property
    def words(self) -> str:
        """Which text is shown, if there are several."""
        return f"text {self.at + 1} of {len(self.texts)}" if len(self.texts) > 1 else ""
