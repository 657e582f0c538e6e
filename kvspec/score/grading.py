"""Whether an answer is right: the graders of a plan, applied to the text of a record. No pattern backtracks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvspec import _native
from kvspec.spec.harness import harness_grade

RIGHT, STATED = 1, 2
"""Flags of an answer: it is right; it states the operands first, in their order."""

_NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
MAX_DIGITS = 300
"""Longer runs of digits are no number: a corrupted model writes them, and none is an answer."""

Grade = Callable[[str], bool]


def grade_function(grader: Mapping[str, Any]) -> Grade:
    """The test of one grader, given as plain data of `kvspec.spec.model.Grader`."""
    kind, expected = grader["kind"], grader["expected"]
    match kind:
        case "exact":
            return lambda text: text.strip() == expected.strip()
        case "regex":
            return _native.Pattern(expected).occurs_in
        case "choice":
            return _choice(str(expected), [str(choice) for choice in grader["choices"]])
        case "numeric":
            wanted, tolerance = float(expected), float(grader["tolerance"])
            return lambda text: bool(found := numbers(text)) and abs(found[-1] - wanted) <= tolerance
        case "lm_eval":
            return harness_grade(str(expected))
    raise ValueError(f"grader `{kind}` is not known")


def numbers(text: str) -> list[float]:
    """All numbers of a text; 1,000 is one. A minus sign counts unless it stands behind a word or number."""
    found = [match.group().replace(",", "") for match in _NUMBER.finditer(text)]
    return [float(number) for number in found if len(number) <= MAX_DIGITS]


def _choice(expected: str, choices: Sequence[str]) -> Grade:
    # the longest first, so that "red box" is not taken for "red"
    words = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

    def grade(text: str) -> bool:
        first = pattern.search(text)
        return first is not None and first.group().casefold() == expected.casefold()

    return grade


class Graders:
    """The graders of a campaign, by request."""

    def __init__(self, tasks: Sequence[Mapping[str, Any] | None]) -> None:
        self._kinds = [None if task is None else task["grader"]["kind"] for task in tasks]
        self._grade = [None if task is None else grade_function(task["grader"]) for task in tasks]
        self._operands = [None if task is None else [float(x) for x in task["operands"]] for task in tasks]

    def flags(self, request: int, text: str) -> int:
        """`RIGHT` and `STATED` of an answer; 0 for a request without grader."""
        grade, operands = self._grade[request], self._operands[request]
        if grade is None:
            return 0
        stated = bool(operands) and numbers(text)[: len(operands or ())] == operands
        return RIGHT * grade(text) + STATED * stated

    def decided(self, request: int, text: str, ends: Sequence[int]) -> int | None:
        """Tokens after which a right answer stays right: at the end of each later one (`ends`, characters) it is right.

        Every token of an answer that must be `exact`, for what follows would make it wrong. `None` where the scoring of
        a harness judges answers as a whole, cut and filtered in ways of its own.
        """
        grade = self._grade[request]
        if grade is None or self._kinds[request] == "lm_eval":
            return None
        if self._kinds[request] == "exact":
            return len(ends)
        k = len(ends)
        while k > 1 and (ends[k - 2] == ends[k - 1] or grade(text[: ends[k - 2]])):
            k -= 1
        return k
