# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
"""Where the bits of a cache are, and how they are changed.

An element of B bits (4, 8, 16 or 32) is addressed in units of its own width:

    offset = block * block_stride + kv * kv_stride + token * token_stride + head * head_stride + elem * elem_stride
    word   = offset >> log2(32 / B),   shift = (offset mod (32 / B)) * B

`token` counts inside the block, `head` on this rank. The lower address lies in the lower bits of a word, so two 16-bit,
four 8-bit or eight 4-bit elements share one. Words are changed by atomics: flips of neighbours never lose each other.
Offsets are 64 bits wide; a cache may be larger than 2^31 elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvspec_kernels.table import OP_FLIP, OP_SET0


@dataclass(frozen=True, kw_only=True)
class CacheView:
    """The cache of one layer as 32-bit words, with strides in elements of `bits` bits."""

    words: torch.Tensor
    """int32 `[1]`, where the offsets start. Kernels address the whole cache from here."""
    bits: int
    """Bits of an element (B)."""
    block_tokens: int
    """Tokens of a block."""
    block_stride: int
    kv_stride: int
    """From an element of K to the same element of V; 0 if there is one plane."""
    token_stride: int
    head_stride: int
    elem_stride: int
    heads: int
    """KV heads on this rank."""
    first_head: int = 0
    """Global index of the rank's first KV head."""
    span: int = 0
    """Words from the first of the cache to its last, both included."""

    @classmethod
    def of(
        cls, key: torch.Tensor, value: torch.Tensor | None, *, bits: int | None = None, first_head: int = 0
    ) -> CacheView:
        """The view of K and V, both `[blocks, block_tokens, heads, D]` of any strides and in one allocation.

        `bits` = 4 means two elements per byte, element 2i in the low half of byte i (vLLM's `int4_per_token_head`); D
        is then the number of bytes. Scales are a view of their own, float32 with D = 1. Raises `ValueError` for what
        the words cannot address.
        """
        width = key.element_size() * 8
        bits = width if bits is None else bits
        packed, rest = divmod(width, bits)
        if rest or bits not in (4, 8, 16, 32):
            raise ValueError(f"elements of {bits} bits in a cache of {key.dtype}")
        if packed > 1 and key.stride(-1) != 1:
            raise ValueError(f"packed elements with stride {key.stride(-1)}")
        if key.data_ptr() % 4:
            raise ValueError("the cache does not start at a multiple of 4 bytes")
        distance = 0
        if value is not None:
            if value.stride() != key.stride() or value.shape[:3] != key.shape[:3]:
                raise ValueError(
                    f"K is {tuple(key.shape)} with strides {key.stride()}, V {tuple(value.shape)} with {value.stride()}"
                )
            distance = value.data_ptr() - key.data_ptr()
            if distance < 0:
                raise ValueError("V lies before K")
        storage = key.untyped_storage()
        at = (key.data_ptr() - storage.data_ptr()) // 4
        words = torch.empty(0, dtype=torch.int32, device=key.device).set_(storage, at, (1,))
        block, token, head, elem = (stride * packed for stride in key.stride())
        last = sum(stride * (size - 1) for stride, size in zip(key.stride(), key.shape, strict=True))
        return cls(
            words=words,
            bits=bits,
            block_tokens=key.shape[1],
            block_stride=block,
            kv_stride=distance * 8 // bits,
            token_stride=token,
            head_stride=head,
            elem_stride=elem if packed == 1 else 1,
            heads=key.shape[2],
            first_head=first_head,
            span=(last * key.element_size() + key.element_size() - 1 + distance) // 4 + 1,
        )


@triton.jit
def count_bits(word):
    """Set bits of uint32 words as int32. (`popc` is in libdevice only, which the interpreter lacks.)"""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word = word + (word >> 8)
    return ((word + (word >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def change_bits(words_ptr, kept_ptr, offset, bits, op, undo, on, BITS: tl.constexpr, KEEP: tl.constexpr):
    """Apply `op` to `bits` of the elements at `offset` where `on`; returns per lane how many bits landed, and how many
    of them had that value before.

    offset  int64 vector, in elements; on  int1 vector
    bits    uint32 vector, bits of the element; lanes that meet in an element must have different bits
    op      scalar: OP_FLIP x ^ b, OP_SET0 x & ~b, OP_SET1 x | b
    undo    scalar: 1 takes the same op back, and returns how many bits changed back; a flip is its own inverse

    KEEP: a stuck-at can be taken back. It leaves the bits that it changed in the words at `kept_ptr`, which are
    addressed like those of the cache and zero at first, and its `undo` inverts these bits and clears them.

    The word is read again after the atomic, past the first-level cache, and compared with what the atomic found. So a
    bit counts if and only if the memory behind the address holds its new value: for a flip another one than before,
    for a stuck-at the stuck one. (Nobody else changes these bits meanwhile.)
    """
    if BITS == 32:
        word = offset
    else:
        # shift and mask, not divide: offsets of another layer may be negative
        word = offset >> (1 if BITS == 16 else 2 if BITS == 8 else 3)
        bits = bits << ((offset & (32 // BITS - 1)) * BITS).to(tl.uint32)
    at = words_ptr + word
    field = bits.to(tl.int32, bitcast=True)
    before = field
    back = (undo != 0) & (op != OP_FLIP) if KEEP else False
    if back:
        field = tl.atomic_and(kept_ptr + word, ~field, mask=on, sem="relaxed") & field
        before = tl.atomic_xor(at, field, mask=on, sem="relaxed")
    elif op == OP_FLIP:
        before = tl.atomic_xor(at, field, mask=on, sem="relaxed")
    elif op == OP_SET0:
        before = tl.atomic_and(at, ~field, mask=on, sem="relaxed")
    else:
        before = tl.atomic_or(at, field, mask=on, sem="relaxed")
    after = tl.load(at, mask=on, other=0, volatile=True)
    changed = before ^ after
    if back:
        landed = field & changed
    else:
        landed = field & tl.where(op == OP_FLIP, changed, tl.where(op == OP_SET0, ~after, after))
    if KEEP:
        lost = changed & field
        keep = on & (lost != 0) & (undo == 0) & (op != OP_FLIP)
        tl.atomic_or(kept_ptr + word, lost, mask=keep, sem="relaxed")
    unchanged = (landed & ~changed).to(tl.uint32, bitcast=True)
    return tl.where(on, count_bits(landed.to(tl.uint32, bitcast=True)), 0), tl.where(on, count_bits(unchanged), 0)
