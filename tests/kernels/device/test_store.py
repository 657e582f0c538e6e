"""The fused write: the bytes of a plain copy, and the faults of `writes`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_rig import DEVICE, Fault, Geometry, Request, Rig, random_key


@pytest.mark.parametrize(
    ("bits", "heads", "dim", "layout"), [(16, 3, 64, "flash"), (16, 2, 80, "packed"), (32, 1, 16, "padded")]
)
def test_store_is_copy_and_injection(bits, heads, dim, layout):
    geometry = Geometry(dim, heads, bits)
    rng = np.random.default_rng(dim)
    mask = {16: 0x7F80, 32: 0xFFFFFFFF}[bits]
    faults = [Fault(geometry, 1e-3, mask), Fault(geometry, 0.6, mask), Fault(geometry, 0.01, mask, burst_len=9)]
    requests = [Request(slot, 5 * slot, 2 + slot, f, slot, 4, random_key(rng)) for slot, f in enumerate(faults)]
    requests.append(Request(6, 0, 2))
    # K and V as slices of one projection output, with a row more than there are slots
    rows = sum(r.count for r in requests)
    qkv = rng.integers(0, 2**bits, (rows + 1, 3 * heads * dim)).astype(f"u{bits // 8}").view(f"i{bits // 8}")
    key, value = (x.view(-1, heads, dim) for x in torch.from_numpy(qkv).to(DEVICE).split(heads * dim, dim=1)[1:])
    results = []
    for fused in (False, True):
        rig = Rig(geometry, layers=2, first_layer=5, layout=layout, block_tokens=4, blocks=16)
        rig.enter(requests)
        rig.slot_mapping[-1] = -1
        rig.begin()
        for layer, (_, key_cache, value_cache) in enumerate(rig.storage):
            if fused:
                rig.injector.store(layer, key, value, key_cache, value_cache, rig.slot_mapping)
            else:
                for row, at in enumerate(rig.slot_mapping.tolist()):
                    if at >= 0:
                        key_cache[at // 4, at % 4] = key[row]
                        value_cache[at // 4, at % 4] = value[row]
                rig.injector.writes(layer, rig.slot_mapping)
        results.append((rig.snapshot(), rig.table.tally.cpu()))
    (copied, counted), (stored, tally) = results
    assert all((a == b).all() for a, b in zip(copied, stored, strict=True))
    assert torch.equal(counted, tally)
    assert (tally[:3, 0] > 0).all()
    assert (tally[3:] == 0).all()


def test_store_refuses_what_is_not_a_copy():
    geometry = Geometry(16, 2, 16)
    rig = Rig(geometry, layers=1)
    rig.enter([Request(0, 0, 2)])
    _, key_cache, value_cache = rig.storage[0]
    key = torch.zeros(2, 2, 16, dtype=torch.int16, device=DEVICE)
    with pytest.raises(ValueError, match=r"K is torch.float32"):
        rig.injector.store(0, key.float(), key.float(), key_cache, value_cache, rig.slot_mapping)
    wide = torch.zeros(2, 2, 32, dtype=torch.int16, device=DEVICE)[..., :16]
    with pytest.raises(ValueError, match="not contiguous"):
        rig.injector.store(0, wide, key, key_cache, value_cache, rig.slot_mapping)


def test_cells_of_the_step_before_are_not_struck_again():
    """A list that has become shorter is followed by what the longer one left there."""
    geometry = Geometry(16, 2, 16)
    faulty = Request(0, 0, 5, Fault(geometry, 0.02, 0xFFFF), 4, 4, (5, 6))
    rig = Rig(geometry, layers=1, block_tokens=4)
    rig.enter([faulty, Request(6, 0, 5)])
    rng = np.random.default_rng(1)
    _, key_cache, value_cache = rig.storage[0]
    for start, counts in ((0, (4, 1)), (4, (1, 4))):
        rig.step(
            [replace(r, start=at, count=n) for r, at, n in zip(rig.requests, (start, start // 4), counts, strict=True)]
        )
        rig.begin()
        # the second step lists its row 0; rows 1 to 3, listed before, are now those of the other request
        assert rig.injector.counts.tolist() == [[counts[0]], [0]]
        rows = torch.from_numpy(rng.integers(0, 2**15, (2, 5, 2, 16)).astype(np.int16)).to(DEVICE)
        rig.injector.store(0, *rows, key_cache, value_cache, rig.slot_mapping)
        fresh = rows.transpose(0, 1).cpu().numpy().view(np.uint16).astype(np.uint32)
        for i, (r, mine) in enumerate(zip(rig.requests, np.split(fresh, [counts[0]]), strict=True)):
            np.testing.assert_array_equal(rig.codes(i, 0, r.start, r.count), mine ^ rig.masks(r, 0))
