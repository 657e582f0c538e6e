"""Write injection against Rust: any fault, format, layout, rank and batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_rig import Fault, Geometry, Request, Rig, random_fault, random_key, random_where


def random_geometry(rng: np.random.Generator) -> Geometry:
    bits = int(rng.choice([4, 8, 16, 16, 32]))
    planes = int(rng.choice([1, 2, 2, 2]))
    return Geometry(
        int(rng.choice([2, 16, 16, 64, 80])), int(rng.choice([1, 2, 3, 5])), bits, planes,
        int(rng.integers(2)) if planes == 1 else 0,
    )  # fmt: skip


def random_batch(rng: np.random.Generator, geometry: Geometry, count: int, tokens: int) -> list[Request]:
    """Requests with faults of their own, and one without."""
    requests = []
    for slot in rng.permutation(8)[:count].tolist():
        fault = replace(random_fault(rng, geometry), where=random_where(rng, 4, geometry.heads))
        start = int(rng.integers(0, 50))
        requests.append(
            Request(
                slot,
                start,
                int(rng.integers(1, tokens + 1)),
                fault,
                request=int(rng.integers(2**32)),
                prompt_len=int(rng.integers(0, 60)),
                write_key=random_key(rng),
            )
        )
    return [*requests, Request(int(set(range(8)).difference(r.slot for r in requests).pop()), 3, 5)]


@pytest.mark.parametrize("seed", range(20))
def test_mixed_batches(seed):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    layout = ["flash", "packed", "padded"][seed % 3]
    first = int(rng.integers(0, geometry.heads))
    heads = (first, int(rng.integers(first + 1, geometry.heads + 1))) if seed % 2 else None
    rig = Rig(
        geometry,
        layout=layout,
        layers=2,
        first_layer=2 * (seed % 2),
        all_layers=4,
        heads=heads,
        block_tokens=4,
        blocks=40,
    )
    rig.enter(random_batch(rng, geometry, 3, 5))
    rig.check_write()


@pytest.mark.parametrize(("bits", "mask"), [(4, 0xF), (8, 0x7C), (16, 0xC0C0), (32, 0x80000001)])
@pytest.mark.parametrize(("level", "hits_per_row"), [("token", 2), ("head", 20), ("dense", 120)])
def test_every_level_and_width(level, hits_per_row, bits, mask):
    geometry = Geometry(80, 2, bits)
    fault = Fault(geometry, hits_per_row / (80 * mask.bit_count()), mask, burst_len=2)
    assert fault.sampler().level == level
    rig = Rig(geometry, layers=1, block_tokens=4)
    rig.enter([Request(1, 2, 2, fault, 9, 0, (3, 4))])
    assert rig.check_write() > 0


@pytest.mark.parametrize("op", ["flip", "set0", "set1"])
def test_ops(op):
    geometry = Geometry(16, 2, 8)
    fault = Fault(geometry, 0.05, 0xFF, burst_len=2, op=op)
    key = (11, 12)
    for fill in ("zeros", "ones", "random"):
        rig = Rig(geometry, layers=1, block_tokens=4, fill=fill)
        rig.enter([Request(1, 0, 4, fault, 0, 0, key)])
        before = rig.all_codes()[0][0]
        changed = rig.check_write()
        sites = int(np.bitwise_count(rig.masks(rig.requests[0], 0)).sum())
        if op == "flip" or fill == {"set0": "ones", "set1": "zeros"}[op]:
            assert changed == sites > 0
        elif fill != "random":
            assert changed == 0
        assert rig.tallies(5) == [sites - changed]
        # a stuck-at lands again, and has nothing left to change
        rig.write()
        twice = rig.codes(0, 0, 0, 4)
        assert (twice == before).all() if op == "flip" else rig.tallies(5) == [2 * sites - changed]
        assert rig.tallies(0) == [2 * sites]


def test_a_write_is_applied_once_per_step_and_never_without_one():
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=1)
    rig.enter([Request(1, 0, 3, Fault(geometry, 0.01, 0xFFFF), 0, 0, (1, 1))])
    assert rig.check_write() > 0
    before = rig.snapshot()
    rig.injector.end_step()
    rig.injector.writes(0, rig.slot_mapping)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))


def test_padding_rows_and_empty_batches():
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=1)
    fault = Fault(geometry, 1.0, 0xFFFF, "row")
    rig.enter([Request(1, 0, 3, fault, 0, 0, (1, 1)), Request(2, 0, 1, fault, 1, 0, (1, 1))])
    rig.slot_mapping[1] = -1
    rig.slot_mapping = torch.nn.functional.pad(rig.slot_mapping, (0, 4), value=-1)
    before, codes = rig.snapshot(), rig.all_codes()
    rig.write()
    landed = rig.tallies(0)
    assert landed == [4, 2]
    assert (rig.codes(0, 0, 1, 1) == codes[0][0][1]).all()
    raw = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in zip(before, rig.snapshot(), strict=True))
    assert raw == 6
    rig.injector.begin_step(rig.query_start, rig.batch_slot, rig.seq_lens, 0)
    assert int(rig.injector.counts.sum()) == 0
    rig.injector.writes(0, rig.slot_mapping[:0])


def test_ranks_add_up_to_the_whole_map():
    geometry = Geometry(64, 3, 16)
    request = Request(0, 7, 4, Fault(geometry, 2e-3, 0xFFFF, burst_len=3), 5, 0, (7, 8))
    whole = Rig(geometry, layers=1, fill="zeros")
    whole.enter([request])
    assert whole.check_write() > 0
    parts = []
    for heads in ((0, 1), (1, 3)):
        rank = Rig(geometry, layers=1, heads=heads, fill="zeros", layout="packed")
        rank.enter([request])
        rank.check_write()
        parts.append(rank.codes(0, 0, 7, 4))
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), whole.codes(0, 0, 7, 4))


def test_chunks_give_the_same_map():
    geometry = Geometry(64, 2, 16)
    request = Request(0, 0, 9, Fault(geometry, 1e-3, 0xFFFF), 5, 0, (7, 8))
    whole = Rig(geometry, layers=1, fill="zeros")
    whole.enter([request])
    assert whole.check_write() > 0
    chunked = Rig(geometry, layers=1, fill="zeros")
    chunked.enter([request])
    for start, count in ((0, 4), (4, 1), (5, 4)):
        chunked.step([replace(request, start=start, count=count)])
        chunked.write()
    np.testing.assert_array_equal(chunked.codes(0, 0, 0, 9), whole.codes(0, 0, 0, 9))
    assert chunked.tallies(0) == whole.tallies(0)


def test_a_full_list_drops_cells_and_says_so():
    geometry = Geometry(16, 1, 16)
    rig = Rig(geometry, layers=1)
    rig.injector._max_rows = 2
    rig.enter([Request(4, 0, 5, Fault(geometry, 1.0, 0xFFFF, "row"), 0, 0, (1, 1))])
    rig.write()
    assert (rig.tallies(0), rig.tallies(3)) == ([4], [3])


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_offsets_beyond_2_to_the_31(bits):
    """Blocks so far apart that the second lies beyond 2^31 elements: only touched pages of the mapping exist."""
    geometry = Geometry(16, 2, bits)
    rig = Rig(geometry, layers=1, block_tokens=4, blocks=2)
    check_far_blocks(rig)


def check_far_blocks(rig: Rig) -> None:
    bits, stored = rig.geometry.bits, rig.storage[0][1].shape[-1]
    rows = rig.block_tokens * rig.geometry.heads * stored
    far = 2**31 // (2 if bits == 4 else 1) + 3 * 16
    whole = torch.empty(far + 2 * rows, dtype=rig.storage[0][0].dtype, device=rig.device)
    shape, strides = (2, rig.block_tokens, rig.geometry.heads, stored), (far, rig.geometry.heads * stored, stored, 1)
    key = whole.as_strided(shape, strides)
    value = whole.as_strided(shape, strides, rows)
    key.zero_(), value.zero_()
    rig.storage[0] = (torch.cat([key, value]), key, value)
    rig.injector.bind(rig.views())
    fault = Fault(rig.geometry, 1.0, 1, "row")
    rig.blocks = np.array([1, 0])
    rig.enter([Request(0, 0, 6, fault, 3, 0, (5, 6))])
    before = rig.all_codes()
    rig.write()
    for codes, r in zip(before[0], rig.requests, strict=True):
        np.testing.assert_array_equal(rig.codes(0, 0, 0, 6), codes ^ rig.masks(r, 0))
    assert rig.tallies(0) == [6 * 4]
