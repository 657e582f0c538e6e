# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""The sampler on the device: from a cell to flipped bits (sampling.md, sections 1 and 4 to 6), equal to Rust's.

    S = units of the cell, sub = alternatives of a unit, m = eligible bits of an element, E = D * m of a row
    levels TOKEN and HEAD:  k = #{i : draw(0) >= T[i]};  Floyd, for s = 0 .. k - 1:
        j = S - k + s;  x = bounded(draw(s + 1), (j + 1) * sub);  t = x / sub;  a = x mod sub
        t = j if t is chosen already;  anchor = t * sub + a
    level DENSE:            unit u is hit iff draw(u) >= T[0];  anchor = u * sub + bounded(pick(u), sub)
    burst:                  an anchor q covers [q, min(q + burst, E, next anchor of the row)); disjoint, so XOR
                            is the union

One program draws one cell. What holds for the whole cell is a scalar; the hits of the cell (at level DENSE the elements
of a row) are lanes. A fault's parameters are loaded, not compiled in, so one kernel serves any mixture of faults, and a
cell without hits has cost one Philox block (in step.py) before anything here runs.
"""

import triton
import triton.language as tl

from kvspec_kernels.cache import change_bits
from kvspec_kernels.philox import DOMAIN_DENSE, DOMAIN_PAGE, DOMAIN_PICK, DOMAIN_ROW, DOMAIN_TOKEN, bounded, draw
from kvspec_kernels.table import (
    LEVEL_DENSE,
    LEVEL_TOKEN,
    MODEL_BURST,
    MODEL_FIRST_PLANE,
    MODEL_HEADS,
    MODEL_LEVEL,
    MODEL_LOWEST,
    MODEL_OP,
    MODEL_PAGE_TOKENS,
    MODEL_PER_ELEMENT,
    MODEL_PER_ROW,
    MODEL_PLANES,
    MODEL_SUB,
    MODEL_TABLE,
    MODEL_TABLE_LEN,
    MODEL_UNITS,
    PHASE_ALL,
    PHASE_PROMPT,
    SELECTOR_BITS,
    SELECTOR_PHASE,
    SELECTOR_PLANES,
    SELECTOR_RANGES,
    SELECTOR_RANGES_LEN,
)


@triton.jit
def load_u32(ptr):
    """A table entry as uint32."""
    return tl.load(ptr).to(tl.uint32, bitcast=True)


@triton.jit
def load_u64(ptr):
    """A threshold as uint64."""
    return tl.load(ptr).to(tl.uint64, bitcast=True)


@triton.jit
def shown_planes(model_ptr, thresholds_ptr, selector_ptr, token, layer, request, key0, key1):
    """Planes of a token that may be hit, bit 0 for K and bit 1 for V, as int32: those of the model, of the selector,
    and of hit pages. `token` and `layer` (uint32) may be vectors."""
    present = ((1 << tl.load(model_ptr + MODEL_PLANES)) - 1) << tl.load(model_ptr + MODEL_FIRST_PLANE)
    planes = (token & 0).to(tl.int32) | (present & tl.load(selector_ptr + SELECTOR_PLANES))
    page_tokens = load_u32(model_ptr + MODEL_PAGE_TOKENS)
    if page_tokens > 0:
        # one draw per plane and page, all heads: counter (page, layer << 16 | kv << 15, request)
        threshold = load_u64(thresholds_ptr + tl.load(model_ptr + MODEL_TABLE))
        page = token // page_tokens
        first = (token & 0).to(tl.int32)
        key_hit = draw(page, layer << 16, request, key0, key1, DOMAIN_PAGE, first) >= threshold
        value_hit = draw(page, (layer << 16) | 0x8000, request, key0, key1, DOMAIN_PAGE, first) >= threshold
        planes = planes & (key_hit.to(tl.int32) | (value_hit.to(tl.int32) << 1))
    return planes


@triton.jit
def shown_tokens(selector_ptr, ranges_ptr, prompt_len, token):
    """Whether the selector shows tokens (a uint32 vector)."""
    phase = tl.load(selector_ptr + SELECTOR_PHASE)
    in_phase = (phase == PHASE_ALL) | ((phase == PHASE_PROMPT) == (token < prompt_len))
    start = tl.load(selector_ptr + SELECTOR_RANGES)
    in_range = token != token
    for i in range(start, start + tl.load(selector_ptr + SELECTOR_RANGES_LEN)):
        in_range = in_range | ((token >= load_u32(ranges_ptr + 2 * i)) & (token <= load_u32(ranges_ptr + 2 * i + 1)))
    return in_phase & in_range


@triton.jit
def shown_layers(selector_ptr, layer, on):
    """Whether the selector shows layers (a uint32 vector) where `on`."""
    word = tl.load(selector_ptr + SELECTOR_BITS + (layer >> 5), mask=on, other=0)
    return on & (((word >> (layer & 31).to(tl.int32)) & 1) == 1)


@triton.jit
def shown_rows(selector_ptr, planes, kv, head, first_head, heads, layer_words):
    """Whether a row is in a shown plane, of a shown head, and held by this rank. `kv` and `head` may be vectors."""
    word = tl.load(selector_ptr + SELECTOR_BITS + layer_words + (head >> 5))
    selected = ((word >> (head & 31)) & 1) == 1
    return selected & (((planes >> kv) & 1) == 1) & (head >= first_head) & (head < first_head + heads)


@triton.jit
def _anchors(model_ptr, hits, token, word1, request, key0, key1, domain, LANES: tl.constexpr):
    """Floyd's sample: int32 `[LANES]`, anchor of hit s in lane s, -1 beyond the last. `hits` <= units, < LANES."""
    units = tl.load(model_ptr + MODEL_UNITS)
    sub = tl.load(model_ptr + MODEL_SUB)
    lane = tl.arange(0, LANES)
    live = lane < hits
    # (last + 1) * sub <= units * sub < 2^31, in idle lanes too
    last = tl.where(live, units - hits + lane, 0)
    x = bounded(draw(token, word1, request, key0, key1, domain, lane + 1), (last + 1) * sub)
    unit = x // sub
    alternative = x - unit * sub
    chosen = tl.where(live, -1, -2)
    for s in range(hits):
        pick = tl.max(tl.where(lane == s, unit, -1), 0)
        taken = tl.max((chosen == pick).to(tl.int32), 0)
        pick = tl.where(taken == 1, units - hits + s, pick)
        chosen = tl.where(lane == s, pick, chosen)
    return tl.where(live, chosen * sub + alternative, -1)


