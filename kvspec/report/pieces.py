"""The text of single tokens, such that all pieces joined are the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What a tokenizer gives for bytes that are no character yet."""


def token_pieces(tokenizer: Any) -> Callable[[Sequence[int]], list[str]]:
    """A function from token ids to the text that each adds to the answer.

    A token alone may decode otherwise than inside its answer (a space before it, half a character), so each is the
    difference of two prefixes; where that is not defined, its text alone.
    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    def pieces(ids: Sequence[int]) -> list[str]:
        found: list[str] = []
        for end in range(1, len(ids) + 1):
            # Prefixes begin a few tokens back: long enough to join words, and short enough to be cheap.
            start = max(0, end - 8)
            before, after = decode(ids[start : end - 1]).rstrip(UNFINISHED), decode(ids[start:end])
            piece = after[len(before) :] if after.startswith(before) else decode(ids[end - 1 : end])
            found.append(piece or UNFINISHED)
        return found

    return pieces
