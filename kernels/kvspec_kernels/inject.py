# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""Faults of the listed cells of one layer, in its cache: at writes, and around reads.

    write   word ^= b (or & ~b, | b) at slot_mapping[batch row], after the cache write
    read    the same at block_table[batch index, token / block_tokens], before attention; taken back after it

    slot_mapping  int64 [batch rows]            physical token of each row, -1 for padding
    block_table   int32 [requests, any]         blocks of each request

A layer is not read again until the next forward. So its flips are undone by the launch that applies those of the next
layer (grid axis 1 = 1, "behind"): one launch per layer and one after the last, instead of two per layer.

A flip is taken back by drawing and flipping once more. A stuck-at destroys what it overwrites, so the bits that it
changed are kept (`kept`, int32 [2, words of a layer], layers in turns: one is undone while the next is applied).

A program takes every `num_programs`-th cell of the list; without cells it loads one count and ends.
"""

import triton
import triton.language as tl

from kvspec_kernels.sampler import inject_token, load_u32
from kvspec_kernels.table import (
    MODEL_WIDTH,
    SLOT_MODEL,
    SLOT_REQUEST,
    SLOT_SELECTOR,
    SLOT_WIDTH,
    SLOT_WRITE_KEY,
    TALLY_EXPOSED,
    TALLY_READ,
    TALLY_RESTORED,
    TALLY_UNCHANGED,
    TALLY_WIDTH,
    TALLY_WRITE,
)


@triton.jit
def inject_cell(
    words_ptr, kept_ptr, undo, block, inside, shift, block_stride, kv_stride, token_stride, head_stride, elem_stride,
    first_head, local_heads, slot, token, layer, key0, key1, slots_ptr, models_ptr, thresholds_ptr, selectors_ptr,
    layer_words, selector_width, BITS: tl.constexpr, LANES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Inject one listed cell at token `inside` of `block` (int64 scalars), or take it back; returns how many bits
    landed and how many of them had that value before (int32).

    shift  int64: elements from the start of the words to the start of the layer
    """
    slot_ptr = slots_ptr + slot * SLOT_WIDTH
    return inject_token(
        words_ptr, kept_ptr, undo, shift + block * block_stride + inside * token_stride, kv_stride, head_stride,
        elem_stride, first_head, local_heads, models_ptr + tl.load(slot_ptr + SLOT_MODEL) * MODEL_WIDTH, thresholds_ptr,
        selectors_ptr + tl.load(slot_ptr + SLOT_SELECTOR) * selector_width, token, layer,
        load_u32(slot_ptr + SLOT_REQUEST), key0, key1, layer_words, BITS, LANES, KEEP,
    )  # fmt: skip


@triton.jit
def add_to_tally(tally_ptr, slot, column, count):
    """Add a count of bits (int32 scalar) to a column of a slot."""
    if count > 0:
        tl.atomic_add(tally_ptr + slot * TALLY_WIDTH + column, count.to(tl.int64), sem="relaxed")


# Nothing here gains from a stride known to be 1 or a multiple of 16, so one compiled kernel serves every layout.
_ANY = [
    "capacity", "layers", "local", "first_layer", "span", "behind", "table_stride", "block_tokens", "block_stride",
    "kv_stride", "token_stride", "head_stride", "elem_stride", "first_head", "local_heads", "layer_words",
    "selector_width",
]  # fmt: skip