@triton.jit
def _eligible(model_ptr, low, high):
    """Storage bits, as uint32, of the eligible bits numbered `low` .. `high` - 1 of an element (int32 vectors of
    any values)."""
    limit = tl.load(model_ptr + MODEL_PER_ELEMENT)
    low = tl.minimum(tl.maximum(low, 0), limit)
    high = tl.minimum(tl.maximum(high, low), limit)
    return load_u32(model_ptr + MODEL_LOWEST + high) ^ load_u32(model_ptr + MODEL_LOWEST + low)


@triton.jit
def _inject_counted(
    words_ptr, kept_ptr, undo, base, kv_stride, head_stride, elem_stride, first_head, local_heads, model_ptr,
    thresholds_ptr, selector_ptr, planes, token, layer, request, key0, key1, layer_words,
    BITS: tl.constexpr, LANES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """A cell at level TOKEN, or all rows of a token at level HEAD. Returns per lane the bits that landed,
    and those among them that had that value before."""
    at_token = tl.load(model_ptr + MODEL_LEVEL) == LEVEL_TOKEN
    domain = tl.where(at_token, DOMAIN_TOKEN, DOMAIN_ROW)
    heads = tl.load(model_ptr + MODEL_HEADS)
    first_plane = tl.load(model_ptr + MODEL_FIRST_PLANE)
    per_row = tl.load(model_ptr + MODEL_PER_ROW)
    per_element = tl.load(model_ptr + MODEL_PER_ELEMENT)
    burst = tl.load(model_ptr + MODEL_BURST)
    op = tl.load(model_ptr + MODEL_OP)
    lane = tl.arange(0, LANES)
    table_ptr = thresholds_ptr + tl.load(model_ptr + MODEL_TABLE) + 1
    in_table = lane < tl.load(model_ptr + MODEL_TABLE_LEN)
    table = tl.load(table_ptr + lane, mask=in_table, other=0).to(tl.uint64, bitcast=True)
    landed, unchanged = tl.zeros([LANES], tl.int32), tl.zeros([LANES], tl.int32)
    first_draw = (token & 0).to(tl.int32)
    # the loop runs once at level TOKEN, whose anchors lie in any row, and once per row at level HEAD
    for i in range(tl.where(at_token, 1, heads * tl.load(model_ptr + MODEL_PLANES))):
        cell = first_draw + i
        kv = first_plane + cell // heads
        head = cell % heads
        wanted = at_token | shown_rows(selector_ptr, planes, kv, head, first_head, local_heads, layer_words)
        hits = 0
        word1 = (layer << 16) | ((kv << 15) | head).to(tl.uint32)
        if wanted:
            count = draw(token, word1, request, key0, key1, domain, first_draw)
            hits = tl.sum((in_table & (count >= table)).to(tl.int32), 0)
        if hits > 0:
            anchor = _anchors(model_ptr, hits, token, word1, request, key0, key1, domain, LANES)
            live = anchor >= 0
            within = tl.where(live, anchor // per_row, 0)
            start = within * per_row
            end = tl.minimum(anchor - start + burst, per_row)
            if burst > 1:
                for s in range(hits):
                    other = tl.max(tl.where(lane == s, anchor, -1), 0)
                    end = tl.where(other > anchor, tl.minimum(end, other - start), end)
            row = cell + within
            kv_of = first_plane + row // heads
            head_of = row % heads
            live = live & shown_rows(selector_ptr, planes, kv_of, head_of, first_head, local_heads, layer_words)
            at = base + kv_of.to(tl.int64) * kv_stride + (head_of - first_head).to(tl.int64) * head_stride
            first = (anchor - start) // per_element
            for step in range((burst + per_element - 2) // per_element + 1):
                elem = first + step
                bits = _eligible(model_ptr, anchor - start - elem * per_element, end - elem * per_element)
                on = live & (bits != 0)
                now, same = change_bits(
                    words_ptr, kept_ptr, at + elem.to(tl.int64) * elem_stride, bits, op, undo, on, BITS, KEEP
                )
                landed += now
                unchanged += same
    return landed, unchanged


@triton.jit
def _inject_dense(
    words_ptr, kept_ptr, undo, base, kv_stride, head_stride, elem_stride, first_head, local_heads, model_ptr,
    thresholds_ptr, selector_ptr, planes, token, layer, request, key0, key1, layer_words,
    BITS: tl.constexpr, LANES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """All rows of a token at level DENSE, lanes are elements. Returns per lane the bits that landed,
    and those among them that had that value before.

    Each element gathers the units whose bursts may reach it: (m - 1) / sub + ceil((burst - 1) / sub) + 1 of them, so
    long bursts at dense rates are slow.
    """
    heads = tl.load(model_ptr + MODEL_HEADS)
    first_plane = tl.load(model_ptr + MODEL_FIRST_PLANE)
    units = tl.load(model_ptr + MODEL_UNITS)
    sub = tl.load(model_ptr + MODEL_SUB)
    per_element = tl.load(model_ptr + MODEL_PER_ELEMENT)
    burst = tl.load(model_ptr + MODEL_BURST)
    op = tl.load(model_ptr + MODEL_OP)
    head_size = tl.load(model_ptr + MODEL_PER_ROW) // per_element
    threshold = load_u64(thresholds_ptr + tl.load(model_ptr + MODEL_TABLE) + 1)
    lane = tl.arange(0, LANES)
    landed, unchanged = tl.zeros([LANES], tl.int32), tl.zeros([LANES], tl.int32)
    for i in range(heads * tl.load(model_ptr + MODEL_PLANES)):
        row = (token & 0).to(tl.int32) + i
        kv = first_plane + row // heads
        head = row % heads
        if shown_rows(selector_ptr, planes, kv, head, first_head, local_heads, layer_words):
            word1 = (layer << 16) | ((kv << 15) | head).to(tl.uint32)
            at = base + kv.to(tl.int64) * kv_stride + (head - first_head).to(tl.int64) * head_stride
            for first in range(0, head_size, LANES):
                elem = first + lane
                bits = (elem & 0).to(tl.uint32)
                last = ((elem + 1) * per_element - 1) // sub
                for back in range((per_element - 1) // sub + (burst + sub - 2) // sub + 1):
                    unit = tl.maximum(last - back, 0)
                    hit = (last >= back) & (unit < units)
                    hit = hit & (draw(token, word1, request, key0, key1, DOMAIN_DENSE, unit) >= threshold)
                    alternative = unit & 0
                    if sub > 1:
                        pick = draw(token, word1, request, key0, key1, DOMAIN_PICK, unit)
                        alternative = bounded(pick, sub + alternative)
                    anchor = unit * sub + alternative - elem * per_element
                    bits = bits | _eligible(model_ptr, anchor, tl.where(hit, anchor + burst, anchor))
                on = (elem < head_size) & (bits != 0)
                now, same = change_bits(
                    words_ptr, kept_ptr, at + elem.to(tl.int64) * elem_stride, bits, op, undo, on, BITS, KEEP
                )
                landed += now
                unchanged += same
    return landed, unchanged


@triton.jit
def inject_token(
    words_ptr, kept_ptr, undo, base, kv_stride, head_stride, elem_stride, first_head, local_heads, model_ptr,
    thresholds_ptr, selector_ptr, token, layer, request, key0, key1, layer_words,
    BITS: tl.constexpr, LANES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Inject the faults of one (request, layer, token) into its rows, or take them back (`undo`, see `change_bits`);
    returns how many bits landed and how many of them had that value before (int32).

    base  int64: offset of (this token, K, the rank's first head, element 0) in elements
    token, layer, request, key0, key1  uint32 scalars

    Layer and token selectors have been applied by whoever listed the cell.
    """
    planes = shown_planes(model_ptr, thresholds_ptr, selector_ptr, token, layer, request, key0, key1)
    landed, unchanged = tl.zeros([LANES], tl.int32), tl.zeros([LANES], tl.int32)
    if planes != 0:
        if tl.load(model_ptr + MODEL_LEVEL) == LEVEL_DENSE:
            landed, unchanged = _inject_dense(
                words_ptr, kept_ptr, undo, base, kv_stride, head_stride, elem_stride, first_head, local_heads,
                model_ptr, thresholds_ptr, selector_ptr, planes, token, layer, request, key0, key1, layer_words,
                BITS, LANES, KEEP,
            )  # fmt: skip
        else:
            landed, unchanged = _inject_counted(
                words_ptr, kept_ptr, undo, base, kv_stride, head_stride, elem_stride, first_head, local_heads,
                model_ptr, thresholds_ptr, selector_ptr, planes, token, layer, request, key0, key1, layer_words,
                BITS, LANES, KEEP,
            )  # fmt: skip
    return tl.sum(landed, 0), tl.sum(unchanged, 0)
