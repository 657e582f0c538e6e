"""Where the flips of a trial are: enumerated again from the keys of the plan, for records only count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.score.draws import CellDraws
from kvspec.score.views import TrialView

FLIPS_LISTED = 100_000
"""Flips of one trial that are enumerated at most."""


@dataclass(frozen=True, slots=True)
class FlipList:
    """Single flips of a trial, by rising token, layer, K before V, head, element, bit. All arrays are `[N]`."""

    total: int
    """Flips of the trial; more than N if only the first tokens are listed."""
    layer: NDArray[np.int64]
    value: NDArray[np.int64]
    """0 is K, 1 is V."""
    head: NDArray[np.int64]
    token: NDArray[np.int64]
    """Logical position in the request, the prompt included."""
    element: NDArray[np.int64]
    bit: NDArray[np.int64]


def list_flips(plan: Mapping[str, Any], fault: Mapping[str, Any], trial: TrialView, geometry: Any) -> FlipList | None:
    """The flips of a trial, enumerated from the plan's keys; `None` where they cannot be known for certain.

    Args:
        plan: content of `plan.json`.
        fault: the concrete fault of the trial's cell, as plain data.
        trial: what was recorded.
        geometry: the model's `kvspec.models.Geometry`.

    They are certain if the site is KV_WRITE and the enumeration gives exactly as many flips as were planned.
    """
    if fault["site"] != "KV_WRITE" or trial.planned != trial.landed or not trial.planned:
        return None
    draws = CellDraws.of(plan, fault, trial.cell, geometry)
    if draws is None:
        return None
    sampler, written = draws.sampler, trial.tokens_written
    common = draws.of_trial(trial.request, trial.trial, trial.prompt_tokens)
    if sampler.count(tokens=(0, written), **common) != trial.planned:
        return None
    if trial.planned > FLIPS_LISTED:
        written = max(1, written * FLIPS_LISTED // trial.planned)
    found = {name: values.astype(np.int64) for name, values in sampler.enumerate(tokens=(0, written), **common).items()}
    order = np.lexsort([found[name] for name in ("bit", "elem", "head", "kv", "layer", "token")])
    return FlipList(
        total=trial.planned,
        layer=found["layer"][order],
        value=found["kv"][order],
        head=found["head"][order],
        token=found["token"][order],
        element=found["elem"][order],
        bit=found["bit"][order],
    )
