"""Faults of reads: applied before attention, undone by the launch of the next layer, keyed by the event."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_rig import Fault, Geometry, Request, Rig, random_fault, random_key, random_where, with_op


def walk(rig: Rig) -> int:
    """One forward with reads: at each layer exactly Rust's flips are there, in the layers before nothing is left."""
    before, codes = rig.snapshot(), rig.all_codes(read=True)
    rig.begin(writes=False, reads=True)
    total = 0
    for layer in range(rig.layers):
        rig.injector.reads(layer, rig.block_table)
        total += rig.check(before, codes, [layer], read=True)
    rig.injector.reads(rig.layers, rig.block_table)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))
    assert not rig.injector.kept.any()
    return total


@pytest.mark.parametrize("seed", range(8))
def test_mixed_batches(seed):
    rng, stuck = np.random.default_rng(100 + seed), seed >= 4
    geometry = Geometry(int(rng.choice([16, 80])), int(rng.choice([1, 3])), int(rng.choice([4, 8, 16, 32])))
    layout = ["packed", "flash", "padded"][seed % 3]
    rig = Rig(geometry, layers=2, layout=layout, block_tokens=4, blocks=40, stuck_reads=stuck)
    requests = []
    for slot in range(3):
        fault = replace(random_fault(rng, geometry), where=random_where(rng, 2, geometry.heads))
        fault = with_op(fault, str(rng.choice(["set0", "set1"])) if stuck and slot else "flip")
        count = int(rng.integers(1, 4))
        start = int(rng.integers(0, 4)) if slot else 0
        prompt_len = start + (count if count > 1 else 0) + int(rng.integers(0, 3))
        requests.append(Request(slot, start, count, fault, slot, prompt_len, None, random_key(rng)))
    rig.enter([*requests, Request(5, 0, 3)])
    total = walk(rig)
    assert sum(rig.tallies(4)) == sum(rig.tallies(2)) == total
    assert sum(rig.tallies(0)) == 0
    planned = [
        sum(int(np.bitwise_count(rig.masks(r, at, read=True)).sum()) for at in range(rig.layers)) for r in rig.requests
    ]
    for r, want, landed, unchanged in zip(rig.requests, planned, rig.tallies(1), rig.tallies(5), strict=True):
        all_new = r.start == 0 or r.end > r.prompt_len
        assert landed == want if all_new else landed <= want
        assert unchanged == 0 if r.fault is None or r.fault.op == "flip" else unchanged <= landed


def test_chunks_of_a_prefill_are_one_event_and_each_decode_step_its_own():
    geometry = Geometry(16, 2, 16)
    fault = Fault(geometry, 0.004, 0xFFFF)
    request = Request(3, 0, 6, fault, 4, 6, None, (21, 22))
    rig = Rig(geometry, layers=1, block_tokens=4, fill="zeros")
    rig.enter([replace(request, count=8)])
    seen, exposed = [], 0
    for start, count in ((0, 2), (2, 3), (5, 1), (6, 1), (7, 1)):
        rig.step([replace(request, start=start, count=count)])
        rig.begin(writes=False, reads=True)
        rig.injector.reads(0, rig.block_table)
        seen.append(rig.codes(0, 0, 0, start + count))
        np.testing.assert_array_equal(seen[-1], rig.masks(rig.requests[0], 0, read=True))
        rig.injector.reads(1, rig.block_table)
        exposed += int(np.bitwise_count(seen[-1]).sum())
    for chunk in seen[:2]:
        np.testing.assert_array_equal(chunk, seen[2][: len(chunk)])
    assert seen[2].any()
    assert (seen[3][:6] != seen[2]).any()
    assert (seen[4][:7] != seen[3]).any()
    # every site counts once per event, however often its chunks show it
    once = sum(int(np.bitwise_count(codes).sum()) for codes in seen[2:])
    assert [rig.tallies(c) for c in (1, 2, 4)] == [[once], [exposed], [exposed]]
    assert once < exposed


