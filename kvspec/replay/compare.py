"""Replayed against recorded: identical, or where the answers part, and what may be the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvspec.replay.case import Case

CONTEXT = 8
"""Tokens shown before and after the first divergence."""
WHY = (
    "The flips depend on the map alone, and here each that was reached was read back from the cache. The text also "
    "depends on floating-point sums, which processors, thread counts and versions round differently, so between "
    "these two only the text may differ, and where it ends."
)

Verdict = Literal["identical", "differs", "no record", "not proven"]


@dataclass(frozen=True)
class Side:
    """One answer around the divergence."""

    token_ids: list[int]
    text: str


@dataclass(frozen=True)
class Replayed:
    """What became of one case."""

    case: Case
    token_ids: list[int]
    text: str
    finish_reason: str
    golden: list[int]
    """The fault-free answer here."""
    planned: int
    landed: int
    read_back: int
    exposed: int
    """Bits that reads changed, in every forward."""
    restored: int
    """Bits that were put back after the reads."""
    mismatches: int
    """Elements of the cache that held something else than they must."""
    written: int
    preemptions: int
    reruns: int
    nonfinite_at: int | None
    divergence: int | None
    """First token that differs from the record; `None` if none does or nothing is recorded."""
    recorded_side: Side | None = None
    here_side: Side | None = None

    @property
    def proven(self) -> bool:
        """Whether exactly the map's flips were applied, by count and by read-back."""
        landed = self.planned == self.landed == self.read_back
        return landed and self.exposed == self.restored and self.mismatches == 0

    @property
    def verdict(self) -> Verdict:
        """In one word or two; doubts about the injection come first."""
        if not self.proven:
            return "not proven"
        if self.case.recorded.token_ids is None:
            return "no record"
        return "identical" if self.divergence is None else "differs"

    @property
    def outcome(self) -> str:
        """Against the fault-free answer here: masked, sdc or due."""
        if self.finish_reason not in ("length", "stop") or self.nonfinite_at is not None:
            return "due"
        return "masked" if self.token_ids == self.golden else "sdc"

    @property
    def golden_identical(self) -> bool | None:
        """Whether the fault-free answer is the recorded one; `None` if that is not recorded."""
        recorded = self.case.recorded.golden
        return None if recorded is None else recorded == self.golden

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        sides = {"recorded": self.recorded_side, "here": self.here_side}
        return {
            "trial": self.case.name,
            "files": list(self.case.files),
            "maps": [m.id for m in self.case.maps],
            "verdict": self.verdict,
            "outcome": self.outcome,
            "flips": {
                "map": self.case.flips,
                "planned": self.planned,
                "landed": self.landed,
                "read_back": self.read_back,
                "exposed": self.exposed,
                "restored": self.restored,
                "wrong_elements": self.mismatches,
            },
            "tokens_written": self.written,
            "preemptions": self.preemptions,
            "reruns": self.reruns,
            "token_ids": self.token_ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "nonfinite_at": self.nonfinite_at,
            "golden_identical": self.golden_identical,
            "first_divergence": self.divergence,
            "divergence": {
                name: {"token_ids": side.token_ids, "text": side.text} for name, side in sides.items() if side
            },
        }


@dataclass(frozen=True)
class Replay:
    """All cases of a replay, and how this machine differs from the recorded ones."""

    model: str
    environment: dict[str, str]
    trials: tuple[Replayed, ...]

    @property
    def ok(self) -> bool:
        """Whether everything was injected as listed and nothing differs from its record."""
        return all(trial.verdict in ("identical", "no record") for trial in self.trials)

    @property
    def differences(self) -> list[tuple[str, str, str]]:
        """(fact, recorded, here) for each fact of the environment that differs from a record."""
        found: dict[tuple[str, str, str], None] = {}
        for recorded in (e for trial in self.trials if (e := trial.case.recorded.environment) is not None):
            for name in sorted({*recorded, *self.environment}):
                pair = recorded.get(name, "absent"), self.environment.get(name, "absent")
                if pair[0] != pair[1]:
                    found[name, *pair] = None
        return list(found)

    def count(self, verdict: Verdict) -> int:
        """Trials with that verdict."""
        return sum(trial.verdict == verdict for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        words: tuple[Verdict, ...] = ("identical", "differs", "no record", "not proven")
        return {
            "model": self.model,
            "counts": {"trials": len(self.trials), **{word: self.count(word) for word in words}},
            "environment": self.environment,
            "environment_differs": [
                {"fact": name, "recorded": before, "here": here} for name, before, here in self.differences
            ],
            "why": WHY if self.differences else None,
            "trials": [trial.to_json() for trial in self.trials],
        }


def first_divergence(recorded: Sequence[int], here: Sequence[int]) -> int | None:
    """Index of the first token that differs, `None` if the answers are equal."""
    if list(recorded) == list(here):
        return None
    pairs = zip(recorded, here, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(recorded), len(here)))


def around(token_ids: Sequence[int], at: int, decode: Callable[[Sequence[int]], str]) -> Side:
    """An answer around a token."""
    shown = list(token_ids[max(0, at - CONTEXT) : at + CONTEXT + 1])
    return Side(shown, decode(shown))
