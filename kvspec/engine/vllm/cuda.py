"""Injection by Triton kernels, which read the faults of each request slot from device tables: on a GPU, and in Triton's
interpreter.

Everything inside a forward is launched unconditionally with fixed pointers, so that captured CUDA graphs replay it with
whatever the tables hold. The host only fills tables when requests enter the batch, and lists the cells of a step.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kvspec_kernels import NEVER
from kvspec_kernels.cache import CacheView
from kvspec_kernels.zero import ZeroBlocks
from numpy.typing import NDArray

from kvspec.engine.table import TableData
from kvspec.engine.vllm.canary import CanaryWatch, Watch
from kvspec.engine.vllm.layers import AttentionLayer, Shard, Unwrapped, geometry
from kvspec.engine.vllm.memory import Needs, naming
from kvspec.engine.vllm.readback import ReadBack
from kvspec.engine.vllm.runner import Batch, DeviceRunner
from kvspec.engine.vllm.step import FOREIGN, Requests, Step
from kvspec.engine.vllm.storage import Rows, Written
from kvspec.engine.vllm.struck import Struck
from kvspec.engine.vllm.taint import Taint
from kvspec.engine.vllm.tally import FLIPS
from kvspec.engine.vllm.views import PLAIN, Views, find_views
from kvspec.errors import EngineError

if TYPE_CHECKING:
    from kvspec.engine.events import EventData


class CudaInjector:
    """Hooks a model runner and its attention layers. Counts live on the device until they are asked for."""

    def __init__(
        self,
        runner: DeviceRunner,
        layers: list[AttentionLayer],
        storage_format: str,
        *,
        shard: Shard,
        reads: bool = False,
        stuck_reads: bool = False,
        scales: bool = False,
    ) -> None:
        """`reads`: whether attention is wrapped, so that tables with faults of reads can be loaded; without it a
        forward has no launch more than stock vLLM. `stuck_reads`: whether they may be stuck-ats, which costs the memory
        of two layers' caches. `scales`: whether there may be faults of scales, which costs launches more per step and
        layer."""
        self.runner = runner
        self.layers = layers
        self.geometry = geometry(layers, shard.total_heads)
        self._format = storage_format
        self._shard = shard
        self._wraps_reads, self._stuck_reads = reads, stuck_reads
        self.canary: Watch | None = None
        self._device = runner.device
        self._values = Struck("values", runner, self.geometry)
        self._struck = [self._values]
        if scales:
            self._struck.append(Struck("scales", runner, self.geometry))
        self._requests = Requests()
        self._taint = Taint()
        self._views: list[Views] = []
        self._pointers: list[int] = []
        self._data: TableData | EventData | None = None
        self._entry_of_slot = np.full(runner.max_requests, FOREIGN, dtype=np.int64)
        self._slot_of_entry: dict[int, int] = {}
        self._batch: Batch | None = None
        self._step: Step | None = None
        self._bound = False
        runner.hook(self._enter, self._begin_step, self._end_step, self._observe_logits)
        for attention in layers:
            self._wrap_write(attention)
            if reads:
                self._wrap_attention(attention)

    def bind(self) -> None:
        """Find the way in the cache, which has just been allocated; graphs are captured after this."""
        self.runner.check_cache()
        self._views = [find_views(Unwrapped(a.layer.impl), a.layer, a.kv_cache, self._format) for a in self.layers]
        if (found := self._views[0].key.shape[0]) != self.runner.blocks:
            raise EngineError.one(
                "KVS402",
                f"the cache has {found} blocks, the scheduler hands out {self.runner.blocks}",
                path="$.engine.block_size",
                expected="a block size that the attention backend takes as it is",
            )
        caches = [a.kv_cache for a in self.layers]
        try:
            views = self._cache_views()
            self._zero = ZeroBlocks(caches)
        except ValueError as error:
            raise EngineError.one(
                "KVS402",
                f"the cache cannot be addressed: {error}",
                expected="blocks of whole 32-bit words, alike in all layers",
            ) from error
        with naming("the lists of faults of reads and what stuck-ats overwrite"):
            for struck in self._struck:
                struck.bind(views[struck.target], self._read_tokens(), stuck_reads=self._stuck_reads)
        self._pointers = [cache.data_ptr() for cache in caches]
        self._bound = True

    def _cache_views(self) -> dict[str, list[CacheView]]:
        first = self._shard.first_head
        return {
            "values": [CacheView.of(v.key, v.value, bits=v.bits, first_head=first) for v in self._views],
            "scales": [CacheView.of(*v.scales, first_head=first) for v in self._views if v.scales is not None],
        }

    @property
    def needs(self) -> Needs:
        """Memory that `bind` will take."""
        return Needs(
            layers=len(self.layers),
            rows=self.runner.max_tokens,
            batch_tokens=self.runner.max_requests * self.runner.max_model_len,
            targets=len(self._struck),
            reads=self._wraps_reads,
            stuck_reads=self._stuck_reads,
        )

    def _read_tokens(self) -> int:
        return self.needs.read_tokens(int(self._views[0].key.shape[0]) * self._views[0].block_tokens)

    def load(self, data: TableData | EventData) -> None:
        """Take a table of trials or of listed faults; its entries are what requests carry from now on. Listed faults
        need an engine that captures no graphs: a launch more per layer, which campaigns do not pay for."""
        self._end_step()
        assert len(self._struck) > 1 or not data.scales, "the engine was started without faults of scales"
        with naming("the listed faults"):
            for struck in self._struck:
                struck.load(data)
        assert self._wraps_reads or not any(struck.reads for struck in self._struck), "started without reads"
        if isinstance(data, TableData):
            stuck = any(site != "KV_WRITE" and op != "flip" for site, op in zip(data.sites, data.ops, strict=True))
            assert self._stuck_reads or not stuck, "the engine was started without stuck-ats of reads"
        self._data = data
        self._faulty = np.append(data.faulty, False)
        n = len(data)
        self._tally = torch.zeros(n, self._values.table.tally.shape[1], dtype=torch.int64, device=self._device)
        self._nonfinite = torch.full((n,), NEVER, dtype=torch.int32, device=self._device)
        self._written = np.zeros(n + 1, dtype=np.int64)
        """Positions per entry; the last one is what `FOREIGN` points at."""
        self._preemptions = np.zeros(n, dtype=np.int64)
        self._entry_of_slot.fill(FOREIGN)
        self._slot_of_entry.clear()

    def watch(self, watch: Watch | None) -> None:
        """Compare what is in the cache with an independent expectation, or stop doing so."""
        first = self._shard.first_head
        heads = slice(first, first + self.layers[0].layer.num_kv_heads)
        self.canary = watch.of_heads(heads) if isinstance(watch, CanaryWatch | ReadBack) else watch

    def counts(self, entries: list[int]) -> dict[str, list[int]]:
        """What happened to finished entries. Waits for the device once."""
        self._release([s for e in entries if (s := self._slot_of_entry.get(e)) is not None])
        at = torch.tensor(entries, dtype=torch.int64).to(self._device)
        counted = torch.cat(
            [self._tally[at], self._nonfinite[at].unsqueeze(1)], dim=1
        )  # so that one copy is waited for
        written, read, restored, dropped, exposed, unchanged, nonfinite = counted.cpu().numpy().T
        if dropped.any():
            entry = entries[int(np.argmax(dropped))]
            raise EngineError.one(
                "KVS406",
                f"reads of trial {entry} had more faults than the list of {self._read_tokens()} cells per layer holds",
                hint="lower engine.max_num_seqs or the length of requests",
            )
        landed = written + read
        counts = (landed, landed - unchanged, exposed, restored)
        mine = 1 if self._shard.counts else 0
        return {
            **{name: (mine * count).tolist() for name, count in zip(FLIPS, counts, strict=True)},
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
            if not self._bound or kv_cache.data_ptr() != self._pointers[index]:
                write(layer, key, value, kv_cache, slots)  # profiling: not the cache that requests live in
                return
            views, plain = self._views[index], self._format in PLAIN
            if plain:
                assert self._values.kernels is not None
                self._values.kernels.store(index, key, value, views.key, views.value, slots)
            else:
                write(layer, key, value, kv_cache, slots)
            held = None
            if self._watching:
                # what a format makes of K and V is the backend's affair; the faults are ours
                at = slots.clamp(min=0)
                codes = None if plain else views.at(at // views.block_tokens, at % views.block_tokens)
                held = Rows(torch.stack([key, value])) if codes is None else codes
            self._values.write(index, slots, stored=plain)
            for struck in self._struck[1:]:
                struck.write(index, slots)
            if held is not None:
                assert self.canary is not None
                assert self._step is not None
                self.canary.check(index, self._step, Written(held, slots), partial(self._stored, index))

        impl.do_kv_cache_update = do_kv_cache_update

    def _wrap_attention(self, attention: AttentionLayer) -> None:
        """Faults of reads are in a layer's cache while its attention runs. The launch for the next layer takes them
        back, and for the last layer one more launch does."""
        impl, index = attention.layer.impl, attention.index
        forward, last = impl.forward, index == len(self.layers) - 1

        def attend(
            layer: Any, query: Any, key: Any, value: Any, kv_cache: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            if not self._bound or kv_cache.data_ptr() != self._pointers[index]:
                return forward(layer, query, key, value, kv_cache, *args, **kwargs)
            self._read(index)
            result = forward(layer, query, key, value, kv_cache, *args, **kwargs)
            if last:
                self._read(index + 1)
            return result

        impl.forward = attend

    def _read(self, layer: int) -> None:
        """Apply the faults of reads in a layer, if there is such a layer, and take back those of the layer before."""
        for struck in self._struck:
            struck.read(layer)
        if self._watching:
            assert self.canary is not None
            assert self._step is not None
            for index, exposed in ((layer, True), (layer - 1, False)):
                if 0 <= index < len(self.layers):
                    self.canary.check_read(index, self._step, partial(self._stored, index), exposed=exposed)

    @property
    def _watching(self) -> bool:
        """Whether the canary looks at this forward. What a captured graph does cannot be seen from here."""
        if self.canary is None or self._step is None:
            return False
        return self._device.type != "cuda" or not torch.cuda.is_current_stream_capturing()

    def _stored(self, layer: int, rows: NDArray[Any], tokens: NDArray[Any]) -> Rows:
        """Positions of rows as they lie in the cache: plain indexing, for what watches."""
        views = self._views[layer]
        row, at = (torch.from_numpy(x.astype(np.int64)).to(self._device) for x in (rows, tokens))
        blocks = self.runner.block_table[row, at // views.block_tokens].long()
        inside = at % views.block_tokens
        return views.at(blocks, inside)

    def _enter(self, scheduled: Any) -> None:
        """Requests have entered the batch: scrub their blocks, give their slots their faults."""
        grants = self._requests.observe(scheduled)
        new = [(slot, self._requests.entry(request)) for request, slot in self.runner.entering(scheduled)]
        if self._data is None:
            return
        if len(grants.block):
            self._taint.hand_out(grants, self._faulty, self._zero)
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
        for struck in self._struck:
            struck.enter(slots, [entry for _, entry in new])

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
        at = torch.tensor([entry for _, entry in pairs], dtype=torch.int64)
        if self._device.type == "cuda":
            at = at.pin_memory().to(self._device, non_blocking=True)
        for struck in self._struck:
            tally, nonfinite = struck.table.take([slot for slot, _ in pairs])
            self._tally.index_add_(0, at, tally)
            self._nonfinite.scatter_reduce_(0, at, nonfinite, "amin")
        for slot, entry in pairs:
            self._entry_of_slot[slot] = FOREIGN
            self._slot_of_entry.pop(entry, None)

    def _begin_step(self, scheduled: Any, batch: Batch) -> None:
        if self._data is None or not self._bound:
            return
        self._batch = batch
        entries: NDArray[np.int64] = self._entry_of_slot[batch.slot]
        ends = batch.start + batch.count
        self._written[entries] = ends
        # most steps are of one token per request
        one = scheduled.total_num_scheduled_tokens == len(entries)
        longest = int(ends.max()) if any(struck.reads for struck in self._struck) else 0
        for struck in self._struck:
            struck.begin_step(batch, entries, 1 if one else int(batch.count.max()), longest)
        if self.canary is not None:
            self._step = self._requests.step(scheduled, batch.req_ids)

    def _observe_logits(self, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        batch = self._batch
        kernels = self._values.kernels
        if batch is not None and kernels is not None and logits.shape[0] == len(batch.req_ids):
            kernels.find_nonfinite(logits, batch.slots, batch.seq_lens, hidden)
            if self.canary is not None and self._step is not None:
                self.canary.logits(self._step, logits)

    def _end_step(self) -> None:
        """Dummy runs must not inject."""
        for struck in self._struck:
            if struck.kernels is not None:
                struck.kernels.end_step()
        self._batch = self._step = None
