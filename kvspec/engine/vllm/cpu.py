"""Injection on the CPU: steps are sampled, and faults applied to the float32 container, by the Rust core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.events import EventData
from kvspec.engine.table import TableData
from kvspec.engine.vllm.canary import Watch
from kvspec.engine.vllm.layers import AttentionLayer, Unwrapped, geometry, wrap_read
from kvspec.engine.vllm.layout import Layout, probe, words_of
from kvspec.engine.vllm.memory import Needs
from kvspec.engine.vllm.runner import RunnerV1
from kvspec.engine.vllm.step import Requests, Step
from kvspec.engine.vllm.storage import Rows, Written, wrap_attention
from kvspec.engine.vllm.taint import Taint, zero_blocks
from kvspec.engine.vllm.tally import Tally


@dataclass(frozen=True)
class Cache:
    """The cache of all layers, as the injector addresses it."""

    layouts: list[Layout]
    words: list[NDArray[np.uint32]]
    tensors: list[torch.Tensor]
    codes: list[NDArray[np.uint8]]
    """Of scaled formats, `[blocks, 2, T, H, D]` per layer: what a GPU stores. Words follow from codes and scales."""
    scales: list[NDArray[np.uint32]]
    """The same of scales, `[blocks, 2, T, H]`, float32 as bits."""

    def arrays(self, layer: int) -> dict[str, Any]:
        """Codes and scales of a layer as arguments of `StepFaults`."""
        return {"codes": self.codes[layer], "scales": self.scales[layer]} if self.scales else {}


class CpuInjector:
    """Hooks a runner and its attention layers, and applies the faults of the loaded trial table.

    Without a table it only rounds the cache to its storage format and injects nothing.
    """

    def __init__(self, runner: RunnerV1, layers: list[AttentionLayer], storage_format: str) -> None:
        self.runner = runner
        self.layers = layers
        self._format = storage_format
        self.geometry = geometry(layers)
        self._requests = Requests()
        self._taint = Taint()
        self._data: TableData | EventData | None = None
        self._table: _native.TrialTable | _native.EventTable | None = None
        self._cache: Cache | None = None
        self.canary: Watch | None = None
        self._step: Step | None = None
        self._writes: _native.StepFaults | None = None
        self._reads: _native.StepFaults | None = None
        self._armed: Step | None = None
        self._blocks: NDArray[np.int32] | None = None
        self.scrubbed_blocks = 0
        runner.hook(self._begin_step, self._end_step, self._observe_logits)
        for attention in layers:
            wrap_attention(attention, storage_format, self._after_write)
            wrap_read(attention, self._before_read, self._after_read)

    @property
    def needs(self) -> Needs:
        """Memory of the device that `bind` will take: none."""
        return Needs(layers=len(self.layers), rows=0, batch_tokens=0, targets=1, reads=False, stuck_reads=False)

    def bind(self) -> None:
        """Find the layout of the cache, which has just been allocated."""
        self._cache = self._probe()

    def load(self, data: TableData | EventData) -> None:
        """Take a table of trials or of listed faults; its entries are what requests carry from now on."""
        self._end_step()
        self._data = data
        self._table = data.build(self.geometry)
        self._faulty = np.append(data.faulty, False)
        self.tally = Tally(len(data))

    def watch(self, watch: Watch | None) -> None:
        """Compare cache writes with an independent expectation, or stop doing so."""
        self.canary = watch

    @property
    def cache(self) -> Cache:
        """The probed cache; valid after `bind`."""
        assert self._cache is not None
        return self._cache

    def counts(self, entries: list[int]) -> dict[str, list[int]]:
        """What happened to entries, up to and with the last step."""
        self._end_step()
        return self.tally.of(entries)

    def facts(self) -> dict[str, Any]:
        """How the cache is laid out, for the fingerprint."""
        layout = self.cache.layouts[0]
        return {
            "runner": self.runner.name,
            "block_tokens": layout.block_tokens,
            "cache_shape": list(self.cache.tensors[0].shape),
            "layout": layout.digest,
        }

    def _probe(self) -> Cache:
        self.runner.check_cache()
        layouts: list[Layout] = []
        words: list[NDArray[np.uint32]] = []
        tensors: list[torch.Tensor] = []
        codes: list[NDArray[np.uint8]] = []
        scales: list[NDArray[np.uint32]] = []
        for attention in self.layers:
            cache = attention.kv_cache
            # CPU_ATTN: [blocks, heads, tokens, 2 * head_size]; the probe fails if the guess of T is wrong.
            tokens = cache[0].numel() // (2 * attention.layer.num_kv_heads * attention.layer.head_size)
            if layouts and cache.shape == tensors[0].shape and cache.stride() == tensors[0].stride():
                layouts.append(layouts[0])
            else:
                layouts.append(probe(Unwrapped(attention.layer.impl), attention.layer, cache, tokens))
            words.append(words_of(cache))
            tensors.append(cache)
            if _native.format_scaled(self._format):
                shape = (len(cache), *layouts[-1].offsets.shape)
                codes.append(np.zeros(shape, dtype=np.uint8))
                scales.append(np.zeros(shape[:-1], dtype=np.uint32))
        return Cache(layouts, words, tensors, codes, scales)

    def _begin_step(self, scheduled: Any, order: Sequence[str]) -> None:
        self._end_step()
        grants = self._requests.observe(scheduled)
        if self._table is None or self._data is None:
            return
        self.scrubbed_blocks += self._taint.hand_out(grants, self._faulty, partial(zero_blocks, self.cache.tensors))
        step = self._requests.step(scheduled, order)
        self.tally.begin(step)
        self._step = step
        armed = self._data.armed[step.entry]
        self._armed = Step(*(np.ascontiguousarray(c[armed]) for c in (step.row, step.entry, step.start, step.count)))
        rows = {
            "entry": self._armed.entry,
            "row": self._armed.row,
            "start": self._armed.start,
            "count": self._armed.count,
        }
        self._writes = self._table.write_step(**rows)
        self._reads = self._table.read_step(**rows)
        if len(self._writes) or self._reads or self.canary is not None:
            self._blocks = self.runner.block_table(len(order))

    def _after_write(self, layer: int, written: Written) -> None:
        if self._cache is not None and self._cache.scales:
            _store_rows(self._cache.codes[layer], written.rows.codes, written.slots.numpy())
            _store_rows(self._cache.scales[layer], written.rows.scales, written.slots.numpy())
        self._inject(self._writes, layer)
        if self.canary is not None and self._step is not None:
            self.canary.check(layer, self._step, written, partial(self._stored, layer))

    def _before_read(self, layer: int) -> None:
        self._inject(self._reads, layer)
        self._check_read(layer, exposed=True)

    def _after_read(self, layer: int) -> None:
        if self._reads is not None and self._reads.layer_len(layer):
            self._reads.restore(self.cache.words[layer], format=self._format, **self.cache.arrays(layer))
        self._check_read(layer, exposed=False)

    def _inject(self, faults: _native.StepFaults | None, layer: int) -> None:
        if faults is None or not faults.layer_len(layer):
            return
        assert self._blocks is not None
        layout = self.cache.layouts[layer]
        faults.inject(
            layer,
            self.cache.words[layer],
            block_table=self._blocks,
            offsets=layout.offsets,
            block_stride=layout.block_stride,
            format=self._format,
            **self.cache.arrays(layer),
        )

    def _check_read(self, layer: int, *, exposed: bool) -> None:
        if self.canary is not None and self._step is not None:
            self.canary.check_read(layer, self._step, partial(self._stored, layer), exposed=exposed)

    def _stored(self, layer: int, rows: NDArray[Any], tokens: NDArray[Any]) -> Rows:
        """Positions of rows as they lie in the cache: plain indexing, for what watches."""
        assert self._blocks is not None
        layout, cache = self.cache.layouts[layer], self.cache.tensors[layer]
        block = self._blocks[rows, tokens // layout.block_tokens].astype(np.int64)
        inside = tokens % layout.block_tokens
        at = (block * layout.block_stride)[None, :, None, None] + layout.offsets[:, inside]
        state = (self.cache.arrays(layer).get(name) for name in ("codes", "scales"))
        found = (None if x is None else x[block, :, inside].swapaxes(0, 1) for x in state)
        return Rows(cache.reshape(-1)[torch.from_numpy(at)], *found)

    def _observe_logits(self, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        step = self._step
        if step is None or self._data is None or len(step.row) == 0 or logits.shape[0] <= int(step.row.max()):
            return
        if self.canary is not None:
            self.canary.logits(step, logits)
        bad = nonfinite_rows(hidden, logits)[step.row]
        if not bad.any():
            return
        entry = step.entry[bad]
        # Row i predicts the token after its last position; rows inside a chunked prompt predict nothing.
        token = (step.start[bad] + step.count[bad]).astype(np.int64) - self._data.prompt_len[entry]
        first = (token >= 0) & (self.tally.nonfinite_at[entry] < 0)
        self.tally.nonfinite_at[entry[first]] = token[first]

    def _end_step(self) -> None:
        for faults in (self._writes, self._reads):
            if faults is not None and self._armed is not None:
                self.tally.add(self._armed.entry, faults)
        self._step = self._writes = self._reads = self._armed = self._blocks = None


def _store_rows(store: NDArray[Any], rows: NDArray[Any] | None, slots: NDArray[np.int64]) -> None:
    """Put codes `[2, tokens, H, D]`, or scales `[2, tokens, H]`, of a step where their rows are; `store` is
    `[blocks, 2, T, H, D]`, or `[blocks, 2, T, H]`."""
    assert rows is not None
    real = slots >= 0
    block, token = np.divmod(slots[real], store.shape[2])
    store[block, :, token] = rows[:, real].swapaxes(0, 1)


SAFE_HIDDEN = 1e30
"""Hidden states below this cannot overflow float32 logits: a dot product with up to 10^5 weights below 10^3."""


def nonfinite_rows(hidden: torch.Tensor, logits: torch.Tensor) -> NDArray[np.bool_]:
    """Which rows of the logits hold NaN or infinity.

    The vocabulary is a hundred times wider than the hidden states, so only rows with suspicious hidden states are
    looked at. NaN fails every comparison, so it is suspicious too.
    """
    bad = ~(hidden.abs().amax(dim=-1) < SAFE_HIDDEN)
    if bad.any():
        bad[bad.clone()] = ~torch.isfinite(logits[bad]).all(dim=-1)
    found: NDArray[np.bool_] = bad.numpy()
    return found
