"""Running a search: the grid of the spec, the bisection, and the closest states, measured anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kvspec.engine.campaign import Observer, open_session, run_campaign
from kvspec.errors import RecordsError
from kvspec.plan import Plan, compile_plan
from kvspec.records.files import write_atomic
from kvspec.search.found import BOTH, GRID, PROFILE, STATE, STEP, Found, add, points
from kvspec.search.model import Point, entry, series_of
from kvspec.spec import load_spec
from kvspec.spec.load import load_tree
from kvspec.spec.model import Spec


def search(path: Path, overrides: Sequence[str], out: Path, steps: int, observer: Observer) -> Found:
    """Search the faults of the spec at `path` for the state; run folders and profile go into `out`.

    The same command goes on where it was interrupted; until then the profile has the closest points so far. Raises
    `KvspecError`s: those of `run_campaign`, and KVS506 if no answer of a retrieval task can be compared with one of a
    reasoning task.
    """
    spec = load_spec(path, overrides)
    kinds = {task.kind for task in spec.prompts.tasks if task}
    for kind in ("retrieval", "reasoning"):
        if kind not in kinds:  # said before the first run, after which `points` would say it
            raise RecordsError.one(
                "KVS506",
                f"no prompt of `{path}` is a {kind} task, and a search compares retrieval with reasoning",
                path="$.prompts",
                expected="prompts of both kinds, as `generator: math_needle` makes them",
            )
    series = series_of(spec.faults)
    found = Found(tuple(series), (), out)
    grid = compile_plan(spec)
    with open_session(grid, observer) as session:

        def measure(plan: Plan, folder: Path) -> Plan:
            """Its points join the search; the spec of those that are closest now."""
            run_campaign(plan, folder, observer, session)
            add(series, points(plan, folder))
            return _profile(path, overrides, spec, [found.closest(silent) for silent in BOTH], out / PROFILE)

        profile = measure(grid, out / GRID)
        for number in range(1, steps + 1):
            format_ = spec.model.storage_format
            faults = tuple(fault for one in series for fault in one.next_faults(format_, session.geometry))
            if not faults:
                break
            plan = compile_plan(replace(spec, name=f"{spec.name}_{number}", faults=faults))
            profile = measure(plan, out / STEP.format(number))
        run_campaign(profile, out / STATE, observer, session)
    return replace(found, confirmed=tuple(points(profile, out / STATE)))


def _profile(path: Path, overrides: Sequence[str], spec: Spec, nearest: Sequence[Point], target: Path) -> Plan:
    """Write the spec of the closest points with the next seed; its plan, read back from the file."""
    faults: list[dict[str, Any]] = []
    for point in nearest:
        if (fault := entry(point.fault)) not in faults:
            faults.append(fault)
    data = load_tree(path, overrides).plain()
    data |= {"name": f"{spec.name}_state", "seed": (spec.seed + 1) % 2**64, "faults": faults}
    if file := data.get("prompts", {}).get("file"):
        data["prompts"]["file"] = os.path.relpath(path.parent / file, target.parent)
    buffer = BytesIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # flat lists and mappings on one line
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keys stay in the order of the spec
    yaml.dump(data, buffer)
    head = f"# The closest points of a search (`kvspec search {path.name}`), with another seed. In the search:\n"
    for silent, point in zip(BOTH, nearest, strict=True):
        state = point.closest(silent)
        head += (
            f"# - {state.name}, {'' if state.shown else 'not '}shown: {point.label}\n#   {state}\n#   {state.split}\n"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, lambda stream: stream.write(head.encode() + buffer.getvalue()))
    return compile_plan(load_spec(target))
