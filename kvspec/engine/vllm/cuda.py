"""Injection on a GPU: Triton kernels read the faults of each request slot from device tables.

Everything inside a forward is launched unconditionally with fixed pointers, so that captured CUDA graphs replay it with
whatever the tables hold. The host only fills tables when requests enter the batch, and lists the cells of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kvspec_kernels import NEVER, FaultModel, FaultTable, SlotFault
from kvspec_kernels import Injector as Kernels
from kvspec_kernels import Selector as KernelSelector
from kvspec_kernels.cache import CacheView
from numpy.typing import NDArray

from kvspec.engine.table import TableData, open_ranges
from kvspec.engine.vllm.canary import Watch
from kvspec.engine.vllm.layers import AttentionLayer, Unwrapped, geometry
from kvspec.engine.vllm.runner import RunnerV2
from kvspec.engine.vllm.step import FOREIGN, Requests, Step
from kvspec.engine.vllm.storage import Written
from kvspec.engine.vllm.taint import Taint
from kvspec.engine.vllm.views import Views, find_views

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CudaInjector:
    """Hooks vLLM's V2 model runner and its attention layers. Counts live on the device until they are asked for."""

    def __init__(self, runner: RunnerV2, layers: list[AttentionLayer], storage_format: str) -> None:
        self.runner = runner
        self.layers = layers
        self.geometry = geometry(layers)
        self.canary: Watch | None = None
        self._dtype = DTYPES[storage_format]
        self._device = runner.device
        self._table = FaultTable(
            slots=runner.max_requests, layers=self.geometry.layers, heads=self.geometry.kv_heads, device=self._device
        )
        self._kernels = Kernels(self._table, max_rows=runner.max_tokens, max_requests=runner.max_requests)
        self._requests = Requests()
        self._taint = Taint()
        self._views: list[Views] = []
        self._pointers: list[int] = []
        self._data: TableData | None = None
        self._entry_of_slot = np.full(runner.max_requests, FOREIGN, dtype=np.int64)
        self._slot_of_entry: dict[int, int] = {}
        self._batch: Any = None
        self._step: Step | None = None
        runner.hook(self._enter, self._begin_step, self._end_step, self._observe_logits)
        for attention in layers:
            self._wrap_write(attention)

    def bind(self) -> None:
        """Find the way in the cache, which has just been allocated; graphs are captured after this."""
        self.runner.check_cache()
        self._views = [find_views(Unwrapped(a.layer.impl), a.layer, a.kv_cache) for a in self.layers]
        self._kernels.bind([CacheView.of(v.key, v.value) for v in self._views])
        self._pointers = [a.kv_cache.data_ptr() for a in self.layers]

    def load(self, data: TableData) -> None:
        """Take a trial table; its entries are what requests carry from now on."""
        self._end_step()
        shape = self.geometry
        models = []
        for parameters, sampler in zip(data.faults, data.samplers(shape), strict=True):
            models.append(
                FaultModel(
                    level=sampler.level,
                    thresholds=sampler.thresholds,
                    page_threshold=sampler.page_threshold,
                    head_size=shape.head_size,
                    heads=shape.kv_heads,
                    planes=shape.planes,
                    per=parameters.per,  # type: ignore[arg-type]
                    mask=parameters.mask,
                    burst_len=parameters.burst_len,
                    page_tokens=parameters.page_tokens,
                )
            )
        selectors = [
            KernelSelector(
                layers=open_ranges(where.layers),
                heads=open_ranges(where.heads),
                planes=("K" in where.cache, "V" in where.cache),
                phase=where.tokens if isinstance(where.tokens, str) else "all",
                tokens=None if isinstance(where.tokens, str) else open_ranges(where.tokens),
            )
            for where in data.selectors
        ]
        self._table.load(models, selectors)
        self._data = data
        self._faulty = np.append(data.faulty, False)
        n = len(data)
        self._tally = torch.zeros(n, self._table.tally.shape[1], dtype=torch.int64, device=self._device)
        self._nonfinite = torch.full((n,), NEVER, dtype=torch.int32, device=self._device)
        self._written = np.zeros(n, dtype=np.int64)
        self._preemptions = np.zeros(n, dtype=np.int64)
        self._entry_of_slot.fill(FOREIGN)
        self._slot_of_entry.clear()

    def watch(self, watch: Watch | None) -> None:
        """Compare cache writes of one entry with an independent expectation (the canary), or stop doing so."""
        self.canary = watch

    def counts(self, entries: list[int]) -> dict[str, list[int]]:
        """What happened to finished entries. Waits for the device once."""
        self._release([s for e in entries if (s := self._slot_of_entry.get(e)) is not None])
        at = torch.tensor(entries, dtype=torch.int64).to(self._device)
        nonfinite = self._nonfinite[at].cpu().numpy().astype(np.int64)
        return {
            "landed": self._tally[at, 0].cpu().tolist(),
            "written": self._written[entries].tolist(),
            "preemptions": self._preemptions[entries].tolist(),
            "nonfinite_at": np.where(nonfinite == NEVER, -1, nonfinite).tolist(),
        }

    def facts(self) -> dict[str, Any]:
        """How the cache is laid out, for the fingerprint."""
        return {
            "runner": self.runner.name,
            "block_tokens": self._views[0].block_tokens,
            "cache_shape": list(self.layers[0].kv_cache.shape),
            "layout": self._views[0].words,
        }

    def _wrap_write(self, attention: AttentionLayer) -> None:
        impl, index = attention.layer.impl, attention.index
        write = impl.do_kv_cache_update

        def do_kv_cache_update(
            layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
        ) -> None:
            if not self._pointers or kv_cache.data_ptr() != self._pointers[index]:
                write(layer, key, value, kv_cache, slots)  # profiling: not the cache that requests live in
                return
            views = self._views[index]
            self._kernels.store(index, key, value, views.key, views.value, slots)
            if self.canary is not None and self._step is not None and not torch.cuda.is_current_stream_capturing():
                written = Written(key, value, None, slots)
                self.canary.check(index, self._step, written, lambda rows, tokens: self._stored(index, rows, tokens))

        impl.do_kv_cache_update = do_kv_cache_update

    def _stored(self, layer: int, rows: NDArray[Any], tokens: NDArray[Any]) -> torch.Tensor:
        """Positions of rows as they lie in the cache, `[2, n, H, D]`: plain indexing, for the canary."""
        views = self._views[layer]
        row, at = (torch.from_numpy(x.astype(np.int64)).to(self._device) for x in (rows, tokens))
        blocks = self.runner.block_table[row, at // views.block_tokens].long()
        inside = at % views.block_tokens
        return torch.stack([views.key[blocks, inside], views.value[blocks, inside]])

    def _enter(self, scheduled: Any) -> None:
        """Requests have entered the batch: scrub their blocks, give their slots their faults."""
        grants = self._requests.observe(scheduled)
        data = self._data
        if data is None:
            return
        self._taint.hand_out(grants, self._faulty, [a.kv_cache for a in self.layers])
        new = [(self.runner.slot(n.req_id), self._requests.entry(n.req_id)) for n in scheduled.scheduled_new_reqs]
        if not new:
            return
        slots = [slot for slot, _ in new]
        self._release(slots)
        for slot, entry in new:
            if entry != FOREIGN and self._written[entry]:
                self._restart(entry)
            self._entry_of_slot[slot] = entry
            if entry != FOREIGN:
                self._slot_of_entry[entry] = slot
        self._table.assign(slots, [self._fault(entry) for _, entry in new])

    def _fault(self, entry: int) -> SlotFault | None:
        data = self._data
        if entry == FOREIGN or data is None:
            return None
        fault = int(data.fault[entry])
        low, high = data.write_key[entry].tolist()
        return SlotFault(
            model=fault,
            selector=fault,
            request=int(data.request[entry]),
            prompt_len=int(data.prompt_len[entry]),
            write_key=(low, high) if data.armed[entry] else None,
        )

    def _restart(self, entry: int) -> None:
        """A preempted request starts over: its faults land anew, so its counts do too."""
        self._preemptions[entry] += 1
        if (slot := self._slot_of_entry.pop(entry, None)) is not None:
            self._entry_of_slot[slot] = FOREIGN
        self._tally[entry] = 0
        self._nonfinite[entry] = NEVER

    def _release(self, slots: list[int]) -> None:
        """Add the counts of slots to the entries that had them. Queued on the stream; nothing waits."""
        pairs = [(slot, int(e)) for slot in slots if (e := self._entry_of_slot[slot]) != FOREIGN]
        if not pairs:
            return
        tally, nonfinite = self._table.take([slot for slot, _ in pairs])
        at = torch.tensor([entry for _, entry in pairs], dtype=torch.int64).pin_memory()
        at = at.to(self._device, non_blocking=True)
        self._tally.index_add_(0, at, tally)
        self._nonfinite.scatter_reduce_(0, at, nonfinite, "amin")
        for slot, entry in pairs:
            self._entry_of_slot[slot] = FOREIGN
            self._slot_of_entry.pop(entry, None)

    def _begin_step(self, scheduled: Any, batch: Any) -> None:
        if self._data is None:
            return
        self._batch = batch
        entries: NDArray[np.int64] = self._entry_of_slot[batch.idx_mapping_np]
        known = entries != FOREIGN
        self._written[entries[known]] = (batch.num_computed_tokens_np + batch.num_scheduled_tokens)[known]
        self._kernels.begin_step(
            batch.query_start_loc,
            batch.idx_mapping,
            batch.seq_lens,
            batch.num_reqs,
            max_query=int(batch.num_scheduled_tokens.max()),
        )
        if self.canary is not None:
            self._step = self._requests.step(scheduled, batch.req_ids)

    def _observe_logits(self, _: torch.Tensor, logits: torch.Tensor) -> None:
        batch = self._batch
        if batch is not None and logits.shape[0] == batch.num_reqs:
            self._kernels.find_nonfinite(logits, batch.idx_mapping, batch.seq_lens)

    def _end_step(self) -> None:
        """Dummy runs must not inject."""
        self._kernels.end_step()
        self._batch = self._step = None
