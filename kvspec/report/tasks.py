"""Graded answers as rows of words: the guide's needle table, and retrieval against reasoning."""

from __future__ import annotations

from collections.abc import Iterator

from kvspec.report import words
from kvspec.score import Proportion, Scores
from kvspec.score.exposure import doses, exposures_of

ANSWERS = (
    "Context", "Task", "Cell", "Rate", "Flips", "Right", "n", "Of solved", "95 % interval", "n", "Given retrieval", "n",
    "Given operands", "n", "p (Holm)",
)  # fmt: skip
PAIRS = (
    "Context", "Cell", "Rate", "Flips", "Retrieval", "Reasoning", "Pairs", "Lost: retrieval", "reasoning", "both",
    "Sensitivity", "p (Holm)",
)  # fmt: skip


def answer_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """Graded answers per context, task and cell, the clean ones first. Columns as `ANSWERS`."""
    plans = {cell.plan.index: cell.plan for cell in scores.cells}
    for clean in scores.tasks.clean:
        chance = f"clean (chance {clean.chance:.0%})" if clean.chance is not None else "clean"
        yield (
            context(clean.context), clean.task, chance, "", "0", *_counted(clean.right), "", "", "",
            "", "", *_counted(clean.right_given_stated), "",
        )  # fmt: skip
        for found in scores.tasks.faulted:
            if (found.task, found.context) == (clean.task, clean.context):
                yield (
                    "", "", plans[found.cell].name, words.rate(plans[found.cell].fault),
                    words.expected(found.expected_flips), *_counted(found.right), words.percent(found.kept),
                    words.interval(found.kept), f"{found.kept.n:,}", *_counted(found.right_given_retrieved),
                    *_counted(found.right_given_stated), "" if found.p_holm is None else f"{found.p_holm:.2g}",
                )  # fmt: skip


def pair_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """Retrieval against reasoning per context and cell. Columns as `PAIRS`."""
    plans = {cell.plan.index: cell.plan for cell in scores.cells}
    exposed = exposures_of(scores.tasks)
    flips, _ = doses([exposure for _, exposure in exposed])
    for (pair, _), sides in zip(exposed, flips, strict=True):
        yield (
            context(pair.context), plans[pair.cell].name, words.rate(plans[pair.cell].fault),
            " / ".join(map(words.expected, sides or (None, None))),
            pair.retrieval, pair.reasoning, f"{pair.pairs:,}",
            f"{pair.only_retrieval:,}", f"{pair.only_reasoning:,}", f"{pair.both:,}",
            words.DASH if pair.sensitivity is None else str(pair.sensitivity), f"{pair.p_holm:.2g}",
        )  # fmt: skip


def context(tokens: int) -> str:
    """Tokens of a context, a dash where that is not a dimension of the prompts."""
    return f"{tokens:,}" if tokens else words.DASH


def _counted(share: Proportion) -> tuple[str, str]:
    return (words.percent(share), f"{share.n:,}") if share.n else (words.DASH, "")
