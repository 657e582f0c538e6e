"""What to inject, per request slot: small tables in device memory that every kernel reads.

A step mixes requests with different faults, so nothing about a fault is a kernel argument. A kernel goes

    request slot -> slots[slot]      what the request carries: sites, keys, indices of model and selector
                 -> models[model]    how hits are drawn: level, units, mask, thresholds, burst, pages, op
                 -> selectors[...]   which of them are shown: layers, heads, planes, phase, tokens, read events

All buffers have fixed addresses, so that a captured CUDA graph reads whatever they hold when it is replayed. Numbers
that are unsigned in sampling.md are stored as int32 and int64 with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray

# slots: int32 [slots, SLOT_WIDTH]
SLOT_SITE = tl.constexpr(0)
SLOT_MODEL = tl.constexpr(1)
SLOT_SELECTOR = tl.constexpr(2)
SLOT_REQUEST = tl.constexpr(3)
SLOT_PROMPT_LEN = tl.constexpr(4)
SLOT_WRITE_KEY = tl.constexpr(5)
SLOT_READ_MASTER = tl.constexpr(7)
SLOT_WIDTH = tl.constexpr(12)

SITE_WRITE = tl.constexpr(1)
SITE_READ = tl.constexpr(2)
SITE_WATCH = tl.constexpr(4)

# models: int32 [models, MODEL_WIDTH]
MODEL_LEVEL = tl.constexpr(0)
MODEL_UNITS = tl.constexpr(1)
MODEL_SUB = tl.constexpr(2)
MODEL_PER_ROW = tl.constexpr(3)
MODEL_PER_ELEMENT = tl.constexpr(4)
MODEL_BURST = tl.constexpr(5)
MODEL_PAGE_TOKENS = tl.constexpr(6)
MODEL_TABLE = tl.constexpr(7)
MODEL_TABLE_LEN = tl.constexpr(8)
MODEL_OP = tl.constexpr(9)
MODEL_HEADS = tl.constexpr(10)
MODEL_PLANES = tl.constexpr(11)
MODEL_FIRST_PLANE = tl.constexpr(12)
MODEL_LOWEST = tl.constexpr(16)
MODEL_WIDTH = tl.constexpr(52)

LEVEL_TOKEN = tl.constexpr(0)
LEVEL_HEAD = tl.constexpr(1)
LEVEL_DENSE = tl.constexpr(2)

OP_FLIP = tl.constexpr(0)
OP_SET0 = tl.constexpr(1)
OP_SET1 = tl.constexpr(2)

# selectors: int32 [selectors, SELECTOR_BITS + words of the layer set + words of the head set]
SELECTOR_PLANES = tl.constexpr(0)
SELECTOR_PHASE = tl.constexpr(1)
SELECTOR_RANGES = tl.constexpr(2)
SELECTOR_RANGES_LEN = tl.constexpr(3)
SELECTOR_EVENTS = tl.constexpr(4)
SELECTOR_EVENTS_LEN = tl.constexpr(5)
SELECTOR_BITS = tl.constexpr(6)

PHASE_ALL = tl.constexpr(0)
PHASE_PROMPT = tl.constexpr(1)
PHASE_DECODE = tl.constexpr(2)

# tally: int64 [slots, TALLY_WIDTH]
TALLY_WRITE = tl.constexpr(0)
TALLY_READ = tl.constexpr(1)
TALLY_RESTORED = tl.constexpr(2)
TALLY_DROPPED = tl.constexpr(3)
TALLY_EXPOSED = tl.constexpr(4)
TALLY_UNCHANGED = tl.constexpr(5)
TALLY_WIDTH = tl.constexpr(6)

NEVER = 2**31 - 1
"""Value of `FaultTable.nonfinite` for a request whose logits were finite so far."""

END = 2**32
"""Exclusive end of token positions and read events."""

MAX_HITS = 127
"""Longest table of thresholds that the kernels take; sampling.md, section 3, needs at most 96 entries."""

Ranges = Sequence[tuple[int, int]]
LEVELS = {"token": LEVEL_TOKEN.value, "head": LEVEL_HEAD.value, "dense": LEVEL_DENSE.value}
OPS = {"flip": OP_FLIP.value, "set0": OP_SET0.value, "set1": OP_SET1.value}
PHASES = {"all": PHASE_ALL.value, "prompt": PHASE_PROMPT.value, "decode": PHASE_DECODE.value}


@dataclass(frozen=True, kw_only=True)
class FaultModel:
    """A fault bound to the geometry of the layers. Level and thresholds come from `kvspec._native.Sampler`: only Rust
    computes them."""

    level: Literal["token", "head", "dense"]
    thresholds: NDArray[np.uint64]
    """Count thresholds at levels token and head; the one threshold of a unit at level dense. Empty: never hits."""
    page_threshold: int | None = None
    """Threshold of a page's draw; with `page_tokens` > 0, `None` means that no page is ever hit."""
    head_size: int
    """Elements of a row (D)."""
    heads: int
    """KV heads of the layer before any tensor-parallel split (H)."""
    planes: int = 2
    first_plane: int = 0
    per: Literal["bit", "element", "row"] = "bit"
    mask: int
    """Eligible bits of an element."""
    burst_len: int = 1
    page_tokens: int = 0
    """Tokens of a page, 0 for no pages."""
    op: Literal["flip", "set0", "set1"] = "flip"

    @property
    def never_hits(self) -> bool:
        """Whether no draw can cause a flip."""
        return len(self.thresholds) == 0 or (self.page_tokens > 0 and self.page_threshold is None)

    def record(self, table: int) -> list[int]:
        """The row of `models`; `table` is the index of its page threshold, which its count thresholds follow."""
        per_element = self.mask.bit_count()
        per_row = self.head_size * per_element
        units, sub = {"bit": (per_row, 1), "element": (self.head_size, per_element), "row": (1, per_row)}[self.per]
        if self.level == "token":
            units *= self.planes * self.heads
        record = [0] * MODEL_WIDTH.value
        record[MODEL_LEVEL.value] = LEVELS[self.level]
        record[MODEL_UNITS.value] = units
        record[MODEL_SUB.value] = sub
        record[MODEL_PER_ROW.value] = per_row
        record[MODEL_PER_ELEMENT.value] = per_element
        record[MODEL_BURST.value] = min(self.burst_len, per_row)
        record[MODEL_PAGE_TOKENS.value] = self.page_tokens
        record[MODEL_TABLE.value] = table
        record[MODEL_TABLE_LEN.value] = len(self.thresholds)
        record[MODEL_OP.value] = OPS[self.op]
        record[MODEL_HEADS.value] = self.heads
        record[MODEL_PLANES.value] = self.planes
        record[MODEL_FIRST_PLANE.value] = self.first_plane
        for i, lowest in enumerate(_lowest_bits(self.mask)):
            record[MODEL_LOWEST.value + i] = lowest
        return record


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Which flips of a sample are shown. Ranges are half-open; `None` is everything."""

    layers: Ranges | None = None
    heads: Ranges | None = None
    """Global KV heads."""
    planes: tuple[bool, bool] = (True, True)
    """Whether K and V are shown."""
    phase: Literal["all", "prompt", "decode"] = "all"
    """Tokens below, or from, the length of the prompt."""
    tokens: Ranges | None = None
    events: Ranges | None = None
    """Read events shown: 0 is the prefill, i the i-th decode forward."""


@dataclass(frozen=True, kw_only=True)
class SlotFault:
    """What one request carries."""

    model: int
    """Index into the loaded models."""
    selector: int
    """Index into the loaded selectors."""
    request: int
    """Index of the request in the plan."""
    prompt_len: int
    """Tokens of the prompt."""
    write_key: tuple[int, int] | None = None
    """Key of the KV_WRITE stream; `None`: no faults at writes."""
    read_master: tuple[int, int] | None = None
    """Master key of the KV_READ stream; `None`: no faults at reads."""
    watch: bool = True
    """Whether its logits are checked for NaN and infinity."""


@dataclass
class FaultTable:
    """The device tables. `load` fills them once per campaign, `assign` whenever requests enter the batch."""

    slots: int
    """Request slots of the model runner."""
    layers: int
    """Layers of the whole model."""
    heads: int
    """KV heads of the whole model."""
    device: torch.device | str
    max_models: int = 4096
    max_selectors: int = 4096
    max_ranges: int = 16384
    max_thresholds: int = 2**17
    """Count and page thresholds of all models together."""
    slot_table: torch.Tensor = field(init=False)
    """int32 `[slots, SLOT_WIDTH]`."""
    models: torch.Tensor = field(init=False)
    """int32 `[max_models, MODEL_WIDTH]`."""
    thresholds: torch.Tensor = field(init=False)
    """int64 `[max_thresholds]`: per model its page threshold, then its count thresholds."""
    selectors: torch.Tensor = field(init=False)
    """int32 `[max_selectors, selector_width]`."""
    ranges: torch.Tensor = field(init=False)
    """int32 `[max_ranges, 2]`: first and last token of a range, both inclusive, so that 2^32 - 1 fits."""
    tally: torch.Tensor = field(init=False)
    """int64 `[slots, TALLY_WIDTH]`: bits of writes that landed (were inverted, or hold their stuck value); bits that
    reads changed, each site once per read event (chunks of a prefill share one); that undoing the reads changed back;
    cells dropped because a list was full; bits that reads changed in all forwards; and bits that landed without a
    change, since they held their stuck value before."""
    nonfinite: torch.Tensor = field(init=False)
    """int32 `[slots]`: first generated token with NaN or infinity among its logits, `NEVER` if none."""

    def __post_init__(self) -> None:
        """Allocate the tables, empty."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.slot_table = zeros(self.slots, SLOT_WIDTH.value)
        self.models = zeros(self.max_models, MODEL_WIDTH.value)
        self.thresholds = zeros(self.max_thresholds, dtype=torch.int64)
        self.selectors = zeros(self.max_selectors, self.selector_width)
        self.ranges = zeros(self.max_ranges, 2)
        self.tally = zeros(self.slots, TALLY_WIDTH.value, dtype=torch.int64)
        self.nonfinite = torch.full((self.slots,), NEVER, dtype=torch.int32, device=self.device)
        self._never_hits: list[bool] = []
        self._selectors = 0

    @property
    def layer_words(self) -> int:
        """32-bit words of a set of layers."""
        return -(-self.layers // 32)

    @property
    def selector_width(self) -> int:
        """Words of a selector."""
        return int(SELECTOR_BITS.value) + self.layer_words + -(-self.heads // 32)

    def load(self, models: Sequence[FaultModel], selectors: Sequence[Selector]) -> None:
        """Replace models and selectors, and empty all slots. Raises `ValueError` for what does not fit."""
        records: list[list[int]] = []
        thresholds: list[int] = []
        for model in models:
            if len(model.thresholds) > MAX_HITS:
                raise ValueError(f"a model has {len(model.thresholds)} thresholds, the limit is {MAX_HITS}")
            if model.heads > self.heads:
                raise ValueError(f"a model has {model.heads} heads, the table holds {self.heads}")
            records.append(model.record(len(thresholds)))
            thresholds += [model.page_threshold or 0, *model.thresholds.tolist()]
        rows: list[list[int]] = []
        ranges: list[tuple[int, int]] = []
        for selector in selectors:
            tokens, events = _inclusive(selector.tokens), _inclusive(selector.events)
            row = [0] * SELECTOR_BITS.value
            row[SELECTOR_PLANES.value] = selector.planes[0] | selector.planes[1] << 1
            row[SELECTOR_PHASE.value] = PHASES[selector.phase]
            row[SELECTOR_RANGES.value] = len(ranges)
            row[SELECTOR_RANGES_LEN.value] = len(tokens)
            row[SELECTOR_EVENTS.value] = len(ranges) + len(tokens)
            row[SELECTOR_EVENTS_LEN.value] = len(events)
            rows.append(row + _bits(selector.layers, self.layers) + _bits(selector.heads, self.heads))
            ranges += tokens + events
        for buffer, what, values in (
            (self.models, "models", records),
            (self.thresholds, "thresholds", thresholds),
            (self.selectors, "selectors", rows),
            (self.ranges, "ranges", ranges),
        ):
            _fill(buffer, what, values)
        self._never_hits = [model.never_hits for model in models]
        self._selectors = len(selectors)
        self.slot_table.zero_()
        self.tally.zero_()
        self.nonfinite.fill_(NEVER)

    def assign(self, slots: Sequence[int], faults: Sequence[SlotFault | None]) -> None:
        """Give request slots their faults, or none (golden requests), and start their counts anew.

        Everything is queued on the current stream; nothing waits. Read `tally` and `nonfinite` of the request that had
        a slot before (`take`) first.
        """
        rows = np.zeros((len(slots), SLOT_WIDTH.value), np.uint32)
        for row, fault in zip(rows, faults, strict=True):
            if fault is not None:
                row[:] = self._slot_record(fault)
        self.assign_records(slots, rows)

    def records(
        self,
        model: NDArray[np.integer],
        prompt_len: NDArray[np.integer],
        *,
        writes: NDArray[np.bool_] | bool = False,
        reads: NDArray[np.bool_] | bool = False,
        request: NDArray[np.integer] | int = 0,
        write_key: NDArray[np.uint32] | int = 0,
        read_master: NDArray[np.uint32] | int = 0,
    ) -> NDArray[np.uint32]:
        """Records of many requests for `assign_records`, `[n, SLOT_WIDTH]`: what `SlotFault` says, as columns `[n]`
        (keys `[n, 2]`). Request i has model and selector `model[i]`; all are watched for NaN."""
        found = np.zeros((len(model), SLOT_WIDTH.value), np.uint32)
        # a model without thresholds must not be drawn: no draw may reach a threshold that is not there
        hits = ~np.array(self._never_hits, dtype=bool)[model]
        found[:, SLOT_SITE.value] = SITE_WATCH.value + hits * (
            SITE_WRITE.value * np.asarray(writes) + SITE_READ.value * np.asarray(reads)
        )
        found[:, SLOT_MODEL.value] = found[:, SLOT_SELECTOR.value] = model
        found[:, SLOT_REQUEST.value] = request
        found[:, SLOT_PROMPT_LEN.value] = prompt_len
        found[:, SLOT_WRITE_KEY.value : SLOT_WRITE_KEY.value + 2] = write_key
        found[:, SLOT_READ_MASTER.value : SLOT_READ_MASTER.value + 2] = read_master
        return found

    def assign_records(self, slots: Sequence[int], rows: NDArray[np.uint32]) -> None:
        """`assign` with rows of `records`; a row of zeros is a golden request."""
        if not slots:
            return
        data = torch.from_numpy(np.concatenate([rows.view(np.int32), np.array(slots, np.int32)[:, None]], axis=1))
        if torch.device(self.device).type == "cuda":
            # a fresh pinned buffer each time: the copy may still run when the next step is prepared
            data = data.pin_memory().to(self.device, non_blocking=True)
        index = data[:, -1].long()
        self.slot_table.index_copy_(0, index, data[:, :-1])
        self.tally.index_fill_(0, index, 0)
        self.nonfinite.index_fill_(0, index, NEVER)

    def take(self, slots: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of `tally` and `nonfinite` of slots as they are at this point of the stream; nothing waits."""
        index = torch.tensor(slots, dtype=torch.int64)
        if torch.device(self.device).type == "cuda":
            index = index.pin_memory().to(self.device, non_blocking=True)
        return self.tally.index_select(0, index), self.nonfinite.index_select(0, index)

    def _slot_record(self, fault: SlotFault) -> list[int]:
        if not 0 <= fault.model < len(self._never_hits):
            raise ValueError(f"model {fault.model} of {len(self._never_hits)}")
        if not 0 <= fault.selector < self._selectors:
            raise ValueError(f"selector {fault.selector} of {self._selectors}")
        site = SITE_WATCH.value if fault.watch else 0
        if not self._never_hits[fault.model]:
            # a model without thresholds must not be drawn: no draw may reach a threshold that is not there
            site |= SITE_WRITE.value if fault.write_key is not None else 0
            site |= SITE_READ.value if fault.read_master is not None else 0
        record = [0] * SLOT_WIDTH.value
        record[SLOT_SITE.value] = site
        record[SLOT_MODEL.value] = fault.model
        record[SLOT_SELECTOR.value] = fault.selector
        record[SLOT_REQUEST.value] = fault.request
        record[SLOT_PROMPT_LEN.value] = fault.prompt_len
        record[SLOT_WRITE_KEY.value : SLOT_WRITE_KEY.value + 2] = fault.write_key or (0, 0)
        record[SLOT_READ_MASTER.value : SLOT_READ_MASTER.value + 2] = fault.read_master or (0, 0)
        return record


def _lowest_bits(mask: int) -> list[int]:
    """Item i holds the i lowest bits of the mask; as many items as it has bits, and one more."""
    lowest = [0]
    for bit in range(32):
        if mask >> bit & 1:
            lowest.append(lowest[-1] | 1 << bit)
    return lowest


def _inclusive(ranges: Ranges | None) -> list[tuple[int, int]]:
    """Ranges by first and last member, empty ones left out."""
    every = [(0, END)] if ranges is None else ranges
    return [(start, min(stop, END) - 1) for start, stop in every if start < min(stop, END)]


def _bits(ranges: Ranges | None, count: int) -> list[int]:
    """The members below `count` as words, bit i of word w for member 32 w + i."""
    words = [0] * -(-count // 32)
    for start, stop in [(0, count)] if ranges is None else ranges:
        for i in range(start, min(stop, count)):
            words[i // 32] |= 1 << i % 32
    return words


def _fill(buffer: torch.Tensor, what: str, values: Sequence[object]) -> None:
    """Copy values into the beginning of a buffer, keeping their bits."""
    if len(values) > len(buffer):
        raise ValueError(f"{len(values)} {what}, the table was made for {len(buffer)}")
    if not values:
        return
    unsigned, signed = (np.uint64, np.int64) if buffer.dtype == torch.int64 else (np.uint32, np.int32)
    buffer[: len(values)] = torch.from_numpy(np.array(values, unsigned).view(signed)).to(buffer.device)
