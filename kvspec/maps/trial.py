"""From a trial of a plan to its maps, and from chosen flips to a map."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.maps.columns import DTYPES, map_id, names
from kvspec.maps.generate import count_and_id
from kvspec.maps.model import Columns, Coverage, FaultMap, Generator, Header, MapGeometry, Site
from kvspec.maps.validate import MapValidator
from kvspec.models import Geometry
from kvspec.plan import Plan, Trial
from kvspec.plan.dose import sampler_parameters
from kvspec.spec.model import Spec

_SITES: dict[str, tuple[Site, ...]] = {"KV_WRITE": ("write",), "KV_READ": ("read",), "BOTH": ("write", "read")}


def maps_of_trial(plan: Plan, trial: Trial, geometry: Geometry, **facts: Any) -> tuple[FaultMap, ...]:
    """One map per site of the trial's fault: two for BOTH. Takes the keywords of `from_trial` except `site`."""
    sites = _SITES[plan.cells[trial.cell].fault.site]
    return tuple(from_trial(plan, trial, geometry, site=site, **facts) for site in sites)


def from_trial(
    plan: Plan,
    trial: Trial,
    geometry: Geometry,
    *,
    prompt_len: int,
    written: int,
    site: Site | None = None,
    record: Mapping[str, Any] | None = None,
    withhold_prompt: bool = False,
) -> FaultMap:
    """The generative map of a fault trial.

    `prompt_len` and `written` are tokens: those of the prompt and those that reached the cache. `record` is what the
    trial did, in the words of the schema. Raises `PlanError` (KVS303, KVS304) and `RecordsError` (KVS513).
    """
    if trial.kind != "fault":
        raise ValueError(f"the trial {trial.id} has no fault")
    spec, cell = plan.spec, plan.cells[trial.cell]
    fault = cell.fault
    site = site or _SITES[fault.site][0]
    keys = _native.derive_keys(spec.seed, cell.experiment, trial.trial, fault.index, fault.target)
    parameters = asdict(sampler_parameters(fault, spec.model.storage_format, geometry))
    target = parameters.pop("target")
    text = spec.prompts.texts[trial.request]
    prompt = {"sha256": hashlib.sha256(text.encode()).hexdigest()} if withhold_prompt else {"text": text}
    seed = spec.generation.seed if spec.generation.seed is not None else spec.seed
    header = Header(
        geometry=MapGeometry.of(geometry, spec.model.storage_format),
        coverage=Coverage(prompt_tokens=prompt_len, tokens=written),
        site=site,
        target=target,
        op=getattr(fault, "op", "flip"),
        generator=Generator(**parameters, key=keys[0 if site == "write" else 1], where=fault.where),
        plan=plan.digest,
        trial={
            "id": trial.id,
            "spec": spec.name,
            "cell": cell.name,
            "cell_index": cell.index,
            "request": trial.request,
            "trial": trial.trial,
            "seed": spec.seed,
            "experiment": f"{cell.experiment:016x}",
            "fault": fault.index,
        },
        model={"id": spec.model.id, "revision": spec.model.revision, "dtype": spec.model.dtype},
        # The seed of a request is the campaign's plus the index of its prompt.
        generation=_generation(spec, seed + trial.request),
        prompt={**prompt, "tokens": prompt_len},
        record=record,
    )
    return FaultMap(identified(header))


def identified(header: Header) -> Header:
    """A generative header with its flips counted and its id computed."""
    flips, identity = count_and_id(header)
    return replace(header, flips=flips, id=identity)


def explicit_map(header: Header, columns: Columns) -> FaultMap:
    """An explicit map of these flips, in any order; count and id of the header are set, its generator is dropped.

    Raises `RecordsError` (KVS508 to KVS510): a column of another type, a site outside the geometry or twice.
    """
    wanted = names(header.site, header.op)
    taken = {name: np.ascontiguousarray(columns[name]).astype(DTYPES[name], casting="safe") for name in wanted}
    order = np.lexsort([taken[name] for name in reversed(wanted) if name != "op"])
    if not np.array_equal(order, np.arange(len(order))):
        taken = {name: column[order] for name, column in taken.items()}
    header = replace(header, kind="explicit", generator=None, flips=len(order))
    header = replace(header, id=map_id(header, taken))
    MapValidator(header, header.name).push(taken)
    return FaultMap(header, taken)


def subset(fault_map: FaultMap, rows: NDArray[Any]) -> FaultMap:
    """Some flips of an explicit map, by index or by mask. It names the map that it came from, and no record: what
    the whole map did tells nothing of a part."""
    assert fault_map.columns is not None
    taken = {name: column[rows] for name, column in fault_map.columns.items()}
    header = replace(fault_map.header, derived_from=fault_map.header.derived_from or fault_map.id, record=None)
    return explicit_map(header, taken)


def _generation(spec: Spec, seed: int) -> dict[str, Any]:
    """What decides the answer; how much of it was recorded does not."""
    data = {**asdict(spec.generation), "seed": seed, "stop": list(spec.generation.stop)}
    del data["logprobs"], data["choices"]
    return data | {"choices": list(spec.generation.choices)} if spec.generation.choices else data
