"""Where the passages of a text begin: at every token, line, paragraph or number of words.

Counted in bytes of clean text in UTF-8. A text may come in any pieces; the passages are the same.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from core.errors import UserError

KINDS = ("token", "line", "paragraph", "document")
_SPACES = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
_LINE_END = ord("\n")


class Passages:
    """Finds where the passages of one document begin, piece by piece."""

    def __init__(self, per: str) -> None:
        """`per` is one of KINDS or a number of words such as "200 words". Raises UserError."""
        self.words = 0
        match = re.fullmatch(r"([1-9][0-9]{0,8}) *words?", per.strip())
        if match:
            self.words = int(match[1])
        elif per not in KINDS:
            raise UserError(
                f'--per is "{per}"; accepted: {", ".join(KINDS)}, or a number such as "200 words"'
            )
        self.per = per
        self.start_document()

    def start_document(self) -> None:
        """Start another document."""
        self._after_space = True
        self._line_ends = self._words = 0

    def begins(self, text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Where passages begin in the document's next bytes; the first byte of a document isn't counted."""
        if self.per == "line":
            after = np.flatnonzero(text == _LINE_END) + 1
            return after  # one may begin right after these bytes: at the first of the next
        if self.per in ("token", "document") or not len(text):
            return np.empty(0, np.int64)
        space = _SPACES[text]
        opens = np.flatnonzero(~space & np.append(self._after_space, space[:-1]))
        if self.words:
            number = self._words + np.arange(len(opens))
            chosen = opens[(number % self.words == 0) & (number > 0)]
        else:
            ends = np.cumsum(text == _LINE_END)
            total = self._line_ends + ends[opens]
            between = np.diff(total, prepend=0)
            # Blank lines at the beginning of a document don't start a second paragraph.
            first = self._words == 0
            chosen = opens[(between >= 2) & ((np.arange(len(opens)) > 0) | (not first))]
            self._line_ends = int(self._line_ends + ends[-1] - (total[-1] if len(total) else 0))
        self._words += len(opens)
        self._after_space = bool(space[-1])
        return chosen
