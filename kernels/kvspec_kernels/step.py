# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""One launch per step: which cells of the step may be hit, for all layers.

    write cells   (layer, token written in this forward)            of requests with SITE_WRITE
    read cells    (layer, token in the cache after this forward)    of requests with SITE_READ
    listed        level TOKEN:  draw 0 of the cell >= T[0], and the selector shows layer, token and a plane
                  of a hit page
                  otherwise:    the selector shows it

    query_start   int32 [requests + 1]   first row of each request in the flattened batch
    batch_slot    int32 [requests]       request slot of each request of the batch, -1 for none
    seq_lens      int32 [requests]       tokens of each request in the cache after this forward
    cells         int32 [3, layers, capacity]   request slot; batch row (write) or batch index (read); token
    counts        int32 [layers]         cells listed; may exceed capacity (what did not fit is counted in the tally)
    event_keys    int32 [requests, 3]    key of the read event of this forward (two words), and its first token that no
                                         earlier forward has shown: chunks of a prefill are one event

The order inside a list varies from run to run; the flips do not depend on it. Tokens times layers of a request < 2^31.

Why a list of cells: a kernel that runs between the cache write and attention of each layer costs a launch per layer,
and half a percent of a decode step is less than 32 launches. So the drawing is taken out of the layers: what is left
per layer is one load of `counts`, inside the cache write itself (store.py) or in a kernel that ends there (inject.py).
Considered instead: drawing inside each layer's kernel (the same launches, and a chain of loads from row to slot to
thresholds in each of them); listing events rather than cells (less work per layer, but no batch size bounds the list:
a prefill at a rate of 1e-3 has millions per layer); programmatic dependent launch (hides part of a launch, removes
none).

