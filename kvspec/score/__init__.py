"""Records -> `Scores`: what every trial became, how sure that is, and what follows from it. No torch, no vLLM."""

from kvspec.score.compare import CellDiff, RunDiff, compare_runs
from kvspec.score.model import (
    CellScore,
    DoseResponse,
    Effect,
    Estimate,
    Flips,
    Floor,
    PairTest,
    Sample,
    Scores,
    Trend,
    Vulnerability,
)
from kvspec.score.scores import score_run, score_trials
from kvspec.stats.intervals import Difference, Proportion, Ratio, wilson_interval

__all__ = [
    "CellDiff",
    "CellScore",
    "Difference",
    "DoseResponse",
    "Effect",
    "Estimate",
    "Flips",
    "Floor",
    "PairTest",
    "Proportion",
    "Ratio",
    "RunDiff",
    "Sample",
    "Scores",
    "Trend",
    "Vulnerability",
    "compare_runs",
    "score_run",
    "score_trials",
    "wilson_interval",
]
