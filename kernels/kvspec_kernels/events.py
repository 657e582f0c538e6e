# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""Faults of an explicit map: events that the host lists for a step, applied to the cache of a layer.

    word ^= mask (flip), &= ~mask (set0), |= mask (set1) at (place, kv, head, token, elem)

    events   int32 [EVENT_WIDTH, capacity]   one column per event, sorted by layer
    starts   int32 [layers + 1]              events of layer l are starts[l] .. starts[l + 1] - 1
    place    batch row, addressed by slot_mapping (writes), or batch index, addressed by block_table and token (reads)

No two events may name the same bit: the host merges them. Heads are global; those of other ranks are skipped.
Reads are undone by the launch of the next layer, and what stuck-ats change is kept, as in inject.py. An event that an
earlier forward has shown (chunks of a prefill are one read) is exposed again, and does not land again.
"""

import triton
import triton.language as tl

from kvspec_kernels.cache import change_bits
from kvspec_kernels.table import (
    OP_FLIP,
    OP_SET1,
    TALLY_EXPOSED,
    TALLY_READ,
    TALLY_RESTORED,
    TALLY_UNCHANGED,
    TALLY_WIDTH,
    TALLY_WRITE,
)

EVENT_SLOT = tl.constexpr(0)
EVENT_PLACE = tl.constexpr(1)
EVENT_TOKEN = tl.constexpr(2)
EVENT_KV = tl.constexpr(3)
EVENT_HEAD = tl.constexpr(4)
EVENT_ELEM = tl.constexpr(5)
EVENT_MASK = tl.constexpr(6)
EVENT_OP = tl.constexpr(7)
EVENT_NEW = tl.constexpr(8)
EVENT_WIDTH = tl.constexpr(9)


@triton.jit
def _add(tally_ptr, column, counts, on):
    """Add counts per event to a column of its slot; `tally_ptr` points at the rows of the slots."""
    tl.atomic_add(tally_ptr + column, counts.to(tl.int64), mask=on & (counts > 0), sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "capacity", "layers", "local", "table_stride", "span", "behind", "block_tokens", "block_stride", "kv_stride",
        "token_stride", "head_stride", "elem_stride", "first_head", "local_heads",
    ]
)  # fmt: skip
def inject_events_kernel(
    events_ptr, starts_ptr, capacity, layers, local, place_ptr, table_stride, words_ptr, kept_ptr, span: tl.int64,
    behind: tl.int64, block_tokens, block_stride, kv_stride, token_stride, head_stride, elem_stride, first_head,
    local_heads, tally_ptr, READ: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Grid (any, 1) at writes, (any, 2) at reads; axis 1 = 1 undoes layer `local - 1`. `place_ptr` is the slot mapping
    at writes, the block table at reads."""
    undo = tl.program_id(1)
    local = local - undo
    if local < 0:
        return
    if local == layers:
        return
    start = tl.load(starts_ptr + local)
    stop = tl.load(starts_ptr + local + 1)
    shift = undo.to(tl.int64) * behind
    kept_ptr += (local & 1) * span - shift // (32 // BITS)
    for begin in range(start + tl.program_id(0) * BLOCK, stop, tl.num_programs(0) * BLOCK):
        i = begin + tl.arange(0, BLOCK)
        on = i < stop
        event_ptr = events_ptr + i
        width = capacity.to(tl.int64)
        place = tl.load(event_ptr + EVENT_PLACE * width, mask=on, other=0)
        head = tl.load(event_ptr + EVENT_HEAD * width, mask=on, other=0)
        on = on & (head >= first_head) & (head < first_head + local_heads)
        if READ:
            token = tl.load(event_ptr + EVENT_TOKEN * width, mask=on, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
            nth = token // block_tokens
            block = tl.load(place_ptr + place.to(tl.int64) * table_stride + nth, mask=on, other=0).to(tl.int64)
            inside = token - nth * block_tokens
        else:
            at = tl.load(place_ptr + place, mask=on, other=-1).to(tl.int64)
            on = on & (at >= 0)
            block = at // block_tokens
            inside = at - block * block_tokens
        kv = tl.load(event_ptr + EVENT_KV * width, mask=on, other=0).to(tl.int64)
        elem = tl.load(event_ptr + EVENT_ELEM * width, mask=on, other=0).to(tl.int64)
        bits = tl.load(event_ptr + EVENT_MASK * width, mask=on, other=0).to(tl.uint32, bitcast=True)
        op = tl.load(event_ptr + EVENT_OP * width, mask=on, other=0)
        offset = shift + block * block_stride + inside * token_stride + kv * kv_stride + elem * elem_stride
        offset += (head - first_head).to(tl.int64) * head_stride
        landed, unchanged = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
        for which in range(OP_FLIP, OP_SET1 + 1):
            now = on & (op == which)
            if tl.max(now.to(tl.int32), 0) > 0:
                stuck, same = change_bits(words_ptr, kept_ptr, offset, bits, which, undo, now, BITS, KEEP)
                landed += stuck
                unchanged += same
        slot = tl.load(event_ptr + EVENT_SLOT * width, mask=on, other=0)
        slot_ptr = tally_ptr + slot * TALLY_WIDTH
        if undo == 1:
            _add(slot_ptr, TALLY_RESTORED, landed, on)
        else:
            new = on & (tl.load(event_ptr + EVENT_NEW * width, mask=on, other=0) == 1)
            _add(slot_ptr, TALLY_READ if READ else TALLY_WRITE, landed, new)
            _add(slot_ptr, TALLY_UNCHANGED, unchanged, new)
            if READ:
                _add(slot_ptr, TALLY_EXPOSED, landed - unchanged, on)