A program belongs to one request, so the parameters of its fault are scalars; its lanes are (token, layer) with layers
innermost, so a decode step of a single token fills them too.
"""

import triton
import triton.language as tl

from kvspec_kernels.philox import DOMAIN_TOKEN, draw, read_key
from kvspec_kernels.sampler import load_u32, load_u64, shown_layers, shown_planes, shown_tokens
from kvspec_kernels.table import (
    LEVEL_TOKEN,
    MODEL_FIRST_PLANE,
    MODEL_LEVEL,
    MODEL_TABLE,
    MODEL_WIDTH,
    SELECTOR_EVENTS,
    SELECTOR_EVENTS_LEN,
    SITE_READ,
    SITE_WRITE,
    SLOT_MODEL,
    SLOT_PROMPT_LEN,
    SLOT_READ_MASTER,
    SLOT_REQUEST,
    SLOT_SELECTOR,
    SLOT_SITE,
    SLOT_WIDTH,
    SLOT_WRITE_KEY,
    TALLY_DROPPED,
    TALLY_WIDTH,
)


@triton.jit(do_not_specialize=["capacity", "first_layer", "selector_width"])
def list_cells_kernel(
    query_start_ptr, batch_slot_ptr, seq_lens_ptr, slots_ptr, models_ptr, thresholds_ptr, selectors_ptr, ranges_ptr,
    cells_ptr, counts_ptr, event_keys_ptr, tally_ptr, capacity, first_layer, selector_width,
    READ: tl.constexpr, LAYERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (requests, any): the programs of a request share its cells. `first_layer` is the global index of layer 0."""
    index = tl.program_id(0)
    slot = tl.load(batch_slot_ptr + index)
    if slot < 0:
        return
    slot_ptr = slots_ptr + slot * SLOT_WIDTH
    # a list names the batch row of a written token, the batch index of a read one
    site: tl.constexpr = SITE_READ if READ else SITE_WRITE
    stride: tl.constexpr = 0 if READ else 1
    if (tl.load(slot_ptr + SLOT_SITE) & site) == 0:
        return
    model_ptr = models_ptr + tl.load(slot_ptr + SLOT_MODEL) * MODEL_WIDTH
    selector_ptr = selectors_ptr + tl.load(slot_ptr + SLOT_SELECTOR) * selector_width
    request = load_u32(slot_ptr + SLOT_REQUEST)
    prompt_len = load_u32(slot_ptr + SLOT_PROMPT_LEN)
    seq_len = load_u32(seq_lens_ptr + index)
    place = tl.load(query_start_ptr + index)
    tokens = tl.load(query_start_ptr + index + 1) - place
    start = seq_len - tokens.to(tl.uint32, bitcast=True)
    if READ:
        step = tl.maximum(seq_len, prompt_len)
        if (seq_len > prompt_len) & (tokens > 1):
            # queries of several events (the recompute of a preempted request) cannot be served by one forward
            return
        master0 = load_u32(slot_ptr + SLOT_READ_MASTER)
        master1 = load_u32(slot_ptr + SLOT_READ_MASTER + 1)
        key0, key1 = read_key(master0, master1, request, step)
        if tl.program_id(1) == 0:
            fresh = tl.where(seq_len > prompt_len, 0, start)
            tl.store(event_keys_ptr + 3 * index, key0.to(tl.int32, bitcast=True))
            tl.store(event_keys_ptr + 3 * index + 1, key1.to(tl.int32, bitcast=True))
            tl.store(event_keys_ptr + 3 * index + 2, fresh.to(tl.int32, bitcast=True))
        event = step - prompt_len
        first_range = tl.load(selector_ptr + SELECTOR_EVENTS)
        shown = 0
        for i in range(first_range, first_range + tl.load(selector_ptr + SELECTOR_EVENTS_LEN)):
            in_range = (event >= load_u32(ranges_ptr + 2 * i)) & (event <= load_u32(ranges_ptr + 2 * i + 1))
            shown += in_range.to(tl.int32)
        if shown == 0:
            return
        place = index
        tokens = seq_len.to(tl.int32, bitcast=True)
        start = seq_len & 0
    else:
        key0 = load_u32(slot_ptr + SLOT_WRITE_KEY)
        key1 = load_u32(slot_ptr + SLOT_WRITE_KEY + 1)
    every = tl.load(model_ptr + MODEL_LEVEL) != LEVEL_TOKEN
    first_plane = load_u32(model_ptr + MODEL_FIRST_PLANE)
    # the threshold of one hit, behind that of the page
    threshold = load_u64(thresholds_ptr + tl.load(model_ptr + MODEL_TABLE) + 1)
    total = tokens * LAYERS
    dropped = tl.zeros([BLOCK], tl.int32)
    for begin in range(tl.program_id(1) * BLOCK, total, tl.num_programs(1) * BLOCK):
        cell = begin + tl.arange(0, BLOCK)
        nth = cell // LAYERS
        local = cell - nth * LAYERS
        token = start + nth.to(tl.uint32)
        layer = (first_layer + local).to(tl.uint32)
        word1 = (layer << 16) | (first_plane << 15)
        number = draw(token, word1, request, key0, key1, DOMAIN_TOKEN, cell & 0)
        hit = (cell < total) & (every | (number >= threshold))
        if tl.max(hit.to(tl.int32), 0) > 0:
            hit = shown_layers(selector_ptr, layer, hit) & shown_tokens(selector_ptr, ranges_ptr, prompt_len, token)
            planes = shown_planes(model_ptr, thresholds_ptr, selector_ptr, token, layer, request, key0, key1)
            hit = hit & (planes != 0)
            at = tl.atomic_add(counts_ptr + local, 1, mask=hit, sem="relaxed")
            fits = hit & (at < capacity)
            dropped += (hit & (at >= capacity)).to(tl.int32)
            entry_ptr = cells_ptr + local.to(tl.int64) * capacity + at
            plane = capacity.to(tl.int64) * LAYERS
            tl.store(entry_ptr, (cell & 0) + slot, mask=fits)
            tl.store(entry_ptr + plane, place + nth * stride, mask=fits)
            tl.store(entry_ptr + 2 * plane, token.to(tl.int32, bitcast=True), mask=fits)
    lost = tl.sum(dropped, 0)
    if lost > 0:
        tl.atomic_add(tally_ptr + slot * TALLY_WIDTH + TALLY_DROPPED, lost.to(tl.int64), sem="relaxed")
