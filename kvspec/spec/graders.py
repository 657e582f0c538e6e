"""Graders of a `.jsonl` prompt file: the line `{"text": ..., "numeric": 100}` says when its answer is right."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from kvspec import _native
from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.hints import did_you_mean
from kvspec.spec.model import Grader, Task
from kvspec.spec.tree import printable

KINDS = ("exact", "regex", "choice", "numeric")
KEYS = (*KINDS, "choices", "tolerance")
"""Keys that only a grader has."""
TYPO = 0.8
"""Likeness from which a key of the file's own is taken for a mistyped one: `numerc` (0.92), not `number` (0.77)."""
MAX_CHARS = 10_000
MAX_CHOICES = 100
LARGEST = sys.float_info.max
"""Numbers are compared as float64; integers of JSON have no end."""
DEFAULT_TASK = "answer"


def read_task(record: dict[str, Any], line: int, mark: Mark, where: str) -> Task | None:
    """What a line asks for, or `None` if it names no grader.

    Keys: one of `KINDS`; `choices` with choice; `tolerance` with numeric; `task` (name of the task), `kind` (retrieval
    or reasoning), `item` (lines of one item pair) and `context` (tokens). Other keys are the file's own, except
    `grader` and near misses of a grader's key, for a prompt is not left ungraded without a word.
    Raises `SpecError`: KVS201, KVS202, KVS203, KVS205, KVS206, KVS207, KVS210.
    """

    def wrong(code: str, problem: str, expected: str) -> SpecError:
        return SpecError(Diagnostic(code, problem, mark, where, expected))

    def text(key: str, default: str) -> str:
        value = record.get(key, default)
        if not isinstance(value, str | int) or isinstance(value, bool) or not 0 < len(str(value)) <= 200:
            raise wrong("KVS201", f"`{key}` of the line is not a name", "text of 1 to 200 characters")
        return str(value)

    for key in record:
        if hint := _typo(key):
            expected = f"{', '.join(KEYS)}, or a key that is like none of them"
            raise SpecError(
                Diagnostic("KVS202", f"`{printable(key)}` is no key of a grader", mark, where, expected, hint=hint)
            )
    named = [kind for kind in KINDS if kind in record]
    if not named:
        if stray := [key for key in ("choices", "tolerance") if key in record]:
            raise wrong(
                "KVS206", f"`{stray[0]}` belongs to a grader, and the line has none", f"one of {', '.join(KINDS)}"
            )
        return None
    if len(named) > 1:
        raise wrong("KVS206", f"`{named[1]}` does not go together with `{named[0]}`", f"one of {', '.join(KINDS)}")
    context = record.get("context", 0)
    if not isinstance(context, int) or isinstance(context, bool) or not 0 <= context < 2**32:
        raise wrong("KVS201", "`context` of the line is not a length", "a number of tokens")
    kind = record.get("kind", "other")
    if kind not in ("retrieval", "reasoning", "other"):
        raise wrong("KVS203", "`kind` of the line is not allowed", "retrieval, reasoning or other")
    return Task(
        name=text("task", DEFAULT_TASK),
        kind=kind,
        item=text("item", str(line)),
        context=context,
        grader=_grader(named[0], record, wrong),
    )


@lru_cache(maxsize=1024)
def _typo(key: str) -> str | None:
    """What was meant by a key that looks like one of a grader and is none."""
    if key in KEYS:
        return None
    if key.lower() in ("grader", "graders"):
        return 'a grader is a key of its own, with the right answer: `"numeric": 100`'
    return did_you_mean(key, KEYS, TYPO)


def _grader(kind: Any, record: dict[str, Any], wrong: Any) -> Grader:
    value = record[kind]
    if kind == "numeric":
        tolerance = record.get("tolerance", 0)
        for number in (value, tolerance):
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise wrong(
                    "KVS201", "the line has no number where one is needed", '{"numeric": 100, "tolerance": 0.5}'
                )
            if not -LARGEST <= number <= LARGEST:  # NaN too
                raise wrong("KVS205", "a number of the line is out of range", f"up to {LARGEST:g} on either side of 0")
        if tolerance < 0:
            raise wrong("KVS205", "`tolerance` is below 0", "a number from 0")
        return Grader(kind, value, tolerance=float(tolerance))
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CHARS:
        raise wrong("KVS201", f"`{kind}` of the line is not a text", f"1 to {MAX_CHARS} characters")
    if kind == "regex":
        try:
            _native.Pattern(value)
        except ValueError as error:
            last = str(error).strip().splitlines()[-1]
            expected = "a pattern of the linear-time engine (no backreference, no look-around)"
            raise wrong("KVS210", f"the pattern is refused: {last}", expected) from None
    if kind != "choice":
        return Grader(kind, value)
    choices = record.get("choices")
    if (
        not isinstance(choices, list)
        or not 2 <= len(choices) <= MAX_CHOICES
        or not all(isinstance(choice, str) and 0 < len(choice) <= 200 for choice in choices)
        or value not in choices
    ):
        raise wrong(
            "KVS201", "the line has no list of choices with the right one in it", '"choices": ["A", "B", "C", "D"]'
        )
    return Grader(kind, value, choices=tuple(choices))
