"""Untrusted text made fit to print: model output, prompts and names may hold anything."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

ELLIPSIS = "\u2026"
_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories that show nothing or steer what follows: controls, bidi marks, private use, separators."""


def visible(text: str, *, keep: str = "") -> str:
    """Characters that would hide or steer the text are escaped; those in `keep` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _hides(c) else _escape(c) for c in text)


def _hides(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, with a mark where something was cut."""
    return text if len(text) <= limit else text[: max(1, limit - 1)] + ELLIPSIS


def brief(text: str, limit: int, *, keep: str = "") -> str:
    """Visible and clipped, at a cost that the limit bounds: a run may name its cells at any length."""
    return clip(visible(text[: limit + 1], keep=keep), limit)


def script_json(value: Any) -> str:
    """JSON that cannot leave a `<script>` element, whatever its strings hold."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
