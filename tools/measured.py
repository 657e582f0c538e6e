"""What decides the question of a spec beyond the report of one run, measured from run folders as plain data.

The data lies in the JSON of a page; what it says in words is `tools/findings.py`, which reads nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from kvspec import _native
from kvspec.models import Geometry, describe
from kvspec.records import RunStore
from kvspec.score import CellScore, score_trials
from kvspec.score.grid import EXACT, SCORED, discordant
from kvspec.score.lengths import Sample, at_equal_flips
from kvspec.score.outcome import INVALID, UNSCORED
from kvspec.score.scores import Scored
from kvspec.score.trend import series_label
from kvspec.score.trials import FAULT
from kvspec.search import read_search
from kvspec.search.found import BOTH, GRID
from kvspec.spec.model import ModelSpec
from kvspec.stats.association import slope
from kvspec.stats.bootstrap import cluster_difference, clusters_differ
from kvspec.stats.exact import Strata, mcnemar
from kvspec.stats.intervals import Difference, difference_paired

GIB = 2**33
"""Bits."""
REQUEST_TOKENS = 32
"""Length of the requests that are counted per GiB."""

Data = dict[str, Any]


def contrasts(run: Scored, declared: Sequence[Sequence[str]]) -> list[Data]:
    """The `x-contrasts` of a spec: two cells are compared, more are a trend in their order. p-values are not adjusted.

    McNemar's test where two cells share their draws, else the exact conditional test within prompts, both two-sided;
    Mantel's test for a trend. A cell that the run does not have is an error (`KeyError`).
    """
    cells = {cell.plan.name: cell for cell in run.scores.cells}
    found = []
    for names in declared:
        some = [cells[name] for name in names]
        found.append({"cells": list(names), **(_pair(run, *some) if len(some) == 2 else _trend(run, some))})
    return found


def _pair(run: Scored, a: CellScore, b: CellScore) -> Data:
    counts = [run.grid.counts(cell.plan.index) for cell in (a, b)]
    k, n = (np.stack([cell[i] for cell in counts]) for i in (0, 1))
    prompts = cluster_difference(k, n)
    difference: Difference | None
    if (a.plan.experiment, a.plan.entry) == (b.plan.experiment, b.plan.entry):
        flags = run.grid.flags
        _, only_a, only_b, pairs = discordant(flags[a.plan.index], flags[b.plan.index], EXACT)
        difference = difference_paired(only_a, only_b, pairs) if pairs else None
        test, p = "McNemar", mcnemar(only_a, only_b)
    else:
        strata = Strata.of(*counts[0], *counts[1])
        test, difference, p = "exact", strata.difference(), strata.different()
    return {"test": test, "z": None, **_sized(difference, prompts), "p": p}


def _sized(difference: Difference | None, prompts: tuple[float, float] | None) -> Data:
    """A difference with its interval, and that with prompts as clusters, which is never the narrower one."""
    if difference is None:
        return {"difference": None, "clustered": None}
    wide = prompts and [min(prompts[0], difference.low), max(prompts[1], difference.high)]
    return {"difference": asdict(difference), "clustered": wide}


def _trend(run: Scored, cells: Sequence[CellScore]) -> Data:
    hits, scores, prompts = [], [], []
    for number, cell in enumerate(cells):
        flags = run.grid.flags[cell.plan.index]
        rows, _ = np.nonzero(flags & SCORED)
        hits.append((flags[(flags & SCORED) > 0] & EXACT) > 0)
        prompts.append(run.grid.cluster[rows])
        scores.append(np.full(len(rows), number))
    found = slope(np.concatenate(hits), np.concatenate(scores), np.concatenate(prompts))
    z, p = (None, 1.0) if found is None else (found.z, found.p)
    return {"test": "trend", "z": z, "difference": None, "clustered": None, "p": p}


def equal_flips(run: Scored, folder: Path, declared: Sequence[Sequence[str]]) -> list[Data]:
    """The `x-equal-flips` of a spec: two series, whatever their rates, at equal numbers of landed flips and one prompt.

    Of trials in which a flip landed: the exact conditional test with prompts and doses as strata, two-sided and not
    adjusted. A series that the run does not have is an error (`KeyError`).
    """
    label = [series_label([cell]) for cell in run.scores.cells]
    wanted = {name for names in declared for name in names}
    rows: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in wanted if name in label}
    _, batches = score_trials(folder)
    for batch in batches:
        kept = (batch.kind == FAULT) & batch.finished & (batch.landed > 0)
        kept &= (batch.outcome != INVALID) & (batch.outcome != UNSCORED)
        columns = (batch.exact, run.grid.cluster[batch.request], batch.cell, batch.landed)
        table = np.stack([column.astype(np.int64) for column in columns])
        for name, parts in rows.items():
            mine = [cell for cell, of in enumerate(label) if of == name]
            parts.append(table[:, kept & np.isin(batch.cell, mine)])
    samples = {}
    for name, parts in rows.items():
        right, prompt, cell, flips = np.concatenate(parts, axis=1)
        samples[name] = Sample(right > 0, prompt, cell, flips)
    found = []
    for first, second in declared:
        strata = at_equal_flips(samples[first], samples[second])
        counts = [{"k": int(k.sum()), "n": int(n.sum())} for k, n in ((strata.k1, strata.n1), (strata.k2, strata.n2))]
        difference = strata.difference()
        found.append(
            {
                "series": [first, second],
                "counts": counts,
                "difference": None if difference is None else asdict(difference),
                "p": strata.different(),
            }
        )
    return found


def formats(runs: Sequence[Scored]) -> Data:
    """The same cells in caches of different formats: p of every two formats in every cell, by the exact test within
    prompts; how many requests a GiB of each holds, `None` for a model of unknown shape; and where the rate is per bit,
    p of every two formats breaking equally many requests of a GiB, with prompts as clusters. No p is adjusted."""
    rows = list(zip(*(run.scores.cells for run in runs), strict=True))
    geometry = describe(ModelSpec(runs[0].scores.run.model)).geometry
    held = None if geometry is None else [_requests(run.scores.run.storage_format, geometry) for run in runs]
    tests, losses = [], []
    for row, cells in enumerate(rows):
        counts = [run.grid.counts(cell.plan.index) for run, cell in zip(runs, cells, strict=True)]
        per_gib = held is not None and cells[0].plan.fault["rate"]["unit"] == "per_bit"
        for i, j in combinations(range(len(runs)), 2):
            pair = {"cell": row, "formats": [i, j]}
            tests.append(pair | {"p": Strata.of(*counts[i], *counts[j]).different()})
            if held is not None and per_gib:
                right, n = (np.stack([counts[one][what] for one in (i, j)]) for what in (0, 1))
                losses.append(pair | {"p": clusters_differ(n - right, n, (held[i], held[j]))})
    return {"tests": tests, "requests_per_gib": held, "losses_per_gib": losses}


def _requests(name: str, geometry: Geometry) -> float:
    row = geometry.head_size * _native.format_bits(name) + 32 * _native.format_scaled(name)
    return GIB / (row * geometry.rows_per_token * geometry.layers * REQUEST_TOKENS)


def searched(folder: Path) -> Data:
    """What `kvspec search` left: its sentences, per fault where reasoning falls and where retrieval is lost, both
    closest states, the flips that landed in each task of the closest cells, and where and when it ran."""
    found = read_search(folder)
    grid = RunStore.open(folder / GRID)
    device = (grid.read_json("environment.json") or {}).get("device", {}).get("name", "an unknown device")
    where = f"{device}, {str(grid.manifest['created'])[:10]}, plan `{grid.digest[:12]}`"
    rows = []
    for series in found.series:
        for silent in BOTH:
            window, point = series.windows(silent)[0], series.closest(silent)
            start = window.start if window.detected is None else f"{window.start}, up to {window.last}"
            rows.append(
                [
                    f"{series.label}, {series.fault.rate.unit.replace('_', ' ')}, {len(series.points)} rates",
                    "silent" if silent else "answers",
                    f"{window.reasoning} {start}",
                    f"{window.retrieval} {window.stop}",
                    str(window.conclusion),
                    f"{point.rate:g}: {point.closest(silent)}",
                ]
            )
    closest = []
    for silent in BOTH:
        point, again = found.closest(silent), found.again(silent)
        word = found.verdict(silent).partition(":")[0]
        missing = again[0].missing if again else 0
        if point.closest(silent).shown and not point.missing and (again is None or missing):
            word = "Shown once"
        state = f"{replace(point.closest(silent), flips=(None, None))} under {point.label}"
        closest.append(
            {"silent": silent, "verdict": word, "state": state, "spared": point.spared, "missing_again": missing}
        )
    landed = list(_landed(RunStore.open(folder / "state"))) if found.confirmed else []
    return {"where": where, "sentences": found.sentences(), "rows": rows, "closest": closest, "landed": landed}


def _landed(run: RunStore) -> Iterator[Data]:
    """Mean of the flips that landed in a request, by cell and task."""
    plan = run.plan()
    tasks = [task["name"] for task in plan["spec"]["prompts"]["tasks"]]
    flips: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in run.table(["kind", "cell", "request", "flips_landed"]).to_pylist():
        if row["kind"] == "fault":
            flips[row["cell"], tasks[row["request"]]].append(row["flips_landed"])
    for cell in plan["cells"]:
        means = [(task, flips[cell["index"], task]) for task in dict.fromkeys(tasks)]
        yield {"cell": cell["name"], "mean": {task: sum(found) / len(found) for task, found in means if found}}
