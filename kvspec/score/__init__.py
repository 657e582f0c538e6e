"""Records -> `Scores`: what every trial became, how sure that is, and what follows from it. No torch, no vLLM."""

from kvspec.score.model import CellScore, Flips, Floor, Sample, Scores, Trend
from kvspec.score.scores import score_run, score_trials
from kvspec.stats.intervals import Proportion, wilson_interval

__all__ = [
    "CellScore",
    "Flips",
    "Floor",
    "Proportion",
    "Sample",
    "Scores",
    "Trend",
    "score_run",
    "score_trials",
    "wilson_interval",
]
