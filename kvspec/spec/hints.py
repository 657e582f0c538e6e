"""What to do about the mistakes that people make: the `hint` of schema diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvspec.spec.parse import resolve_scalar
from kvspec.spec.tree import Node, show

_KEYS = {
    "null": "`null` is a value in YAML, not a name: write `null_trials`",
    "<<": "merge keys are not part of YAML 1.2: use `include`, or an alias for a whole value",
    "ber": "a bit-error rate is `rate: {per_bit: ...}`",
    "max_new_tokens": "the key is `max_tokens`",
    "kind": "the key is `model`",
    "sites": "the keys are `site` for KV_WRITE or KV_READ, and `where` for a selection",
}
"""Words of other tools, and keys that cannot be written."""

_WORDS = {
    **dict.fromkeys(("bitflip", "bit_flip", "bitrot", "seu"), "independent bit flips are `random`"),
    **dict.fromkeys(("mbu", "ecc"), "neighbouring bits that flip together are `burst`"),
}
"""Names that the field has for the fault models."""

_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def for_key(key: str, known: Iterable[str]) -> str | None:
    """A hint for an unknown key."""
    known = list(known)
    if key in _KEYS:
        return _KEYS[key]
    guide = key.removeprefix("fault_injection_")
    if guide != key and guide in known:
        return f"here the key is `{guide}`"
    return did_you_mean(key, known) or "a private note is a key that starts with `x-`"


def for_word(word: Any, words: Iterable[Any]) -> str | None:
    """A hint for a word that is not in the list."""
    if not isinstance(word, str):
        return None
    if word.lower() in _WORDS and "random" in words:
        return _WORDS[word.lower()]
    return did_you_mean(word, [str(known) for known in words])


def for_type(node: Node, path: str, types: list[str]) -> str | None:
    """A hint for a value of the wrong type."""
    value = node.value
    if value is None:
        return None if path == "$" else "write a value, or leave the key out to take its default"
    if path.endswith(".rate") and types == ["object"]:
        number = show(node).strip("`") if not isinstance(value, list) else "[1e-6, 1e-5]"
        return f"give the rate a unit, such as `rate: {{per_bit: {number}}}`"
    if types == ["object"] and path == "$.model" and isinstance(value, str):
        return f"write `model: {{id: {show(node).strip('`')}}}`"
    if types == ["object"] and path == "$.prompts":
        return "write `prompts: {inline: [...]}`"
    if "boolean" in types and isinstance(value, str) and value.lower() in _BOOLEANS:
        return f"YAML 1.2 has only `true` and `false`: write `{_BOOLEANS[value.lower()]}`"
    if isinstance(value, str) and {"number", "integer"} & set(types):
        number = value.strip()
        if isinstance(resolve_scalar(number), (int, float)) and number:
            return f"a number has no quotes: write `{number}`"
        if number.endswith("%") and isinstance(resolve_scalar(number[:-1]), (int, float)):
            return "write a percentage as a fraction: 50 % is `0.5`"
    if "array" in types and isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"write a list: `[{show(node).strip('`')}]`"
    if "string" in types and isinstance(value, (int, float)):
        return f'put text in quotes: `"{show(node).strip("`")}"`'
    if types == ["array"] and isinstance(value, str):
        return f"write a list: `[{show(node).strip('`')}]`"
    if types == ["integer"] and isinstance(value, float):
        return f"write a whole number, such as `{max(round(value), 0)}`"
    return None


def for_number(value: float, schema: dict[str, Any]) -> str | None:
    """A hint for a number out of range."""
    if schema["maximum"] <= 1 < value <= 100:
        return "write a percentage as a fraction: 50 % is `0.5`"
    return None


def did_you_mean(word: str, known: Sequence[str], likeness: float = 0.6) -> str | None:
    """A hint with the word that was meant, or `None` if none is as like: 1 is the same but for case."""
    import difflib  # Only a mistake needs it.

    folded = {name.lower(): name for name in reversed(known)}
    close = difflib.get_close_matches(word.lower()[:100], folded, n=1, cutoff=likeness)
    return f"did you mean `{folded[close[0]]}`?" if close else None
