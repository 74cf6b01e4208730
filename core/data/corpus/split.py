"""Which text is for validation: whole documents if there are enough, otherwise the tail of each.

Decisions are stored by name and by content: books that arrive later never move a book from one side to the
other. Copies of a text are always on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TRAIN = "train"
VALIDATION = "validation"
TAIL = "tail"
SIDES = (VALIDATION, TAIL, TRAIN)  # if copies disagree, the first of these wins

ENOUGH_DOCUMENTS = 4
# How far whole documents may be from the requested fraction before tails are used instead.
MOST_OVER = 1.25
MOST_OVER_ALONE = 2.5
LEAST = 0.25


@dataclass(frozen=True, slots=True)
class Document:
    """What the split needs to know about a file.

    `content` is the same for all copies of a text. `raw` is the hash of the file's bytes: it determines the
    random order, and records of earlier versions identify a text by it.
    """

    name: str
    content: str
    size: int
    raw: str = ""


Decisions = dict[str, tuple[str, str]]
"""By name: the content's hash, and the side."""


def decide(
    documents: Iterable[Document], known: Mapping[str, tuple[str, str]], seed: int, fraction: float
) -> Decisions:
    """The side of every document, keeping what `known` says, with about `fraction` of the bytes for
    validation.

    Depends only on the documents, what is known, seed and fraction. There is always validation text, whole or
    a tail; if all of it is gone, text that was trained on has to do.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.content, []).append(document)
    sides = _remembered(groups, known)
    sizes = {content: members[0].size for content, members in groups.items()}
    ranks = {
        content: _rank(seed, min(document.raw or content for document in members))
        for content, members in groups.items()
    }
    fresh = sorted(set(groups) - set(sides), key=lambda content: ranks[content])
    sides |= _choose(fresh, sides, sizes, fraction, first=not sides)
    if set(sides.values()) == {TRAIN}:  # the validation text was removed: choose again
        order = sorted(groups, key=lambda content: ranks[content])
        sides = _choose(order, {}, sizes, fraction, first=True)
    return {
        document.name: (content, sides[content])
        for content, members in groups.items()
        for document in members
    }


def _remembered(groups: Mapping[str, list[Document]], known: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The sides of contents that were decided before, under this name or another."""
    ranks = {side: rank for rank, side in enumerate(SIDES)}
    past: dict[str, int] = {}
    for content, side in known.values():
        past[content] = min(past.get(content, len(SIDES)), ranks[side])
    sides = {}
    for content, members in groups.items():
        best = past.get(content, len(SIDES))
        for document in members:
            best = min(best, past.get(document.raw, len(SIDES)))
            if document.name in known:
                best = min(best, ranks[known[document.name][1]])
        if best < len(SIDES):
            sides[content] = SIDES[best]
    return sides


def _choose(
    fresh: list[str], sides: Mapping[str, str], sizes: Mapping[str, int], fraction: float, first: bool
) -> dict[str, str]:
    """Sides for new documents, visited in an order that depends on the random seed."""
    if first and len(fresh) < ENOUGH_DOCUMENTS:
        return dict.fromkeys(fresh, TAIL)
    target = fraction * sum(sizes.values())
    share = {TRAIN: 0.0, VALIDATION: 1.0, TAIL: fraction}
    validating = sum(sizes[content] * share[side] for content, side in sides.items())
    chosen = dict.fromkeys(fresh, TRAIN)
    for content in fresh:
        size = sizes[content]
        if validating + size <= MOST_OVER * target and size < 2 * (target - validating):
            chosen[content] = VALIDATION
            validating += size
    if validating == 0 and fresh:
        nearest = min(fresh, key=lambda content: abs(sizes[content] - target))
        if sizes[nearest] > MOST_OVER_ALONE * target:
            return dict.fromkeys(fresh, TAIL)
        chosen[nearest] = VALIDATION
    elif validating < LEAST * target:
        rest = [content for content in fresh if chosen[content] == TRAIN]
        if rest:
            chosen[max(rest, key=lambda content: sizes[content])] = TAIL
    return chosen


def _rank(seed: int, content: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{content}".encode(), digest_size=8).digest()
