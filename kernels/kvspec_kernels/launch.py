"""The launcher: what an engine calls.

    table = FaultTable(slots=..., layers=..., heads=..., device=...)      when the model is loaded
    injector = Injector(table, ...)                                       before CUDA graphs are captured
    injector.bind([CacheView.of(k, v), ...])                              when the cache exists
    table.load(models, selectors)                                         once per campaign

    table.assign(slots, faults)                                           when requests enter the batch
    injector.begin_step(...)                                              per forward, when the batch is known
        injector.store(layer, ...)  or  injector.writes(layer, ...)       per layer, at the cache write
        injector.reads(layer, ...)                                        per layer, before attention
    injector.reads(layers, ...)                                           after the attention of the last layer
    injector.end_step()                                                   so that dummy runs inject nothing

Calls inside a forward may be captured: they always launch, with a grid and pointers that depend on shapes only.
Nothing here allocates, copies or waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from kvspec_kernels.cache import CacheView
from kvspec_kernels.events import EVENT_WIDTH, inject_events_kernel
from kvspec_kernels.inject import inject_reads_kernel, inject_writes_kernel
from kvspec_kernels.nonfinite import find_nonfinite_kernel
from kvspec_kernels.repeated import Repeated
from kvspec_kernels.step import list_cells_kernel
from kvspec_kernels.store import store_kernel
from kvspec_kernels.table import FaultTable

LANES = 128
"""Lanes of a cell: a power of two above `MAX_HITS`."""

_EXPONENT = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}

_SAFE = {torch.bfloat16: 0x7149, torch.float32: 0x7149F2CA}
"""1e30 as bits."""


@dataclass(frozen=True)
class Tuning:
    """Sizes that change speed only."""

    write_programs: int = 16
    """Programs that share the write cells of a request when they are listed, at most."""
    read_programs: int = 32
    """The same for read cells."""
    inject_programs: int = 512
    """Programs of an injection launch, at most."""
    event_programs: int = 32
    """Programs of an explicit-map launch."""
    vocab_programs: int = 8
    """Programs that share a row of logits."""


class Injector:
    """Buffers of one rank, and the launches."""

    def __init__(
        self,
        table: FaultTable,
        *,
        max_rows: int,
        max_requests: int,
        read_tokens: int = 0,
        max_events: int = 0,
        layers: int | None = None,
        first_layer: int = 0,
        stuck_reads: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        """`max_rows`: rows of the largest batch. `read_tokens`: cells that a list of reads holds per layer; tokens of
        the whole cache can never overflow it, and cost 12 bytes each per layer (0 without reads). `max_events`: of an
        explicit map in one step. `layers`, `first_layer`: those of the model that it holds, all by default; the engine
        has all of them, golden vectors lie at layers that no memory would hold. `stuck_reads`: whether reads may have
        stuck-ats, for which `bind` takes the memory of two layers' caches."""
        self.table = table
        self.layers = table.layers if layers is None else layers
        self.first_layer = first_layer
        self.tuning = tuning or Tuning()
        self._max_rows = max_rows
        self._read_tokens = read_tokens
        self._stuck_reads = stuck_reads

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=table.device)

        self.counts = zeros(2, self.layers)
        self._write_counts, self._read_counts = self.counts
        self._emptied = True
        """Whether `counts` will be zero when the next forward is listed."""
        self.write_cells = zeros(3, self.layers, max_rows)
        self.read_cells = zeros(3, self.layers, read_tokens)
        self.event_keys = zeros(max_requests, 3)
        self.events = zeros(2, EVENT_WIDTH.value, max_events)
        """Explicit events of writes and of reads."""
        self.event_starts = zeros(2, self.layers + 1)
        self.kept = zeros(2, 0)
        """Bits that stuck-ats of reads have changed in a layer, layers in turns, until they are taken back."""
        self._tables = (table.slot_table, table.models, table.thresholds, table.selectors)
        self._widths = (table.layer_words, table.selector_width)
        self._caches: list[CacheView] = []
        self._behind: list[int] = []
        self._list_cells = Repeated(list_cells_kernel)
        self._find_nonfinite = Repeated(find_nonfinite_kernel, bits=True)
        self._forget_layers()

    def bind(self, caches: Sequence[CacheView]) -> None:
        """The caches of this rank's layers. Raises `ValueError` if their layouts differ."""
        if len(caches) != self.layers:
            raise ValueError(f"{len(caches)} caches for {self.layers} layers")
        layouts = {_layout(cache) for cache in caches}
        if len(layouts) > 1:
            raise ValueError(f"the layers differ in layout: {sorted(layouts)}")
        self._caches = list(caches)
        self._forget_layers()
        if self._stuck_reads:
            self.keep_stuck_reads()
        starts = [cache.words.data_ptr() for cache in caches]
        self._behind = [0] + [
            (before - start) // 4 * (32 // cache.bits)
            for before, start, cache in zip(starts, starts[1:], caches[1:], strict=False)
        ]

    def _forget_layers(self) -> None:
        """Launches that are repeated have the addresses of caches and of what is kept."""
        self._store, self._inject_writes = Repeated(store_kernel), Repeated(inject_writes_kernel)
        self._inject_reads = Repeated(inject_reads_kernel)

    def keep_stuck_reads(self) -> None:
        """From now on reads may have stuck-ats. Graphs that were captured before must not be used with them."""
        span = max(cache.span for cache in self._caches)
        if self.kept.shape[1] < span:
            self.kept = self.kept.new_zeros(2, span)
            self._forget_layers()

    def begin_step(
        self, query_start: torch.Tensor, batch_slot: torch.Tensor, seq_lens: torch.Tensor, requests: int, *,
        max_query: int = 1, writes: bool = True, reads: bool = False, max_seq: int | None = None,
    ) -> None:  # fmt: skip
        """List the cells of a forward that may be hit, in all layers.

        int32 tensors: `query_start` `[requests + 1]`, `batch_slot` and `seq_lens` `[requests]`. `max_query` and
        `max_seq` (longest query and sequence, by default `max_query` 1 and the longest sequence unknown) only size the
        grid.
        """
        if not query_start.dtype == batch_slot.dtype == seq_lens.dtype == torch.int32:
            for name, tensor in (("query_start", query_start), ("batch_slot", batch_slot), ("seq_lens", seq_lens)):
                if tensor.dtype != torch.int32:
                    raise ValueError(f"{name} is {tensor.dtype}, not torch.int32")
        if not self._emptied:
            self.counts.zero_()
        self._emptied = False
        if requests == 0:
            return
        if writes:
            programs = _between(1, _parts(max_query * self.layers, 512), self.tuning.write_programs)
            self._list(False, (requests, programs, 1), query_start, batch_slot, seq_lens)
        if reads:
            cells = self.tuning.read_programs * 512 if max_seq is None else max_seq * self.layers
            programs = _between(1, _parts(cells, 512), self.tuning.read_programs)
            self._list(True, (requests, programs, 1), query_start, batch_slot, seq_lens)

    def _list(
        self,
        read: bool,
        grid: tuple[int, int, int],
        query_start: torch.Tensor,
        slots: torch.Tensor,
        seq_lens: torch.Tensor,
    ) -> None:
        table = self.table
        cells, counts = (self.read_cells, self._read_counts) if read else (self.write_cells, self._write_counts)
        self._list_cells(
            read, grid, (query_start, slots, seq_lens),
            (*self._tables, table.ranges, cells, counts, self.event_keys, table.tally,
             self._read_tokens if read else self._max_rows, self.first_layer, table.selector_width),
            READ=read, LAYERS=self.layers, BLOCK=128,
        )  # fmt: skip

    def end_step(self) -> None:
        """Forget the listed cells and the explicit events."""
        self.counts.zero_()
        self._emptied = True
        self.event_starts.zero_()

    def store(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:  # fmt: skip
        """Write K and V of a layer (index on this rank) to its cache, faults included, in place of the backend's write.

        `key`, `value`: `[rows, heads, D]` in the type of the cache; `key_cache`, `value_cache`: the tensors given to
        `CacheView.of`. Raises `ValueError` where a plain copy would not be what the backend does.
        """
        rows = slot_mapping.shape[0]
        if rows == 0:
            return
        kind = (
            layer, key.dtype, value.dtype, key_cache.dtype, key.stride(), value.stride(), key.shape[1:], value.shape[2]
        )  # fmt: skip
        first = (key, value, key.stride(0), value.stride(0), key_cache, value_cache, slot_mapping)
        if self._store.again(kind, (rows, 1, 1), first):
            return
        cache, (_, heads, dim) = self._caches[layer], key.shape
        if key.dtype != key_cache.dtype or value.dtype != value_cache.dtype or cache.bits != key.element_size() * 8:
            raise ValueError(f"K is {key.dtype}, V {value.dtype}, the cache {key_cache.dtype}")
        if key.stride()[1:] != (dim, 1) or value.stride()[1:] != (dim, 1) or value.shape[2] != dim:
            raise ValueError(f"rows of K and V are not contiguous: strides {key.stride()} and {value.stride()}")
        tile = triton.next_power_of_2(heads * dim)
        self._store(
            kind, (rows, 1, 1), first,
            (self.write_cells, self._write_counts, self._max_rows, self.layers, layer, self.first_layer, cache.words,
             *_layout(cache)[2:-1], *self._tables, *self._widths, self.table.tally),
            num_warps=_between(1, tile // 256, 8), BLOCK_TOKENS=cache.block_tokens, HEADS=heads, HEAD_SIZE=dim,
            TILE=tile, BITS=cache.bits, LANES=LANES,
        )  # fmt: skip

    def writes(self, layer: int, slot_mapping: torch.Tensor) -> None:
        """Inject the listed write cells of a layer, after the backend's write."""
        rows = slot_mapping.shape[0]
        grid = (_between(1, rows, self.tuning.inject_programs), 1, 1)
        if rows == 0 or self._inject_writes.again(layer, grid, (slot_mapping,)):
            return
        cache = self._caches[layer]
        self._inject_writes(
            layer, grid, (slot_mapping,),
            (self.write_cells, self._write_counts, self._max_rows, self.layers, layer, self.first_layer, cache.words,
             *_layout(cache)[1:], *self._tables, *self._widths, self.table.tally),
            num_warps=1, BITS=cache.bits, LANES=LANES,
        )  # fmt: skip

    def reads(self, layer: int, block_table: torch.Tensor) -> None:
        """Inject the listed read cells of a layer before its attention, and undo those of the layer before.

        With `layer` = number of layers, only undo: to be called after the attention of the last layer.
        `block_table`: int32 `[requests, blocks]`.
        """
        kind = (layer, stride := block_table.stride(0))
        grid = (self.tuning.inject_programs, 2, 1)
        if self._inject_reads.again(kind, grid, (block_table, stride)):
            return
        cache, behind = self._at(layer)
        self._inject_reads(
            kind, grid, (block_table, stride),
            (self.read_cells, self._read_counts, self._read_tokens, self.layers, layer, self.first_layer,
             self.event_keys, cache.words, *self._keeping, behind, *_layout(cache)[1:], *self._tables, *self._widths,
             self.table.tally),
            num_warps=1, BITS=cache.bits, LANES=LANES, KEEP=self.kept.numel() > 0,
        )  # fmt: skip

    def write_events(self, layer: int, slot_mapping: torch.Tensor) -> None:
        """Inject the explicit write events of a layer, after the cache write."""
        self._events(False, layer, slot_mapping, 0)

    def read_events(self, layer: int, block_table: torch.Tensor) -> None:
        """Inject the explicit read events of a layer and undo those of the layer before, as `reads` does."""
        self._events(True, layer, block_table, block_table.stride(0))

    def _events(self, read: bool, layer: int, place: torch.Tensor, stride: int) -> None:
        cache, behind = self._at(layer)
        inject_events_kernel[(self.tuning.event_programs, 2 if read else 1)](
            self.events[int(read)], self.event_starts[int(read)], self.events.shape[2], self.layers, layer, place,
            stride, cache.words, *self._keeping, behind, *_layout(cache)[1:], self.table.tally,
            READ=read, BITS=cache.bits, BLOCK=LANES, KEEP=read and self.kept.numel() > 0, num_warps=4,
        )  # fmt: skip

    def reserve_events(self, count: int) -> None:
        """Make room for so many explicit events in a step. Graphs captured before keep the old buffer."""
        if count > self.events.shape[2]:
            self.events = self.events.new_zeros(2, EVENT_WIDTH.value, count)

    def set_events(self, reads: bool, layer: NDArray[np.integer], columns: NDArray[np.integer]) -> None:
        """The explicit events of a step: `layer` (on this rank) ascending, `columns` `[EVENT_WIDTH, events]` as
        events.py has them. Raises `ValueError` for more than `max_events`."""
        count = columns.shape[1]
        if count > self.events.shape[2]:
            raise ValueError(f"{count} events in a step, buffers were made for {self.events.shape[2]}")
        starts = np.searchsorted(layer, np.arange(self.layers + 1)).astype(np.int32)
        device = self.table.device
        data = [torch.from_numpy(np.ascontiguousarray(x)) for x in (columns.astype(np.uint32).view(np.int32), starts)]
        if torch.device(device).type == "cuda":
            data = [x.pin_memory() for x in data]
        self.events[int(reads), :, :count].copy_(data[0], non_blocking=True)
        self.event_starts[int(reads)].copy_(data[1], non_blocking=True)

    def find_nonfinite(
        self, logits: torch.Tensor, batch_slot: torch.Tensor, seq_lens: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> None:
        """Note in `table.nonfinite` which watched requests have NaN or infinity among their logits `[rows, vocab]`.
        Logits come last in a forward, so this launch empties the lists of cells, too.

        With the hidden states `[rows, width]` that the logits are products of, logits are read only where those are
        suspicious. (Not where logits are fp16, which overflow easily.)
        """
        exponent = _EXPONENT[logits.dtype]
        if logits.stride(1) != 1:
            raise ValueError(f"logits with strides {logits.stride()}")
        rows, vocab = logits.shape
        if rows == 0:
            return
        programs = _between(1, _parts(vocab, 2048), self.tuning.vocab_programs)
        safe = 0
        if hidden is None or logits.dtype == torch.float16 or hidden.dtype not in _SAFE or hidden.stride(1) != 1:
            hidden = logits
        else:
            safe = _SAFE[hidden.dtype]
        numbers = (logits.stride(0), vocab, hidden.stride(0), hidden.shape[1])
        self._find_nonfinite(
            (logits.dtype, hidden.dtype, safe, numbers), (rows, programs, 1),
            (logits, *numbers[:2], hidden, *numbers[2:], batch_slot, seq_lens),
            (self.table.slot_table, self.table.nonfinite, self.counts, self.counts.numel()),
            EXPONENT=exponent, SAFE=safe, BLOCK=2048,
        )  # fmt: skip
        self._emptied = True

    @property
    def _keeping(self) -> tuple[torch.Tensor, int]:
        """Where what stuck-ats change is kept, and words of a layer there."""
        return self.kept, self.kept.shape[1]

    def _at(self, layer: int) -> tuple[CacheView, int]:
        """The cache to address layer `layer` from, and where the layer before it starts, in elements."""
        if layer < self.layers:
            return self._caches[layer], self._behind[layer]
        return self._caches[-1], 0


def _layout(cache: CacheView) -> tuple[int, ...]:
    return (
        cache.bits,
        cache.block_tokens,
        cache.block_stride,
        cache.kv_stride,
        cache.token_stride,
        cache.head_stride,
        cache.elem_stride,
        cache.first_head,
        cache.heads,
    )


def _parts(count: int, size: int) -> int:
    return -(-count // size)  # triton.cdiv takes the host longer than a launch should


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
