# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""NaN and infinity among the logits, per request: one pass over them.

    x is not finite  <=>  all exponent bits of x are set
    nonfinite[slot] = min over rows with such an x of (seq_len - prompt_len), the index of the generated token

    logits      [rows, vocab] of bf16, fp16 or float32, as int16 or int32; row i belongs to batch index i
    batch_slot  int32 [rows], request slot or -1;  seq_lens  int32 [rows], tokens in the cache after this forward

    hidden      [rows, width] of bf16 or float32, as int16 or int32: what the logits are products of, optional

The vocabulary is a hundred times wider than the hidden states. Where |h| < 1e30 in the whole row, no dot product with
finite weights of a usable size overflows, so the logits are finite and are not read. NaN and infinity fail that test.

    counts      int32 [any], cells listed for this forward: the forward is done, so they are set to 0

Rows of requests that are not watched, and of prompts that are not complete yet, cost two loads.
"""

import triton
import triton.language as tl

from kvspec_kernels.table import SITE_WATCH, SLOT_PROMPT_LEN, SLOT_SITE, SLOT_WIDTH


@triton.jit
def find_nonfinite_kernel(
    logits_ptr, row_stride, vocab, hidden_ptr, hidden_stride, width, batch_slot_ptr, seq_lens_ptr, slots_ptr,
    nonfinite_ptr, counts_ptr, counts_len, EXPONENT: tl.constexpr, SAFE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, any): the programs of a row share its logits. SAFE: |h| below it is safe, as bits without the sign;
    0 if there are no hidden states."""
    row = tl.program_id(0)
    if row + tl.program_id(1) == 0:
        for begin in range(0, counts_len, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            tl.store(counts_ptr + i, tl.zeros([BLOCK], tl.int32), mask=i < counts_len)
    slot = tl.load(batch_slot_ptr + row)
    if slot < 0:
        return
    slot_ptr = slots_ptr + slot * SLOT_WIDTH
    if (tl.load(slot_ptr + SLOT_SITE) & SITE_WATCH) == 0:
        return
    token = tl.load(seq_lens_ptr + row) - tl.load(slot_ptr + SLOT_PROMPT_LEN)
    if token < 0:
        return
    if SAFE > 0:
        worst = tl.zeros([BLOCK], tl.int32)
        for begin in range(0, width, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            at = hidden_ptr + row.to(tl.int64) * hidden_stride + i
            bits = tl.load(at, mask=i < width, other=0).to(tl.int32)
            # of numbers without sign, bits are ordered as values are; NaN and infinity are the largest
            worst = tl.maximum(worst, bits & (0x7FFF if SAFE < 0x8000 else 0x7FFFFFFF))
        if tl.max(worst, 0) < SAFE:
            return
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    found = tl.zeros([BLOCK], tl.int32)
    for begin in range(tl.program_id(1) * BLOCK, vocab, tl.num_programs(1) * BLOCK):
        i = begin + tl.arange(0, BLOCK)
        bits = tl.load(row_ptr + i, mask=i < vocab, other=0).to(tl.int32)
        found = found | ((bits & EXPONENT) == EXPONENT).to(tl.int32)
    if tl.max(found, 0) > 0:
        tl.atomic_min(nonfinite_ptr + slot, token, sem="relaxed")
