"""Records -> `Scores`: what every trial became, how sure that is, and what follows from it. No torch, no vLLM."""

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
    "Sample",
    "Scores",
    "Trend",
    "Vulnerability",
    "score_run",
    "score_trials",
    "wilson_interval",
]
