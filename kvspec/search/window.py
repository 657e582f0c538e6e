"""Where in the rates of a fault the zombie state lies: between the fall of reasoning and the loss of retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import inf, sqrt
from typing import Any, Literal

from kvspec.score.zombie import ZOMBIE_REASONING, ZOMBIE_RETRIEVAL, ZombieState
from kvspec.stats.crossing import Crossing, crossing
from kvspec.stats.intervals import Proportion, Ratio

CLOSE = 1.1
"""Neighbouring rates whose ratio is at most this are not parted any more."""
BEYOND = 10.0
"""A crossing below all rates is looked for at a rate lower by this factor; so is one above them, upwards."""

Measured = Sequence[tuple[float, ZombieState]]
"""One pair of tasks by one definition, by rising rate."""


@dataclass(frozen=True, slots=True)
class Window:
    """One pair of tasks under one fault by one definition. Both shares are taken to fall with the rate.

    Silent failures become more only up to a rate: beyond, most of them are detected. So the fall of a silent zombie's
    reasoning is sought up to the rate with most silent failures, and from there on where they are half no more.
    """

    retrieval: str
    reasoning: str
    context: int
    silent: bool
    rates: tuple[float, ...]
    """Those that were measured."""
    halved: Crossing
    """Reasoning falls to half of clean."""
    kept: Crossing
    """Retrieval falls below 95 % of clean."""
    detected: Crossing | None
    """Silent: fewer than half of the reasonings fail undetected again. `None` by answers, or if half never did."""
    peak: int | None
    """Silent: index of the rate with most silent failures of reasoning."""
    most: Proportion | None
    """Silent: the share of silent failures there."""
    bound: float | None
    """Silent: what that share can be at most at any rate at which retrieval may be kept, between those measured too."""

    @classmethod
    def of(cls, measured: Measured) -> Window:
        """Find the crossings. All of `measured` are of one pair and definition; none of them is without trials."""
        first = measured[0][1]
        reasoned = [(rate, state.reasoned.k, state.reasoned.n) for rate, state in measured]
        kept = crossing([(rate, state.recalled.k, state.recalled.n) for rate, state in measured], ZOMBIE_RETRIEVAL)
        peak = most = detected = bound = None
        if first.silent:
            peak = min(range(len(reasoned)), key=lambda at: reasoned[at][1] / reasoned[at][2])
            _, k, n = reasoned[peak]
            most = Proportion.of(n - k, n)
            bound = _bound(measured, kept)
        halved = crossing(reasoned[: None if peak is None else peak + 1], ZOMBIE_REASONING, holds_at=False)
        if peak is not None and not halved.never:
            failed = [(rate, n - k, n) for rate, k, n in reasoned[peak:]]
            detected = crossing(failed, 1 - ZOMBIE_REASONING)
        return cls(
            retrieval=first.retrieval,
            reasoning=first.reasoning,
            context=first.context,
            silent=first.silent,
            rates=tuple(rate for rate, _ in measured),
            halved=halved,
            kept=kept,
            detected=detected,
            peak=peak,
            most=most,
            bound=bound,
        )

    @property
    def end(self) -> Crossing:
        """Where the state ends: retrieval is lost, or failures are detected, whichever comes first."""
        if self.detected is None:
            return self.kept
        both = (self.kept, self.detected)
        first = min(both, key=_place)
        lows, highs = [one.low for one in both], [one.high for one in both]
        return replace(
            first,
            low=None if None in lows else min(low for low in lows if low is not None),
            high=min((high for high in highs if high is not None), default=None),
        )

    @property
    def width(self) -> float:
        """Ratio of the estimates of end and start, where an open one counts a factor `BEYOND` outside of the rates; 0
        if reasoning does not fall to half."""
        return 0.0 if self.halved.never else self._at(self.end) / self._at(self.halved)

    @property
    def decision(self) -> Literal["window", "none", "undecided"]:
        """Whether the intervals of start and end lie apart: a state holds in between, or none does."""
        start, end = self.halved, self.end
        if start.high is not None and end.low is not None and start.high <= end.low:
            return "window"
        if self.bound is not None and self.halved.never:
            # the fall is sought up to the peak of those measured; the true one may lie between two of them
            return "none" if self.bound < 1 - ZOMBIE_REASONING else "undecided"
        if start.low is not None and end.high is not None and end.high <= start.low:
            return "none"
        return "undecided"

    @property
    def ratio(self) -> Ratio | None:
        """End over start. The interval is that of the ends of both intervals; 90 % or more, for each may miss in 5 %.
        The value is `None` above the rates; there is no ratio where start or end lie below them or start above."""
        start, end = self.halved, self.end
        if start.value is None or end.before is None:
            return None
        low = 0.0 if end.low is None or start.high is None else end.low / start.high
        high = None if end.high is None or start.low is None else end.high / start.low
        return Ratio(None if end.value is None else end.value / start.value, low, high) if end.value or low else None

    def next_rates(self) -> list[float]:
        """Rates that would place start and end better, where they are not placed yet."""
        if self.peak is not None and self.halved.never:
            return self._around_the_peak(self.peak)
        if self.halved.never and self.kept.never:
            return [self.rates[-1] * BEYOND]
        rising = self.rates if self.peak is None else self.rates[: self.peak + 1]
        falling = self.rates if self.end.value == self.kept.value else self.rates[self.peak or 0 :]
        return next_rates(self.halved, rising) + next_rates(self.end, falling)

    @property
    def start(self) -> str:
        """Where reasoning fails in half of the trials."""
        if self.most is not None and self.halved.never:
            return f"not seen: {self.most.rate:.0%} at most"
        return shown(self.halved, self.rates)

    @property
    def stop(self) -> str:
        """Up to where retrieval is kept."""
        return shown(self.kept, self.rates)

    @property
    def last(self) -> str:
        """Silent: up to where half of the reasonings fail undetected."""
        return "-" if self.detected is None else shown(self.detected, self.rates)

    @property
    def words(self) -> str:
        """Both crossings and what lies between them, in a sentence without its full stop."""
        if self.most is not None and self.halved.never:
            start = f"half of {self.reasoning} wrong and undetected at no rate measured ({self.most.rate:.0%} at most)"
        elif self.silent:
            start = f"half of {self.reasoning} wrong and undetected at {self.start}"
            start += f" and up to {self.last}" if self.detected is not None else ""
        else:
            start = f"{self.reasoning} falls to half at {self.start}"
        undetected = " and undetected" if self.silent else ""
        return f"{start}; {self.retrieval} is kept{undetected} up to {self.stop}: {self.conclusion}"

    @property
    def conclusion(self) -> str:
        """`window, ratio 12 [3, 40]`, `no window` or what is left open."""
        ratio = f", ratio {self.ratio}" if self.ratio is not None else ""
        match self.decision:
            case "window":
                return f"window{ratio}"
            case "none":
                return f"no window{ratio}"
        return f"undecided, {'a window' if self.width > 1 else 'none'} by the shares{ratio}"

    def to_json(self) -> dict[str, Any]:
        """Everything, with the decision."""
        ratio = self.ratio
        return {
            "retrieval": self.retrieval,
            "reasoning": self.reasoning,
            "context": self.context,
            "definition": "silent" if self.silent else "answers",
            "reasoning_halved_at": asdict(self.halved),
            "retrieval_kept_up_to": asdict(self.kept),
            "most_silent_failures": None if self.most is None else asdict(self.most),
            "silent_failures_bound": self.bound,
            "failures_silent_up_to": None if self.detected is None else asdict(self.detected),
            "decision": self.decision,
            "ratio": None if ratio is None else asdict(ratio),
            "words": self.words,
        }

    def _around_the_peak(self, peak: int) -> list[float]:
        """More silent failures may lie beside the rate that has most, unless retrieval is lost there."""
        if self.kept.before is None:
            return [self.rates[0] / BEYOND]
        if peak == len(self.rates) - 1 and self.kept.never:
            return [self.rates[-1] * BEYOND]
        gaps = [(self.rates[at + 1] / self.rates[at], at) for at in (peak - 1, peak) if 0 <= at < len(self.rates) - 1]
        gaps = [gap for gap in gaps if gap[0] > CLOSE and self.rates[gap[1]] < self._at(self.kept)]
        if not gaps:
            return []
        _, at = max(gaps)
        return [rounded(sqrt(self.rates[at] * self.rates[at + 1]))]

    def _at(self, one: Crossing) -> float:
        if one.value is not None:
            return one.value
        return self.rates[-1] * BEYOND if one.never else self.rates[0] / BEYOND


def _bound(measured: Measured, kept: Crossing) -> float:
    """The most silent failures that there can be where retrieval may be kept: the upper end of the share at a rate that
    was measured. Between two, no more fail than at the higher one, and no more go undetected than at the lower one."""
    last = inf if kept.high is None else kept.high
    failed = [_high(state.ends[1].wrong + state.ends[1].wrong_due, state.ends[1].n) for _, state in measured]
    undetected = [_high(state.ends[1].right + state.ends[1].wrong, state.ends[1].n) for _, state in measured]
    most = [_high(state.ends[1].wrong, state.ends[1].n) for rate, state in measured if rate <= last]
    below = [failed[0]]
    between = [min(failed[at + 1], undetected[at]) for at, (rate, _) in enumerate(measured[:-1]) if rate < last]
    above = [undetected[-1]] if measured[-1][0] < last else []
    return max(most + below + between + above)


def _high(k: int, n: int) -> float:
    high = Proportion.of(k, n).high
    return 1.0 if high is None else high


def next_rates(one: Crossing, rates: Sequence[float]) -> list[float]:
    """The rate that would place a crossing better: the middle, on a logarithmic scale, of the widest gap in which it
    may lie, for an interval ends at rates that were measured. A lower one if it lies below all rates; none if above, or
    if all gaps are narrow."""
    if one.before is None:
        return [rates[0] / BEYOND]
    if one.after is None:
        return []
    low, high = one.low or 0.0, inf if one.high is None else one.high
    gap, start, end = max((b / a, a, b) for a, b in pairwise(rate for rate in rates if low <= rate <= high))
    return [rounded(sqrt(start * end))] if gap > CLOSE else []


def shown(found: Crossing, rates: Sequence[float]) -> str:
    """`2.2e-09 [1e-09, 1e-08]`; `> 1e-05` where no rate that was measured is beyond it, with the interval if open."""
    low = "-" if found.low is None else f"{found.low:.3g}"
    high = "-" if found.high is None else f"{found.high:.3g}"
    if found.value is not None:
        return f"{found.value:.3g} [{low}, {high}]"
    value, certain = (
        (f"> {rates[-1]:.3g}", found.low == rates[-1]) if found.never else (f"< {rates[0]:.3g}", found.high == rates[0])
    )
    return value if certain else f"{value} [{low}, {high}]"


def rounded(rate: float) -> float:
    """A rate as it will stand in a profile."""
    return float(f"{rate:.4g}")


def _place(one: Crossing) -> float:
    if one.value is not None:
        return one.value
    return inf if one.never else 0.0
