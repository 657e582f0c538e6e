"""The closest states as files: figures, the spec that gives them again, and fault maps of trials that show them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from kvspec.maps import write_map
from kvspec.maps.runs import Run, file_name
from kvspec.records.files import write_atomic
from kvspec.score.grading import RIGHT, Graders
from kvspec.score.outcome import DUE
from kvspec.score.scores import score_trials
from kvspec.score.trials import FAULT, GOLDEN
from kvspec.search.found import BOTH, GRID, PROFILE, STATE, Found

FIGURES, MAPS = "profile.json", "maps"


@dataclass(frozen=True, slots=True)
class Example:
    """A trial of the state's run that a map is made of."""

    trial: str
    """Its id."""
    task: str
    item: str
    right: bool
    detected: bool


Pair = tuple[Example, Example]
"""Retrieval and reasoning of one item: neither says anything of the state without the other."""


def export(found: Found, folder: Path, most: int) -> list[Path]:
    """Write `profile.json` into `folder`, `profile.yaml` if the search has one, and the fault maps of at most `most`
    pairs of trials; the maps' paths.

    The maps are of trials with another seed (two each of faults at `BOTH`), half of the pairs for each definition that
    was run again, first those whose retrieval is right and reasoning wrong.
    """
    figures, written = found.profile(), []
    folder.mkdir(parents=True, exist_ok=True)
    again = [silent for silent in BOTH if found.again(silent) is not None]
    run = Run(found.folder / (STATE if again else GRID))
    left = most
    taken: set[str] = set()
    for number, silent in enumerate(again):
        fresh = [pair for pair in examples(found, silent) if taken.isdisjoint(one.trial for one in pair)]
        pairs = fresh[: left // (len(again) - number)]
        chosen = {one.trial: one for pair in pairs for one in pair}
        left, taken = left - len(pairs), taken | chosen.keys()
        state = figures["states"][BOTH.index(silent)]
        state["maps"] = []
        for fault_map in run.maps(chosen):
            target = folder / MAPS / file_name(fault_map)
            target.parent.mkdir(exist_ok=True)
            write_map(fault_map, target)
            one = chosen[fault_map.header.name]
            told = {"task": one.task, "item": one.item, "right": one.right, "detected": one.detected}
            state["maps"].append({"file": f"{MAPS}/{target.name}", "flips": len(fault_map)} | told)
            written.append(target)
    figures["run"] = {"plan": run.plan.digest, "environment": run.environment}
    text = json.dumps(figures, indent=1).encode() + b"\n"
    write_atomic(folder / FIGURES, lambda stream: stream.write(text))
    if (found.folder / PROFILE).is_file() and folder.resolve() != found.folder.resolve():
        spec = (found.folder / PROFILE).read_bytes()
        write_atomic(folder / PROFILE, lambda stream: stream.write(spec))
    return written


def examples(found: Found, silent: bool) -> list[Pair]:
    """Pairs of trials of the state's run by one definition, those that show the state first. Items that the clean model
    does not solve are left out."""
    again = found.again(silent)
    assert again is not None
    state, folder = again[1], found.folder / STATE
    campaign, batches = score_trials(folder)
    graders = Graders(campaign.tasks)
    solved: set[int] = set()
    ends: dict[tuple[str, int], dict[str, Example]] = defaultdict(dict)
    rows: list[tuple[int, int, Example]] = []
    for batch in batches:
        kept = np.flatnonzero((batch.kind == GOLDEN) | ((batch.kind == FAULT) & (batch.cell == state.cell)))
        for row, text in zip(kept.tolist(), pc.take(batch.batch.column("text"), kept).to_pylist(), strict=True):
            request = int(batch.request[row])
            task = campaign.tasks[request]
            if (
                task is None
                or task["context"] != state.context
                or task["name"] not in (state.retrieval, state.reasoning)
            ):
                continue
            right = bool(graders.flags(request, text) & RIGHT) and not batch.crash[row]
            if batch.kind[row] == GOLDEN:
                solved |= {request} if right else set()
                continue
            trial = int(batch.batch.column("trial")[row].as_py())
            name = str(batch.batch.column("trial_id")[row])
            detected = bool(batch.outcome[row] == DUE)
            rows.append((request, trial, Example(name, str(task["name"]), str(task["item"]), right, detected)))
    for request, trial, one in sorted(rows, key=lambda row: row[:2]):
        if request in solved:
            ends[one.item, trial][one.task] = one
    pairs = [(pair[state.retrieval], pair[state.reasoning]) for pair in ends.values() if len(pair) == 2]
    return sorted(pairs, key=lambda pair: not _shows(pair[0], pair[1], silent))


def _shows(recall: Example, reason: Example, silent: bool) -> bool:
    undetected = not (recall.detected or reason.detected)
    return recall.right and not reason.right and (undetected or not silent)
