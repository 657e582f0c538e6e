"""Explicit maps: every event at its place, once, undone after a read."""

import numpy as np
import pytest
from kernel_rig import Geometry, Request, Rig, applied
from kvspec_kernels.events import EVENT_WIDTH
from kvspec_kernels.table import OPS


def random_events(rng, rig, count, read, ops=tuple(OPS)):
    """Distinct (request, layer, kv, head, token, elem) with masks and ops."""
    g, sites = rig.geometry, set()
    while len(sites) < count:
        i = int(rng.integers(len(rig.requests)))
        r = rig.requests[i]
        token = int(rng.integers(0 if read else r.start, r.end))
        site = (int(rng.integers(rig.layers)), i, token, int(rng.integers(2)), int(rng.integers(g.heads)))
        sites.add((*site, int(rng.integers(g.head_size))))
    top = (1 << g.bits) - 1
    return [(*s, int(rng.integers(1, top + 1)), str(rng.choice(ops))) for s in sorted(sites)]


def give(rig, events, read, new=lambda i, token: True):
    starts = np.cumsum([0, *(r.count for r in rig.requests)])
    columns = np.zeros((EVENT_WIDTH.value, len(events)), np.int64)
    for n, (_, i, token, kv, head, elem, mask, op) in enumerate(events):
        r = rig.requests[i]
        place = i if read else starts[i] + token - r.start
        columns[:, n] = (r.slot, place, token, kv, head, elem, mask, OPS[op], new(i, token))
    rig.injector.set_events(read, np.array([e[0] for e in events]), columns)


def expected_codes(rig, codes, events, layer, read):
    out = [c.copy() for c in codes[layer]]
    for at, i, token, kv, head, elem, mask, op in events:
        if at == layer and rig.heads[0] <= head < rig.heads[1]:
            where = (token - (0 if read else rig.requests[i].start), kv, head - rig.heads[0], elem)
            out[i][where] = applied(out[i][where], np.uint32(mask), op)
    return out


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("heads", [None, (0, 2), (1, 2), (1, 3)])
def test_write_events(bits, heads):
    rng = np.random.default_rng(bits)
    rig = Rig(Geometry(16, 3, bits), layers=3, block_tokens=4, layout="packed", heads=heads)
    rig.enter([Request(2, 9, 5), Request(0, 0, 3)])
    events = random_events(rng, rig, 300, read=False)
    give(rig, events, read=False)
    codes, before, changed = rig.all_codes(), rig.snapshot(), 0
    for layer in range(rig.layers):
        rig.injector.write_events(layer, rig.slot_mapping)
        for i, want in enumerate(expected_codes(rig, codes, events, layer, read=False)):
            r = rig.requests[i]
            np.testing.assert_array_equal(rig.codes(i, layer, r.start, r.count), want)
            changed += int(np.bitwise_count(want ^ codes[layer][i]).sum())
    raw = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(before, rig.snapshot(), strict=True))
    planned = sum(mask.bit_count() for _, _, _, _, head, _, mask, _ in events if rig.heads[0] <= head < rig.heads[1])
    assert sum(rig.tallies(0)) == planned
    assert sum(rig.tallies(0)) - sum(rig.tallies(5)) == changed == raw
    assert changed < planned


@pytest.mark.parametrize(
    ("bits", "ops", "heads"),
    [(8, ("flip",), None), *((bits, tuple(OPS), None) for bits in (4, 8, 16, 32)),
     *((16, tuple(OPS), heads) for heads in ((0, 2), (1, 2), (1, 3)))],
)  # fmt: skip
def test_read_events(bits, ops, heads):
    rng = np.random.default_rng(bits)
    rig = Rig(Geometry(16, 3, bits), layers=3, block_tokens=4, stuck_reads=len(ops) > 1, heads=heads)
    # reads need the blocks of the whole sequence
    rig.enter([Request(2, 0, 9, read_master=(0, 0)), Request(0, 0, 6, read_master=(0, 0))])
    events = random_events(rng, rig, 200, read=True, ops=ops)
    # tokens below the third were shown by an earlier forward of the same read
    give(rig, events, read=True, new=lambda _, token: token >= 3)
    codes, before, changed = rig.all_codes(read=True), rig.snapshot(), 0
    for layer in range(rig.layers):
        rig.injector.read_events(layer, rig.block_table)
        for at in range(rig.layers):
            for i, want in enumerate(expected_codes(rig, codes, events if at == layer else [], at, read=True)):
                np.testing.assert_array_equal(rig.codes(i, at, 0, rig.requests[i].end), want)
                changed += int(np.bitwise_count(want ^ codes[at][i]).sum())
    rig.injector.read_events(rig.layers, rig.block_table)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))
    assert not rig.injector.kept.any()
    landed = sum(
        mask.bit_count()
        for _, _, token, _, head, _, mask, _ in events
        if token >= 3 and rig.heads[0] <= head < rig.heads[1]
    )
    assert sum(rig.tallies(1)) == landed > 0
    assert sum(rig.tallies(4)) == sum(rig.tallies(2)) == changed
    assert sum(rig.tallies(5)) == 0 if len(ops) == 1 else 0 < sum(rig.tallies(5)) < landed


def test_no_events():
    rig = Rig(Geometry(16, 2, 16), layers=2)
    rig.enter([Request(2, 0, 4)])
    before = rig.snapshot()
    give(rig, [], read=False)
    rig.injector.write_events(0, rig.slot_mapping)
    rig.injector.end_step()
    rig.injector.read_events(2, rig.block_table)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))


def test_too_many_events_are_refused():
    rig = Rig(Geometry(16, 2, 16), layers=2)
    with pytest.raises(ValueError, match="5000 events in a step, buffers were made for 4096"):
        rig.injector.set_events(False, np.zeros(5000, int), np.zeros((EVENT_WIDTH.value, 5000), int))
