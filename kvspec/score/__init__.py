"""Records -> `Scores`: what every trial became, how sure that is, and what follows from it. No torch, no vLLM.

The package can be called: `kvspec.score(golden, faulty)` compares any outputs, without a run (docs/drift.md).
"""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from kvspec.score import drift

if TYPE_CHECKING:
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

# All else is loaded when it is first used: a call of the package needs none of it.
_ELSEWHERE = {
    "CellDiff": "kvspec.score.compare",
    "RunDiff": "kvspec.score.compare",
    "compare_runs": "kvspec.score.compare",
    "score_run": "kvspec.score.scores",
    "score_trials": "kvspec.score.scores",
    "Difference": "kvspec.stats.intervals",
    "Proportion": "kvspec.stats.intervals",
    "Ratio": "kvspec.stats.intervals",
    "wilson_interval": "kvspec.stats.intervals",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "kvspec.score.model")), name)
    globals()[name] = value
    return value


class _Callable(ModuleType):
    """The package as a function."""

    def __call__(
        self,
        golden: Any,
        faulty: Any,
        golden_index: ArrayLike | None = None,
        *,
        metrics: Iterable[str] = drift.DEFAULT,
        limit: int | None = None,
        threads: int = 0,
    ) -> dict[str, drift.Column]:
        """`kvspec.score.drift.score`."""
        return drift.score(golden, faulty, golden_index, metrics=metrics, limit=limit, threads=threads)


# `kvspec.score` is this package and, to its users, a function: what Python allows a module to do about that.
sys.modules[__name__].__class__ = _Callable
