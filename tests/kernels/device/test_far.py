"""Caches beyond 2^31 elements as they are in practice: blocks lie close together, and their numbers are large.

Only touched pages of the mapping exist. As much lies below the cache as above, so that an offset that wraps around is
a wrong place and not a crash.
"""

import numpy as np
import pytest
import torch
from kernel_rig import Fault, Geometry, Request, Rig
from kvspec_kernels.events import EVENT_WIDTH
from kvspec_kernels.table import OPS

TOKENS = 6


def far_rig(bits: int) -> Rig:
    """Two layers, in each a request of 6 tokens in two blocks beyond 2^31 elements, all zero."""
    geometry = Geometry(16, 2, bits)
    rig = Rig(geometry, layers=2, block_tokens=4, blocks=2)
    stored = rig.storage[0][1].shape[-1]
    rows = rig.block_tokens * geometry.heads * stored
    half = 2**31 // (2 if bits == 4 else 1)
    last = half // (2 * rows) + 8
    whole = torch.empty(2 * half + 64 * 2 * rows, dtype=rig.storage[0][0].dtype, device=rig.device)
    shape, strides = (
        (last + 1, rig.block_tokens, geometry.heads, stored),
        (2 * rows, geometry.heads * stored, stored, 1),
    )
    rig.blocks = np.array([last, last - 3])
    for layer in range(rig.layers):
        start = half + layer * 16 * 2 * rows
        key, value = (whole.as_strided(shape, strides, start + plane * rows) for plane in range(2))
        for block in rig.blocks.tolist():
            key[block].zero_(), value[block].zero_()
        rig.storage[layer] = (whole, key, value)
    rig.injector.bind(rig.views())
    assert (rig.blocks * rig.views()[0].block_stride > 2**31).all()
    assert rig.views()[0].block_stride < 2**10
    return rig


def enter(rig: Rig) -> None:
    # about ten flips in a token
    fault = Fault(rig.geometry, 10 / (64 * rig.geometry.bits), (1 << rig.geometry.bits) - 1)
    rig.enter([Request(0, 0, TOKENS, fault, 3, TOKENS, (5, 6), (7, 8))])


def codes(rig: Rig, layer: int) -> np.ndarray:
    return rig.codes(0, layer, 0, TOKENS)


@pytest.mark.parametrize("bits", [4, 8])
def test_reads_and_their_undo(bits):
    rig = far_rig(bits)
    enter(rig)
    rig.begin(writes=False, reads=True)
    shown = [rig.masks(rig.requests[0], layer, read=True) for layer in range(2)]
    for layer in range(3):
        rig.injector.reads(layer, rig.block_table)
        for at in range(2):
            np.testing.assert_array_equal(codes(rig, at), shown[at] if at == layer else 0 * shown[at])
    total = sum(int(np.bitwise_count(x).sum()) for x in shown)
    assert rig.tallies(1) == rig.tallies(2) == rig.tallies(4) == [total]
    assert total > 40


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("read", [False, True])
def test_events_and_their_undo(bits, read):
    rig, masks = far_rig(bits), np.zeros((2, TOKENS, 2, 2, 16), np.uint32)
    rig.enter([Request(0, 0, TOKENS, read_master=(0, 0))])
    rng, top = np.random.default_rng(bits), 1 << bits
    sites = rng.permutation(masks.size)[:80]
    masks.reshape(-1)[sites] = rng.integers(1, top, len(sites))
    layer, token, kv, head, elem = at = np.nonzero(masks)
    columns = np.zeros((EVENT_WIDTH.value, len(sites)), np.int64)
    for n, column in enumerate((0, 0 if read else token, token, kv, head, elem, masks[at], OPS["flip"], 1)):
        columns[n] = column
    rig.injector.set_events(read, layer, columns)
    for local in range(3 if read else 2):
        if read:
            rig.injector.read_events(local, rig.block_table)
        else:
            rig.injector.write_events(local, rig.slot_mapping)
        for at_layer in range(2):
            there = at_layer == local if read else at_layer <= local
            np.testing.assert_array_equal(codes(rig, at_layer), masks[at_layer] * there)
    total = int(np.bitwise_count(masks).sum())
    assert [rig.tallies(c)[0] for c in (0, 1, 2, 4)] == ([0, total, total, total] if read else [total, 0, 0, 0])


@pytest.mark.parametrize("fused", [False, True])
def test_writes(fused):
    rig = far_rig(16)
    enter(rig)
    rig.begin()
    key, value = torch.randint(0, 2**15, (2, TOKENS, 2, 16)).to(torch.int16).to(rig.device)
    fresh = torch.stack([key, value], dim=1).cpu().numpy().view(np.uint16).astype(np.uint32)
    total = 0
    for layer, (_, key_cache, value_cache) in enumerate(rig.storage):
        masks = rig.masks(rig.requests[0], layer)
        if fused:
            rig.injector.store(layer, key, value, key_cache, value_cache, rig.slot_mapping)
        else:
            rig.injector.writes(layer, rig.slot_mapping)
        np.testing.assert_array_equal(codes(rig, layer), (fresh if fused else 0) ^ masks)
        total += int(np.bitwise_count(masks).sum())
    assert rig.tallies(0) == [total]
    assert total > 40