@triton.jit(do_not_specialize=[name for name in _ANY if name not in ("span", "behind", "table_stride")])
def inject_writes_kernel(
    slot_mapping_ptr, cells_ptr, counts_ptr, capacity, layers, local, first_layer, words_ptr, block_tokens,
    block_stride, kv_stride, token_stride, head_stride, elem_stride, first_head, local_heads,
    slots_ptr, models_ptr, thresholds_ptr, selectors_ptr, layer_words, selector_width, tally_ptr,
    BITS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Grid (any,). `local` is the layer among those of this rank, `first_layer` the global index of local layer 0."""
    count = tl.minimum(tl.load(counts_ptr + local), capacity)
    layer = (first_layer + local).to(tl.uint32)
    plane = capacity.to(tl.int64) * layers
    for i in range(tl.program_id(0), count, tl.num_programs(0)):
        entry_ptr = cells_ptr + local.to(tl.int64) * capacity + i
        slot = tl.load(entry_ptr)
        at = tl.load(slot_mapping_ptr + tl.load(entry_ptr + plane)).to(tl.int64)
        if at >= 0:
            block = at // block_tokens
            slot_ptr = slots_ptr + slot * SLOT_WIDTH
            landed, unchanged = inject_cell(
                words_ptr, words_ptr, 0, block, at - block * block_tokens, at & 0, block_stride, kv_stride,
                token_stride, head_stride, elem_stride, first_head, local_heads, slot, load_u32(entry_ptr + 2 * plane),
                layer, load_u32(slot_ptr + SLOT_WRITE_KEY), load_u32(slot_ptr + SLOT_WRITE_KEY + 1), slots_ptr,
                models_ptr, thresholds_ptr, selectors_ptr, layer_words, selector_width, BITS, LANES, False,
            )  # fmt: skip
            add_to_tally(tally_ptr, slot, TALLY_WRITE, landed)
            add_to_tally(tally_ptr, slot, TALLY_UNCHANGED, unchanged)


@triton.jit(do_not_specialize=_ANY)
def inject_reads_kernel(
    block_table_ptr, table_stride, cells_ptr, counts_ptr, capacity, layers, local, first_layer, event_keys_ptr,
    words_ptr, kept_ptr, span: tl.int64, behind: tl.int64, block_tokens, block_stride, kv_stride, token_stride,
    head_stride, elem_stride, first_head, local_heads, slots_ptr, models_ptr, thresholds_ptr, selectors_ptr,
    layer_words, selector_width, tally_ptr, BITS: tl.constexpr, LANES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Grid (any, 2): axis 1 = 0 applies layer `local` (none, if it is `layers`), 1 undoes layer `local - 1`, if
    there is one.

    behind  elements from the start of the words to the start of the layer before, possibly negative
    span    words of a layer, as far as they are kept
    """
    undo = tl.program_id(1)
    local = local - undo
    if local < 0:
        return
    if local == layers:
        return
    count = tl.minimum(tl.load(counts_ptr + local), capacity)
    layer = (first_layer + local).to(tl.uint32)
    plane = capacity.to(tl.int64) * layers
    shift = undo.to(tl.int64) * behind
    kept_ptr += (local & 1) * span - shift // (32 // BITS)
    for i in range(tl.program_id(0), count, tl.num_programs(0)):
        entry_ptr = cells_ptr + local.to(tl.int64) * capacity + i
        index = tl.load(entry_ptr + plane)
        token = load_u32(entry_ptr + 2 * plane)
        nth = token.to(tl.int64) // block_tokens
        block = tl.load(block_table_ptr + index.to(tl.int64) * table_stride + nth).to(tl.int64)
        slot = tl.load(entry_ptr)
        event_ptr = event_keys_ptr + 3 * index
        landed, unchanged = inject_cell(
            words_ptr, kept_ptr, undo, block, token.to(tl.int64) - nth * block_tokens, shift, block_stride, kv_stride,
            token_stride, head_stride, elem_stride, first_head, local_heads, slot, token, layer,
            load_u32(event_ptr), load_u32(event_ptr + 1), slots_ptr, models_ptr,
            thresholds_ptr, selectors_ptr, layer_words, selector_width, BITS, LANES, KEEP,
        )  # fmt: skip
        if undo == 1:
            add_to_tally(tally_ptr, slot, TALLY_RESTORED, landed)
        else:
            add_to_tally(tally_ptr, slot, TALLY_EXPOSED, landed - unchanged)
            if token >= load_u32(event_ptr + 2):
                add_to_tally(tally_ptr, slot, TALLY_READ, landed)
                add_to_tally(tally_ptr, slot, TALLY_UNCHANGED, unchanged)
