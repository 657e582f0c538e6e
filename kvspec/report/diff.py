"""Two answers beside each other: which pieces are common, which are not. Pieces are tokens, or words without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from kvspec.report.safe import visible

NEWLINE = "\u21b5"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token or word as it is shown."""

    text: str
    """Printable; line breaks follow a visible mark."""
    same: bool
    """Whether the other answer has it at the matching place."""
    at: int
    """Index in the answer."""
    id: int | None = None
    """Token id, if it is a token."""
    first: bool = False
    """Whether it is the first that differs."""
    flips: int = 0
    """Flips in the cache row of this token."""


def words(text: str) -> list[str]:
    """Words with the space before them, so that joined they are the text again."""
    return re.findall(r"\s*\S+|\s+", text)


def shown(piece: str) -> str:
    """A piece in print: a line break is seen and still breaks the line; an empty piece is seen too."""
    if not piece:
        return "\u2205"
    return visible(piece.replace("\r\n", "\n"), keep="\n").replace("\n", NEWLINE + "\n")


def align(golden: Sequence[object], faulted: Sequence[object]) -> tuple[list[bool], list[bool]]:
    """For every item of both, whether it belongs to the longest matching runs of the two."""
    left, right = [False] * len(golden), [False] * len(faulted)
    for a, b, size in SequenceMatcher(None, golden, faulted, autojunk=False).get_matching_blocks():
        left[a : a + size] = [True] * size
        right[b : b + size] = [True] * size
    return left, right


def first_difference(golden: Sequence[object], faulted: Sequence[object]) -> int | None:
    """Index of the first item that differs, `None` if both are equal."""
    for at, (a, b) in enumerate(zip(golden, faulted, strict=False)):
        if a != b:
            return at
    return None if len(golden) == len(faulted) else min(len(golden), len(faulted))


def pieces(
    texts: Sequence[str], same: Sequence[bool], first: int | None, ids: Sequence[int] | None = None
) -> list[Piece]:
    """The pieces of one answer."""
    return [
        Piece(shown(text), match, at, None if ids is None else ids[at], at == first)
        for at, (text, match) in enumerate(zip(texts, same, strict=True))
    ]
