"""What strikes one target of a device's cache: its values, or its scales. The two lie differently, so each has tables
and launches of its own, and faults of one cannot touch the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from kvspec_kernels import FaultModel, FaultTable
from kvspec_kernels import Injector as Kernels
from kvspec_kernels import Selector as KernelSelector
from kvspec_kernels.cache import CacheView
from numpy.typing import NDArray

from kvspec.engine.table import STEPS, TableData, open_ranges
from kvspec.engine.vllm.listed import Listed
from kvspec.models import Geometry
from kvspec.spec.model import Selector

if TYPE_CHECKING:
    from kvspec.engine.events import EventData
    from kvspec.engine.vllm.runner import Batch, DeviceRunner


class Struck:
    """The faults of one target."""

    def __init__(self, target: str, runner: DeviceRunner, geometry: Geometry) -> None:
        self.target = target
        self._runner, self._geometry = runner, geometry
        self.table = FaultTable(
            slots=runner.max_requests, layers=geometry.layers, heads=geometry.kv_heads, device=runner.device
        )
        self.kernels: Kernels | None = None
        self.listed: Listed | None = None
        self.reads = False
        self._writes = False
        self._records = np.zeros((1, 0), np.uint32)

    def bind(self, caches: list[CacheView], read_tokens: int, *, stuck_reads: bool) -> None:
        """Make the launches, for the caches of all layers."""
        self.kernels = Kernels(
            self.table,
            max_rows=self._runner.max_tokens,
            max_requests=self._runner.max_requests,
            read_tokens=read_tokens,
            stuck_reads=stuck_reads,
        )
        self.kernels.bind(caches)

    def load(self, data: TableData | EventData) -> None:
        """Take the faults of this target from a table; the other ones never hit here."""
        assert self.kernels is not None
        if isinstance(data, TableData):
            models, selectors, self.listed = self._models(data), [_selector(where) for where in data.selectors], None
            sites = {site for site, model in zip(data.sites, models, strict=True) if not model.never_hits}
            # without any fault the launches of writes are made all the same, so that null controls pay for them
            self._writes = sites != {"KV_READ"} and (bool(sites) or self.target == "values")
            self.reads = bool(sites - {"KV_WRITE"})
        else:
            models, selectors, self.listed = [self._nothing()], [KernelSelector()], Listed(data, self.target)
            self.kernels.reserve_events(len(self.listed))
            if self.listed.stuck_reads:
                self.kernels.keep_stuck_reads()
            self._writes, self.reads = False, self.listed.reads
        self.table.load(models, selectors)
        records = self._slot_records(data)
        self._records = np.concatenate([records, np.zeros_like(records, shape=(1, records.shape[1]))])

    def enter(self, slots: list[int], entries: list[int]) -> None:
        """Give request slots the faults of table entries; the last one, -1, has none."""
        self.table.assign_records(slots, self._records[entries])

    def begin_step(self, batch: Batch, entries: NDArray[np.int64], most: int, longest: int) -> None:
        """List what a forward may hit. `most`: tokens that one request writes, at most; `longest`: tokens of the
        longest request, which only reads ask for."""
        assert self.kernels is not None
        reads = self.reads and self.listed is None
        self.kernels.begin_step(
            batch.query_start,
            batch.slots,
            batch.seq_lens,
            len(batch.req_ids),
            max_query=most,
            writes=self._writes,
            reads=reads,
            max_seq=longest if reads else None,
        )
        if self.listed is not None:
            self.kernels.set_events(False, *self.listed.writes_of(batch, entries))
            self.kernels.set_events(True, *self.listed.reads_of(batch, entries))

    def write(self, layer: int, slots: torch.Tensor, *, stored: bool = False) -> None:
        """Faults of what was just written. `stored`: drawn ones are there already."""
        assert self.kernels is not None
        if self.listed is not None:
            self.kernels.write_events(layer, slots)
        elif not stored:
            self.kernels.writes(layer, slots)

    def read(self, layer: int) -> None:
        """Faults of reads of a layer, if there is such a layer; those of the layer before are taken back."""
        assert self.kernels is not None
        inject = self.kernels.reads if self.listed is None else self.kernels.read_events
        inject(layer, self._runner.block_table)

    def _models(self, data: TableData) -> list[FaultModel]:
        shape = self._geometry
        return [
            FaultModel(
                level=sampler.level,
                thresholds=sampler.thresholds,
                page_threshold=sampler.page_threshold,
                head_size=parameters.elements(shape, 0)[0],
                heads=shape.kv_heads,
                planes=shape.planes,
                per=parameters.per,  # type: ignore[arg-type]
                mask=parameters.mask,
                burst_len=parameters.burst_len,
                page_tokens=parameters.page_tokens,
                op=op,  # type: ignore[arg-type]
            )
            if parameters.target == self.target
            else self._nothing()
            for parameters, op, sampler in zip(data.faults, data.ops, data.samplers(shape), strict=True)
        ]

    def _slot_records(self, data: TableData | EventData) -> NDArray[np.uint32]:
        if not isinstance(data, TableData):
            return self.table.records(np.zeros(len(data), np.int64), data.prompt_len)
        site = np.array(data.sites)[data.fault]
        return self.table.records(
            data.fault,
            data.prompt_len,
            writes=data.armed & (site != "KV_READ"),
            reads=data.armed & (site != "KV_WRITE"),
            request=data.request,
            write_key=data.write_key,
            read_master=data.read_master,
        )

    def _nothing(self) -> FaultModel:
        """A model that never hits."""
        shape = self._geometry
        return FaultModel(
            level="token", thresholds=np.zeros(0, np.uint64), head_size=shape.head_size, heads=shape.kv_heads, mask=1
        )


def _selector(where: Selector) -> KernelSelector:
    """A spec's selector in the words of the kernels."""
    return KernelSelector(
        layers=open_ranges(where.layers),
        heads=open_ranges(where.heads),
        planes=("K" in where.cache, "V" in where.cache),
        phase=where.tokens if isinstance(where.tokens, str) else "all",
        tokens=None if isinstance(where.tokens, str) else open_ranges(where.tokens),
        events=STEPS[where.steps] if isinstance(where.steps, str) else open_ranges(where.steps),
    )
