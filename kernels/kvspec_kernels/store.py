# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""Cache write and fault injection in one kernel, for caches that hold K and V as they come (bf16, fp16, float32).

    cache[slot] = K, V of each batch row, then the faults of its listed cell on the bits just stored

    key, value      [rows, heads, D], rows of any stride, inner dimensions contiguous
    slot_mapping    int64 [rows], -1 for padding

It replaces the backend's own write (vLLM's `reshape_and_cache_flash`): the same bytes at the same places, and as many
launches as without faults. A row without a cell costs one load and one compare more than a plain copy.
"""

import triton
import triton.language as tl

from kvspec_kernels.inject import add_to_tally, inject_cell
from kvspec_kernels.sampler import load_u32
from kvspec_kernels.table import SLOT_WIDTH, SLOT_WRITE_KEY, TALLY_UNCHANGED, TALLY_WRITE


@triton.jit(
    do_not_specialize=["capacity", "layers", "local", "first_layer", "first_head", "layer_words", "selector_width"]
)
def store_kernel(
    key_ptr, value_ptr, key_stride, value_stride, key_cache_ptr, value_cache_ptr, slot_mapping_ptr,
    cells_ptr, counts_ptr, capacity, layers, local, first_layer, words_ptr,
    block_stride, kv_stride, token_stride, head_stride, elem_stride, first_head,
    slots_ptr, models_ptr, thresholds_ptr, selectors_ptr, layer_words, selector_width, tally_ptr,
    BLOCK_TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): one program stores a row and injects into it. TILE >= HEADS * HEAD_SIZE, a power of two."""
    row = tl.program_id(0)
    at = tl.load(slot_mapping_ptr + row).to(tl.int64)
    count = tl.minimum(tl.load(counts_ptr + local), capacity)
    elem = tl.arange(0, TILE)
    inside_row = elem < HEADS * HEAD_SIZE
    key = tl.load(key_ptr + row.to(tl.int64) * key_stride + elem, mask=inside_row)
    value = tl.load(value_ptr + row.to(tl.int64) * value_stride + elem, mask=inside_row)
    if at < 0:
        return
    # a constant: 64-bit division would stand between the slot mapping and the stores
    block = at // BLOCK_TOKENS
    inside = at - block * BLOCK_TOKENS
    to = (
        block * block_stride
        + inside * token_stride
        + (elem // HEAD_SIZE).to(tl.int64) * head_stride
        + (elem % HEAD_SIZE).to(tl.int64) * elem_stride
    )
    tl.store(key_cache_ptr + to, key, mask=inside_row)
    tl.store(value_cache_ptr + to, value, mask=inside_row)
    if count > 0:
        list_ptr = cells_ptr + local.to(tl.int64) * capacity
        plane = capacity.to(tl.int64) * layers
        lane = tl.arange(0, LANES)
        found = tl.full([LANES], -1, tl.int32)
        for begin in range(0, count, LANES):
            i = begin + lane
            listed = tl.load(list_ptr + plane + i, mask=i < count, other=-1)
            found = tl.where(listed == row, i, found)
        entry = tl.max(found, 0)
        if entry >= 0:
            # other threads of this program stored the words that the atomics change
            tl.debug_barrier()
            slot = tl.load(list_ptr + entry)
            slot_ptr = slots_ptr + slot * SLOT_WIDTH
            landed, unchanged = inject_cell(
                words_ptr, words_ptr, 0, block, inside, at & 0, block_stride, kv_stride, token_stride, head_stride,
                elem_stride, first_head, HEADS, slot, load_u32(list_ptr + 2 * plane + entry),
                (first_layer + local).to(tl.uint32), load_u32(slot_ptr + SLOT_WRITE_KEY),
                load_u32(slot_ptr + SLOT_WRITE_KEY + 1), slots_ptr, models_ptr, thresholds_ptr, selectors_ptr,
                layer_words, selector_width, BITS, LANES, False,
            )  # fmt: skip
            add_to_tally(tally_ptr, slot, TALLY_WRITE, landed)
            add_to_tally(tally_ptr, slot, TALLY_UNCHANGED, unchanged)
