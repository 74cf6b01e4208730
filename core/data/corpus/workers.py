"""What the stages of preparing share: a text on its way through them, and ordered work on all cores."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from core.data.corpus.listing import SourceFile
from core.data.corpus.near_copies import near_copies
from core.data.corpus.progress import Reporter
from core.data.corpus.reading import Tail
from core.data.corpus.split import TAIL, TRAIN
from core.data.corpus.survey import Facts

A = TypeVar("A")
B = TypeVar("B")

REPORT_SECONDS = 0.1  # between reports while no result arrives


@dataclass
class Text:
    """A usable file on its way through the stages."""

    source: SourceFile
    facts: Facts
    side: str = TRAIN
    key: str = ""
    near_copies: list[str] = field(default_factory=list)

    def decide(self, side: str, options_key: str, fraction: float) -> None:
        """Set the side, and the key: everything that determines this text's ids with one tokenizer."""
        self.side = side
        cut = repr(fraction) if side == TAIL else ""
        self.key = f"{self.facts.content}:{options_key}:{cut}"

    def tail(self, fraction: float) -> Tail | None:
        """The validation part, if it is the end of this text."""
        return Tail.of(self.facts.characters, fraction) if self.side == TAIL else None


def note_near_copies(texts: list[Text]) -> str:
    """Add notes about texts that are nearly the same. Returns a sentence if they are on different sides."""
    across = []
    pairs = near_copies([text.facts.sketch for text in texts], [text.facts.letters for text in texts])
    for first, second, share in pairs:
        one, two = texts[first], texts[second]
        for text, other in ((one, two), (two, one)):
            text.near_copies.append(f"nearly the same text as {other.source.name} (about {share:.0%})")
        if one.side != two.side:
            across.append(f"{one.source.name} ({one.side}) and {two.source.name} ({two.side})")
    if not across:
        return ""
    more = f", and {len(across) - 1} more pairs," if len(across) > 1 else ""
    return (
        f"{across[0]}{more} are nearly the same text: the validation loss looks better than it is; "
        "keep one of them"
    )


def in_order(
    items: Iterable[A], function: Callable[[A], B], workers: int, report: Reporter, stop: threading.Event
) -> Iterator[tuple[A, B]]:
    """Yields (item, function(item)) in order, with a bounded number of items in flight.

    Keeps `report` up to date while waiting; if the consumer or the report's callback raises, `stop` is set so
    that long functions can end early.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: deque[tuple[A, Future[B]]] = deque()

        def oldest() -> tuple[A, B]:
            item, future = waiting.popleft()
            while not future.done():
                wait([future], timeout=REPORT_SECONDS)
                report.tell()
            return item, future.result()

        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > 4 * workers:
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            stop.set()
            for _, future in waiting:
                future.cancel()
