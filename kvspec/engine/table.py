"""The trial table: every trial of a campaign as columns, built by the campaign and loaded into each worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.models import Geometry
from kvspec.plan import Plan, Trial
from kvspec.plan.dose import SamplerParameters, sampler_parameters
from kvspec.spec.model import Range, Selector

END = 2**32
"""Open-ended ranges stop here: one beyond the largest token position."""
STEPS = {"all": None, "prefill": [(0, 1)], "decode": [(1, END)]}
"""Named read events as ranges: 0 is the prefill."""
NOTHING = SamplerParameters(per="bit", rate=0.0, mask=1, burst_len=1, page_tokens=0, page_rate=1.0)
"""The null control's fault: rate 0, through the armed injector."""


def open_ranges(ranges: tuple[Range, ...] | None) -> list[tuple[int, int]] | None:
    """Ranges with `END` in place of an open end."""
    return None if ranges is None else [(start, END if stop is None else stop) for start, stop in ranges]


def native_selector(where: Selector) -> _native.Selector:
    """A spec's selector in the words of the Rust core."""
    phase = where.tokens if isinstance(where.tokens, str) else "all"
    return _native.Selector(
        layers=open_ranges(where.layers),
        heads=open_ranges(where.heads),
        planes=("K" in where.cache, "V" in where.cache),
        phase=phase,
        tokens=None if isinstance(where.tokens, str) else open_ranges(where.tokens),
        steps=STEPS[where.steps] if isinstance(where.steps, str) else open_ranges(where.steps),
    )


@dataclass(frozen=True)
class TableData:
    """Columns of the trial table; index i is the entry that a request carries. Plain data, so that it can be sent
    to worker processes; `build` makes the native table on the other side."""

    storage_format: str
    faults: tuple[SamplerParameters, ...]
    """Distinct faults; entry `fault[i]` of trial i."""
    sites: tuple[str, ...]
    """KV_WRITE, KV_READ or BOTH, per distinct fault."""
    ops: tuple[str, ...]
    """flip, set0 or set1, per distinct fault."""
    selectors: tuple[Selector, ...]
    """Per distinct fault."""
    fault: NDArray[np.uint32]
    write_key: NDArray[np.uint32]
    """`[n, 2]`: the Philox key of the trial's writes."""
    read_master: NDArray[np.uint32]
    """`[n, 2]`: the Philox key from which the key of each read event is derived."""
    request: NDArray[np.uint32]
    prompt_len: NDArray[np.uint32]
    """Tokens."""
    armed: NDArray[np.bool_]
    """Whether the trial goes through the injector: null trials do, golden runs do not."""
    faulty: NDArray[np.bool_]
    """Whether its fault can flip anything, hence whether its blocks must be scrubbed."""

    def __len__(self) -> int:
        return len(self.fault)

    def reads(self, entry: int) -> bool:
        """Whether an entry has faults of reads."""
        return bool(self.faulty[entry]) and self.sites[self.fault[entry]] != "KV_WRITE"

    @property
    def scales(self) -> bool:
        """Whether any fault strikes scales."""
        return any(parameters.target == "scales" for parameters in self.faults)

    def samplers(self, geometry: Geometry) -> list[_native.Sampler]:
        """One native sampler per distinct fault."""
        bits = _native.format_bits(self.storage_format)
        return [parameters.sampler(geometry, bits) for parameters in self.faults]

    def build(self, geometry: Geometry) -> _native.TrialTable:
        """The native table."""
        return _native.TrialTable(
            layers=geometry.layers,
            samplers=self.samplers(geometry),
            selectors=[native_selector(where) for where in self.selectors],
            sampler=self.fault,
            selector=self.fault,
            write_key=self.write_key,
            request=self.request,
            prompt_len=self.prompt_len,
            site=list(self.sites),
            op=list(self.ops),
            target=[parameters.target for parameters in self.faults],
            read_master=self.read_master,
        )


def build_table(plan: Plan, trials: Sequence[Trial], prompt_len: Sequence[int], geometry: Geometry) -> TableData:
    """The table of a plan's trials, in the given order. `prompt_len` is in tokens, one per prompt."""
    storage = plan.spec.model.storage_format
    faults = (*(sampler_parameters(c.fault, storage, geometry) for c in plan.cells), NOTHING)
    selectors = (*(cell.fault.where for cell in plan.cells), Selector())
    nothing = len(plan.cells)
    n = len(trials)
    fault = np.array([t.cell if t.kind == "fault" else nothing for t in trials], dtype=np.uint32)
    keys = np.zeros((n, 2, 2), dtype=np.uint32)
    known: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
    for i, trial in enumerate(trials):
        if trial.kind == "fault":
            identity = (trial.cell, trial.trial)
            if identity not in known:
                cell = plan.cells[trial.cell]
                known[identity] = _native.derive_keys(
                    plan.spec.seed, cell.experiment, trial.trial, cell.fault.index, cell.fault.target
                )
            keys[i] = known[identity]
    request = np.array([t.request for t in trials], dtype=np.uint32)
    return TableData(
        storage_format=storage,
        faults=faults,
        # A null trial goes through all that any trial goes through.
        sites=(*(cell.fault.site for cell in plan.cells), "BOTH"),
        ops=(*(cell.fault.op for cell in plan.cells), "flip"),
        selectors=selectors,
        fault=fault,
        write_key=np.ascontiguousarray(keys[:, 0]),
        read_master=np.ascontiguousarray(keys[:, 1]),
        request=request,
        prompt_len=np.asarray(prompt_len, dtype=np.uint32)[request],
        armed=np.array([t.kind in ("fault", "null") for t in trials], dtype=bool),
        faulty=np.array([t.kind == "fault" for t in trials], dtype=bool),
    )
