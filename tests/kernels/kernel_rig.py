"""A small paged cache with requests in it, on the CPU (interpreter) or a GPU, and what Rust says must happen to it.

The kernels see the cache as words, strides and block tables. Everything here sees it as codes: plain tensor indexing,
so that no address arithmetic is shared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from kvspec_kernels import CacheView, FaultModel, FaultTable, Injector, Selector, SlotFault, Tuning
from kvspec_kernels.table import TALLY_UNCHANGED, TALLY_WRITE
from numpy.typing import NDArray

from kvspec import _native

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
STORAGE = {4: torch.uint8, 8: torch.uint8, 16: torch.int16, 32: torch.int32}
MASKS = {
    4: [0xF, 0x8, 0x5],
    8: [0xFF, 0xC0, 0x78, 0x7C, 0xF0],
    16: [0xFFFF, 0xC0C0, 0x7F80, 0x7C00, 0xF0F0],
    32: [0xFFFFFFFF, 0x7F800000, 0x80000001],
}
SMALL = Tuning(write_programs=2, read_programs=2, inject_programs=3, event_programs=2, vocab_programs=2)
"""Few programs: each takes several turns, and the interpreter stays fast."""

Events = tuple[tuple[int, int], ...]
"""Half-open ranges of read events: 0 is the prefill, i the i-th decode step."""
EVERY_EVENT: Events = ((0, 2**32),)


@dataclass(frozen=True)
class Geometry:
    """Rows of a layer."""

    head_size: int = 64
    heads: int = 2
    bits: int = 16
    planes: int = 2
    first_plane: int = 0


@dataclass(frozen=True)
class Fault:
    """A fault model and what is shown of it, in Rust's words."""

    geometry: Geometry
    rate: float
    mask: int
    per: str = "bit"
    burst_len: int = 1
    page_tokens: int = 0
    page_rate: float = 1.0
    op: str = "flip"
    where: dict[str, Any] = field(default_factory=dict)

    def sampler(self) -> _native.Sampler:
        g = self.geometry
        return _native.Sampler(
            head_size=g.head_size, bits=g.bits, heads=g.heads, planes=g.planes, first_plane=g.first_plane,
            rate=self.rate, per=self.per, mask=self.mask, burst_len=self.burst_len, page_tokens=self.page_tokens,
            page_rate=self.page_rate,
        )  # fmt: skip

    def model(self) -> FaultModel:
        s, g = self.sampler(), self.geometry
        return FaultModel(
            level=s.level, thresholds=s.thresholds, page_threshold=s.page_threshold, head_size=g.head_size,
            heads=g.heads, planes=g.planes, first_plane=g.first_plane, per=self.per, mask=self.mask,
            burst_len=self.burst_len, page_tokens=self.page_tokens, op=self.op,
        )  # fmt: skip

    def selector(self, events: Events = EVERY_EVENT) -> Selector:
        return Selector(**self.where, events=events)

    def masks(
        self, key: tuple[int, int], request: int, layer: int, start: int, count: int, prompt_len: int
    ) -> NDArray[np.uint32]:
        """Rust's faults as masks `[count, 2, heads, head_size]`; K and V are planes 0 and 1."""
        g = self.geometry
        masks = np.zeros((count, 2, g.heads, g.head_size), np.uint32)
        flips = self.sampler().enumerate(
            key=key, request=request, layers=(layer, layer + 1), tokens=(start, start + count), prompt_len=prompt_len,
            selector=_native.Selector(**self.where),
        )  # fmt: skip
        at = (flips["token"].astype(np.int64) - start, flips["kv"], flips["head"], flips["elem"])
        np.bitwise_or.at(masks, at, np.uint32(1) << flips["bit"].astype(np.uint32))
        return masks


def applied(codes: NDArray[np.uint32], masks: NDArray[np.uint32], op: str) -> NDArray[np.uint32]:
    """Codes after a fault."""
    return {"flip": codes ^ masks, "set0": codes & ~masks, "set1": codes | masks}[op]


@dataclass(frozen=True)
class Request:
    """One request of a batch: `count` tokens from `start` on are written in this forward."""

    slot: int
    start: int
    count: int
    fault: Fault | None = None
    request: int = 0
    prompt_len: int = 0
    write_key: tuple[int, int] | None = None
    read_master: tuple[int, int] | None = None
    events: Events = EVERY_EVENT

    @property
    def end(self) -> int:
        return self.start + self.count

    def read_key(self) -> tuple[int, int]:
        assert self.read_master is not None
        return _native.read_key(self.read_master, self.request, max(self.end, self.prompt_len))