@pytest.mark.parametrize("op", ["set0", "set1"])
def test_a_stuck_at_gives_back_what_it_overwrote(op):
    """About half of the bits had that value; later layers and forwards find nothing of the ones before."""
    geometry = Geometry(16, 1, 16)
    request = Request(3, 0, 4, Fault(geometry, 0.02, 0xF0F0, burst_len=8, op=op), 4, 4, None, (1, 2))
    rig = Rig(geometry, layers=3, block_tokens=4, stuck_reads=True)
    rig.enter([replace(request, count=6)])
    changed = once = 0
    for start, count in ((0, 3), (3, 1), (4, 1), (5, 1)):
        rig.step([replace(request, start=start, count=count)])
        changed += walk(rig)
        seen = [int(np.bitwise_count(rig.masks(rig.requests[0], at, read=True)).sum()) for at in range(rig.layers)]
        once += sum(seen) if start else 0  # the second chunk shows what the first one showed
    landed, restored, exposed, unchanged = (rig.tallies(c)[0] for c in (1, 2, 4, 5))
    assert landed == once > 500
    assert exposed == restored == changed
    assert 0.4 * landed < landed - unchanged < 0.6 * landed
    assert exposed > landed - unchanged


def test_without_room_for_stuck_ats_flips_need_none():
    assert Rig(Geometry(16, 1, 16)).injector.kept.numel() == 0
    rig = Rig(Geometry(16, 1, 16), blocks=12, stuck_reads=True)
    assert rig.injector.kept.shape == (2, 12 * 16 * 2 * 16 // 2)


def test_a_forward_of_several_events_is_left_alone():
    """The recompute of a preempted request: generated tokens come back as one prefill."""
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=1, block_tokens=4)
    rig.enter([Request(3, 0, 6, Fault(geometry, 1.0, 0xFFFF, "row"), 4, 4, None, (1, 2))])
    before = rig.snapshot()
    rig.begin(writes=False, reads=True)
    rig.injector.reads(0, rig.block_table)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))
    assert rig.tallies(4) == [0]


def test_event_windows():
    geometry = Geometry(16, 1, 16)
    request = Request(3, 0, 4, Fault(geometry, 1.0, 0xFFFF, "row"), 4, 4, None, (1, 2), events=((1, 2), (4, 4), (3, 9)))
    rig = Rig(geometry, layers=1, block_tokens=4)
    rig.enter([replace(request, count=7)])
    landed = []
    for start, count in ((0, 4), (4, 1), (5, 1), (6, 1)):
        rig.step([replace(request, start=start, count=count)])
        landed.append(walk(rig))
    assert landed == [0, 5 * 2, 0, 7 * 2]


def test_write_and_read_of_one_trial_are_independent():
    geometry = Geometry(16, 2, 16)
    request = Request(3, 0, 5, Fault(geometry, 0.01, 0xFFFF), 4, 5, (1, 2), (3, 4))
    rig = Rig(geometry, layers=1, block_tokens=4)
    rig.enter([request])
    written = rig.check_write()
    before, codes = rig.snapshot(), rig.all_codes(read=True)
    rig.begin(writes=True, reads=True)
    rig.injector.reads(0, rig.block_table)
    shown = rig.check(before, codes, [0], read=True)
    rig.injector.reads(1, rig.block_table)
    assert written > 0
    assert shown > 0
    assert [rig.tallies(c) for c in range(4)] == [[written], [shown], [shown], [0]]


def test_reads_share_a_list_of_limited_length():
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=2, block_tokens=4, read_tokens=3)
    rig.enter([Request(1, 0, 5, Fault(geometry, 1.0, 0xFFFF, "row"), 0, 5, None, (1, 1))])
    before = rig.snapshot()
    rig.begin(writes=False, reads=True)
    for layer in range(3):
        rig.injector.reads(layer, rig.block_table)
    assert [rig.tallies(c) for c in range(1, 4)] == [[12], [12], [4]]
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))


def test_wide_block_tables():
    """Rows of the table are addressed by its stride, so a slice of a larger table will do."""
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=1, block_tokens=4)
    fault = Fault(geometry, 0.02, 0xFFFF)
    rig.enter([Request(i, 0, 6, fault, i, 6, None, (9, i)) for i in range(2)])
    rig.block_table = torch.nn.functional.pad(rig.block_table, (0, 3), value=-1)[:, :2]
    assert walk(rig) > 0