def allocate(
    layout: str, blocks: int, tokens: int, heads: int, dim: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(everything, K, V); K and V are views `[blocks, tokens, heads, dim]`.

    flash: vLLM 0.25 (B, 2, N, H, D).  packed: 0.32 on (B, H, N, 2D).  padded: gaps between blocks, heads and rows.
    """
    if layout == "flash":
        whole = torch.zeros(blocks, 2, tokens, heads, dim, dtype=dtype, device=device)
        return whole, *whole.unbind(1)
    if layout == "packed":
        whole = torch.zeros(blocks, heads, tokens, 2 * dim, dtype=dtype, device=device)
        view = whole.permute(0, 2, 1, 3)
        return whole, view[..., :dim], view[..., dim:]
    assert layout == "padded"
    whole = torch.zeros(blocks + 1, heads + 1, tokens, 2 * dim + 8, dtype=dtype, device=device)
    view = whole.permute(0, 2, 1, 3)[1:, :, 1:]
    return whole, view[..., 4 : 4 + dim], view[..., 4 + dim : 4 + 2 * dim]


class Rig:
    """Caches of some layers, filled at random, and an injector bound to them."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        device: str = DEVICE,
        layers: int = 2,
        first_layer: int = 0,
        all_layers: int | None = None,
        layout: str = "flash",
        block_tokens: int = 16,
        blocks: int = 12,
        heads: tuple[int, int] | None = None,
        slots: int = 8,
        read_tokens: int = 512,
        tuning: Tuning | None = SMALL,
        fill: str = "random",
        max_rows: int = 256,
        stuck_reads: bool = False,
    ) -> None:
        self.geometry, self.device = geometry, device
        self.layers, self.first_layer, self.block_tokens = layers, first_layer, block_tokens
        self.heads = heads or (0, geometry.heads)
        self.rng = np.random.default_rng(5)
        stored = geometry.head_size // (2 if geometry.bits == 4 else 1)
        self.storage = [
            allocate(
                layout, blocks, block_tokens, self.heads[1] - self.heads[0], stored, STORAGE[geometry.bits], device
            )
            for _ in range(layers)
        ]
        for whole, _, _ in self.storage:
            value = {"random": None, "zeros": 0, "ones": 0xFF}[fill]
            raw = self.rng.integers(0, 256, whole.numel() * whole.element_size()) if value is None else value
            data = np.full(whole.numel() * whole.element_size(), raw, np.uint8)
            whole.view(-1).view(torch.uint8).copy_(torch.from_numpy(data))
        self.table = FaultTable(
            slots=slots, layers=all_layers or first_layer + layers, heads=geometry.heads, device=device,
            max_models=256, max_selectors=256, max_ranges=512, max_thresholds=32768,
        )  # fmt: skip
        self.injector = Injector(
            self.table, max_rows=max_rows, max_requests=max(16, slots), read_tokens=read_tokens, max_events=4096,
            layers=layers, first_layer=first_layer, tuning=tuning, stuck_reads=stuck_reads,
        )  # fmt: skip
        self.injector.bind(self.views())
        self.blocks = self.rng.permutation(blocks)

    def views(self) -> list[CacheView]:
        return [
            CacheView.of(key, value, bits=self.geometry.bits, first_head=self.heads[0])
            for _, key, value in self.storage
        ]

    def enter(self, requests: list[Request]) -> None:
        """Load the faults of a batch and lay out its block table and slot mapping."""
        armed = [(i, r) for i, r in enumerate(requests) if r.fault is not None]
        self.table.load([r.fault.model() for _, r in armed], [r.fault.selector(r.events) for _, r in armed])
        faults: list[SlotFault | None] = [None] * len(requests)
        for at, (i, r) in enumerate(armed):
            faults[i] = SlotFault(
                model=at, selector=at, request=r.request, prompt_len=r.prompt_len, write_key=r.write_key,
                read_master=r.read_master,
            )  # fmt: skip
        self.table.assign([r.slot for r in requests], faults)
        self.requests = requests
        # a request far into its sequence owns blocks from its first token here only: the table is wide, not full
        tables, rest = [], list(self.blocks)
        for r in requests:
            first = 0 if r.read_master is not None else r.start // self.block_tokens
            wanted = (r.end - 1) // self.block_tokens - first + 1
            tables.append((first, rest[:wanted]))
            rest = rest[wanted:]
            assert len(tables[-1][1]) == wanted, "the rig has too few blocks"
        self.tables = tables
        self.step(requests)

    def step(self, requests: list[Request]) -> None:
        """The tensors of a forward of the same requests (perhaps at later tokens)."""

        def i32(values: list[int]) -> torch.Tensor:
            return torch.from_numpy(np.array(values, np.uint32).view(np.int32).copy()).to(self.device)

        self.requests = requests
        counts = [r.count for r in requests]
        self.query_start = i32(np.cumsum([0, *counts]).tolist())
        self.batch_slot = i32([r.slot for r in requests])
        self.seq_lens = i32([r.end % 2**32 for r in requests])
        mapping = [self.place(i, t) for i, r in enumerate(requests) for t in range(r.start, r.end)]
        self.slot_mapping = torch.tensor(mapping, dtype=torch.int64).to(self.device)
        width = max([1, *(first + len(blocks) for first, blocks in self.tables if first == 0)])
        table = np.zeros((len(requests), width), np.int32)
        for row, (first, blocks) in zip(table, self.tables, strict=True):
            if first == 0:
                row[: len(blocks)] = blocks
        self.block_table = torch.from_numpy(table).to(self.device)

    def place(self, index: int, token: int) -> int:
        """Physical token of a token of request `index`."""
        first, blocks = self.tables[index]
        return int(blocks[token // self.block_tokens - first]) * self.block_tokens + token % self.block_tokens

    def begin(self, *, writes: bool = True, reads: bool = False) -> None:
        self.injector.begin_step(
            self.query_start, self.batch_slot, self.seq_lens, len(self.requests), writes=writes, reads=reads,
            max_query=max(r.count for r in self.requests), max_seq=min(max(r.end for r in self.requests), 2**20),
        )  # fmt: skip

    def write(self) -> None:
        self.begin()
        for layer in range(self.layers):
            self.injector.writes(layer, self.slot_mapping)

    def codes(self, index: int, layer: int, start: int, count: int) -> NDArray[np.uint32]:
        """Stored codes of tokens of a request: `[count, 2, rank's heads, head_size]`."""
        at = torch.tensor([self.place(index, t) for t in range(start, start + count)], dtype=torch.int64)
        _, key, value = self.storage[layer]
        rows = [x[(at // self.block_tokens).to(x.device), (at % self.block_tokens).to(x.device)] for x in (key, value)]
        raw = torch.stack(rows, dim=1).cpu().numpy()
        raw = raw.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[raw.itemsize]).astype(np.uint32)
        if self.geometry.bits == 4:
            raw = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
        return raw

    def snapshot(self) -> list[NDArray[np.uint8]]:
        """All bytes of all layers, gaps included."""
        return [whole.reshape(-1).view(torch.uint8).cpu().numpy().copy() for whole, _, _ in self.storage]

    def masks(self, r: Request, layer: int, *, read: bool = False) -> NDArray[np.uint32]:
        """What Rust injects into a request in this forward, on this rank: `[tokens, 2, rank's heads, head_size]`."""
        start = 0 if read else r.start
        local = self.heads[1] - self.heads[0]
        key = (r.read_key() if read else r.write_key) if r.fault is not None else None
        several_events = r.count > 1 and r.end > r.prompt_len
        event = max(r.end, r.prompt_len) - r.prompt_len
        shown = any(first <= event < stop for first, stop in r.events)
        hidden = read and (several_events or not shown)
        if r.fault is None or key is None or hidden:
            return np.zeros((r.end - start, 2, local, self.geometry.head_size), np.uint32)
        masks = r.fault.masks(key, r.request, self.first_layer + layer, start, r.end - start, r.prompt_len)
        return masks[:, :, self.heads[0] : self.heads[1]]

    def check(
        self,
        before: list[NDArray[np.uint8]],
        codes: list[list[NDArray[np.uint32]]],
        layers: list[int],
        *,
        read: bool = False,
    ) -> int:
        """Every code is what Rust says, no other byte changed in any layer, and the tally counts it. Returns flips."""
        total, changed = np.zeros(len(self.requests), np.int64), 0
        for layer in range(self.layers):
            for i, r in enumerate(self.requests):
                start = 0 if read else r.start
                after = self.codes(i, layer, start, r.end - start)
                masks = self.masks(r, layer, read=read)
                if layer not in layers:
                    masks = masks & 0
                expected = applied(codes[layer][i], masks, r.fault.op if r.fault else "flip")
                np.testing.assert_array_equal(after, expected, err_msg=f"layer {layer}, {r}")
                bits = int(np.bitwise_count(after ^ codes[layer][i]).sum())
                total[i] += bits
                changed += bits
        raw = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(before, self.snapshot(), strict=True))
        assert raw == changed, "bits outside the requests changed"
        return changed

    def all_codes(self, *, read: bool = False) -> list[list[NDArray[np.uint32]]]:
        return [
            [
                self.codes(i, layer, 0 if read else r.start, r.end - (0 if read else r.start))
                for i, r in enumerate(self.requests)
            ]
            for layer in range(self.layers)
        ]

    def check_write(self) -> int:
        """Inject the write faults of the entered batch in all layers and compare. Returns the number of changed
        bits."""
        before, codes = self.snapshot(), self.all_codes()
        self.write()
        changed = self.check(before, codes, list(range(self.layers)))
        tally = self.table.tally.cpu().numpy()
        planned = sum(
            int(np.bitwise_count(self.masks(r, at)).sum()) for r in self.requests for at in range(self.layers)
        )
        landed, unchanged = tally[:, TALLY_WRITE.value].sum(), tally[:, TALLY_UNCHANGED.value].sum()
        assert landed == planned
        assert landed - unchanged == changed
        assert tally.sum() == landed + unchanged
        return changed

    def tallies(self, column: int) -> list[int]:
        """A column of the tally, by request of the batch."""
        tally = self.table.tally.cpu().numpy()
        return [int(tally[r.slot, column]) for r in self.requests]


def random_key(rng: np.random.Generator) -> tuple[int, int]:
    """A Philox key."""
    a, b = rng.integers(0, 2**32, 2)
    return int(a), int(b)


def random_fault(rng: np.random.Generator, geometry: Geometry, level: str | None = None) -> Fault:
    """Any fault the sampler takes, aimed at a level (the level rule has the last word), with a few hits per token."""
    if level is None:
        small = geometry.head_size * geometry.heads * geometry.planes <= 100
        level = str(rng.choice(["token", "token", "head", "dense" if small else "head"]))
    mask = int(rng.choice(MASKS[geometry.bits]))
    per = str(rng.choice(["bit", "bit", "element", "row"])) if level != "dense" else str(rng.choice(["bit", "element"]))
    n = {"bit": geometry.head_size * mask.bit_count(), "element": geometry.head_size, "row": 1}[per]
    if level == "token":
        rate = float(rng.choice([0.05, 0.5, 3.0, 12.0, 31.9])) / (n * geometry.planes * geometry.heads)
    elif level == "head":
        rate = float(rng.choice([8.0, 20.0, 32.0])) / n
    else:
        rate = float(rng.choice([0.3, 0.6, 1.0]))
    pages = int(rng.choice([0, 0, 1, 7, 16]))
    return Fault(
        geometry,
        min(rate, 1.0),
        mask,
        per,
        burst_len=int(rng.choice([1, 3] if level == "dense" else [1, 1, 2, 5, 40])),
        page_tokens=pages,
        page_rate=float(rng.choice([0.5, 0.8, 1.0])) if pages else 1.0,
        op=str(rng.choice(["flip", "flip", "set0", "set1"])),
    )


def random_where(rng: np.random.Generator, layers: int, heads: int) -> dict[str, Any]:
    """Any selector."""
    where: dict[str, Any] = {}
    if rng.random() < 0.5:
        a = int(rng.integers(0, layers + 1))
        where["layers"] = [(a, layers), (0, a // 2)]
    if rng.random() < 0.5:
        where["heads"] = [(int(rng.integers(0, heads)), heads)]
    where["planes"] = [(True, True), (True, True), (False, True), (True, False)][int(rng.integers(4))]
    where["phase"] = str(rng.choice(["all", "all", "prompt", "decode"]))
    if rng.random() < 0.5:
        a, b, c = sorted(rng.integers(0, 60, 3).tolist())
        where["tokens"] = [(a, b), (c, 2**32)]
    return where


def with_op(fault: Fault, op: str) -> Fault:
    return replace(fault, op=op)
