"""The host side: tables as the kernels read them, and refusals. No kernel runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kvspec_kernels import NEVER, CacheView, FaultModel, FaultTable, Injector, Selector, SlotFault
from kvspec_kernels import table as t

from kvspec import _native


def make_table(**limits: int) -> FaultTable:
    return FaultTable(slots=4, layers=40, heads=33, device="cpu", **limits)


def model(**changes: object) -> FaultModel:
    values = {
        "level": "token",
        "thresholds": np.array([5, 2**64 - 1], np.uint64),
        "head_size": 8,
        "heads": 3,
        "mask": 0xC1,
    }
    return FaultModel(**{**values, **changes})


def row(table: torch.Tensor, at: int) -> list[int]:
    return table[at].numpy().view(np.uint32).tolist()


@pytest.mark.parametrize(("per", "level", "units", "sub"), [
    ("bit", "token", 6 * 24, 1), ("bit", "head", 24, 1), ("element", "token", 6 * 8, 3), ("element", "dense", 8, 3),
    ("row", "head", 1, 24),
])  # fmt: skip
def test_models(per, level, units, sub):
    table = make_table()
    other = model(thresholds=np.array([7], np.uint64))
    table.load([other, model(per=per, level=level, burst_len=99, page_tokens=16, page_threshold=2**63, op="set1")], [])
    record = row(table.models, 1)
    assert record[t.MODEL_UNITS.value] == units
    assert record[t.MODEL_SUB.value] == sub
    assert record[t.MODEL_PER_ROW.value] == 24
    assert record[t.MODEL_BURST.value] == 24
    assert record[t.MODEL_OP.value] == 2
    assert record[t.MODEL_LOWEST.value :][:4] == [0, 1, 0x41, 0xC1]
    start = record[t.MODEL_TABLE.value]
    assert table.thresholds[start : start + 3].numpy().view(np.uint64).tolist() == [2**63, 5, 2**64 - 1]


def test_tables_of_rust_always_fit():
    longest = max(len(_native.thresholds(units, 32.0 / units)) for units in (32, 64, 2048, 32768, 2**31 - 2**16))
    assert 90 < longest <= t.MAX_HITS


def test_selectors():
    table = make_table()
    table.load(
        [],
        [
            Selector(),
            Selector(
                layers=[(38, 99), (1, 3)], heads=[(32, 33)], planes=(False, True), phase="decode",
                tokens=[(5, 5), (7, 2**32), (0, 1)], events=[(1, 4)],
            ),
            Selector(tokens=[], events=[(3, 3)]),
        ],
    )  # fmt: skip
    whole, part, nothing = (row(table.selectors, i) for i in range(3))
    assert table.selector_width == 6 + 2 + 2
    assert whole == [3, 0, 0, 1, 1, 1, 2**32 - 1, 0xFF, 2**32 - 1, 1]
    assert part == [2, 2, 2, 2, 4, 1, 0b110, 0b11000000, 0, 1]
    assert nothing[2:6] == [5, 0, 5, 0]
    every = [0, 2**32 - 1]
    assert [row(table.ranges, i) for i in range(5)] == [every, every, [7, 2**32 - 1], [0, 0], [1, 3]]


def test_slots():
    table = make_table()
    never = model(thresholds=np.array([], np.uint64))
    no_page = model(page_tokens=4)
    table.load([model(), never, no_page], [Selector()])
    fault = SlotFault(
        model=0, selector=0, request=2**32 - 1, prompt_len=9, write_key=(2**32 - 1, 1), read_master=(2, 3)
    )
    table.assign([3, 0], [fault, None])
    assert row(table.slot_table, 3) == [7, 0, 0, 2**32 - 1, 9, 2**32 - 1, 1, 2, 3, 0, 0, 0]
    for index, site in ((1, 4), (2, 4)):
        table.assign(
            [1], [SlotFault(model=index, selector=0, request=0, prompt_len=0, write_key=(1, 1), read_master=(1, 1))]
        )
        assert row(table.slot_table, 1)[0] == site
    table.assign([2], [SlotFault(model=0, selector=0, request=0, prompt_len=0, write_key=(1, 1), watch=False)])
    assert row(table.slot_table, 2)[0] == 1
    table.assign([], [])


def test_counts_start_anew_with_each_request():
    table = make_table()
    table.load([model()], [Selector()])
    table.tally += 5
    table.nonfinite.zero_()
    tally, nonfinite = table.take([2, 0])
    table.assign([2], [None])
    assert tally.tolist() == [[5] * 6] * 2
    assert nonfinite.tolist() == [0, 0]
    assert table.tally[:, 0].tolist() == [5, 5, 0, 5]
    assert table.nonfinite.tolist() == [0, 0, NEVER, 0]


def test_refusals_of_the_table():
    table = make_table(max_models=1, max_thresholds=8, max_selectors=1, max_ranges=2)
    with pytest.raises(ValueError, match="2 models, the table was made for 1"):
        table.load([model(), model()], [])
    with pytest.raises(ValueError, match="9 thresholds, the table was made for 8"):
        table.load([model(thresholds=np.arange(8, dtype=np.uint64))], [])
    with pytest.raises(ValueError, match="3 ranges, the table was made for 2"):
        table.load([], [Selector(tokens=[(0, 1), (2, 3)])])
    with pytest.raises(ValueError, match="128 thresholds, the limit is 127"):
        table.load([model(thresholds=np.arange(128, dtype=np.uint64))], [])
    with pytest.raises(ValueError, match="34 heads, the table holds 33"):
        table.load([model(heads=34)], [])
    table.load([model()], [Selector()])
    for wrong in ({"model": 1, "selector": 0}, {"model": 0, "selector": 1}):
        with pytest.raises(ValueError, match="1 of 1"):
            table.assign([0], [SlotFault(request=0, prompt_len=0, **wrong)])


def test_cache_views():
    whole = torch.zeros(5, 2, 16, 3, 64, dtype=torch.bfloat16)
    view = CacheView.of(*whole.unbind(1), first_head=3)
    assert view == CacheView(
        words=view.words, bits=16, block_tokens=16, block_stride=6144, kv_stride=3072, token_stride=192, head_stride=64,
        elem_stride=1, heads=3, first_head=3, span=5 * 6144 // 2,
    )  # fmt: skip
    assert view.words.data_ptr() == whole.data_ptr()
    packed = torch.zeros(5, 3, 16, 2 * 36, dtype=torch.uint8).permute(0, 2, 1, 3)
    # int4 codes of 64 elements, then a float32 scale, for K and for V
    codes = CacheView.of(packed[..., :32], packed[..., 36:68], bits=4)
    assert (codes.kv_stride, codes.token_stride, codes.head_stride, codes.elem_stride) == (72, 144, 16 * 144, 1)
    scales = CacheView.of(packed[..., 32:36].view(torch.float32), packed[..., 68:72].view(torch.float32))
    assert (scales.bits, scales.kv_stride, scales.token_stride, scales.head_stride) == (32, 9, 18, 16 * 18)
    assert scales.words.data_ptr() == packed.data_ptr() + 32


def test_refusals_of_cache_views():
    cache = torch.zeros(2, 4, 2, 9, dtype=torch.int16)
    with pytest.raises(ValueError, match="multiple of 4 bytes"):
        CacheView.of(cache[..., 1:], None)
    with pytest.raises(ValueError, match="V lies before K"):
        CacheView.of(cache[1:], cache[:1])
    with pytest.raises(ValueError, match="K is"):
        CacheView.of(cache, cache[..., ::2])
    with pytest.raises(ValueError, match=r"elements of 6 bits in a cache of torch.int16"):
        CacheView.of(cache, None, bits=6)
    with pytest.raises(ValueError, match="packed elements with stride 2"):
        CacheView.of(cache[..., ::2], None, bits=4)


def test_layers_must_be_alike():
    injector = Injector(make_table(), max_rows=4, max_requests=2, layers=2)
    one, other = torch.zeros(2, 2, 4, 2, 8), torch.zeros(2, 2, 4, 4, 8)
    with pytest.raises(ValueError, match="1 caches for 2 layers"):
        injector.bind([CacheView.of(*one.unbind(1))])
    with pytest.raises(ValueError, match="differ in layout"):
        injector.bind([CacheView.of(*one.unbind(1)), CacheView.of(*other.unbind(1))])


def test_indices_of_a_batch_are_int32():
    injector = Injector(make_table(), max_rows=4, max_requests=2)
    start, slots = torch.zeros(2, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"batch_slot is torch\.int64"):
        injector.begin_step(start, slots, start, 1)


def test_records_of_many_requests_are_those_of_one_by_one():
    table = make_table()
    table.load([model(), model(thresholds=np.zeros(0, np.uint64))], [Selector(), Selector()])
    rng = np.random.default_rng(1)
    n = 40
    which, armed = rng.integers(0, 2, n), rng.integers(0, 4, n)
    keys = rng.integers(0, 2**32, (2, n, 2), dtype=np.uint32)
    request, lengths = rng.integers(0, 2**32, n), rng.integers(1, 2**31, n)
    rows = table.records(
        which, lengths, writes=(armed & 1) > 0, reads=(armed & 2) > 0, request=request, write_key=keys[0],
        read_master=keys[1],
    )  # fmt: skip
    for i in range(n):
        write, read = (tuple(map(int, key[i])) if armed[i] & bit else None for bit, key in ((1, keys[0]), (2, keys[1])))
        table.assign([2], [SlotFault(
            model=which[i], selector=which[i], request=request[i], prompt_len=lengths[i], write_key=write,
            read_master=read,
        )])  # fmt: skip
        one = np.array(row(table.slot_table, 2))
        unused = np.zeros(len(one), bool)
        unused[t.SLOT_WRITE_KEY.value :][:2] = write is None
        unused[t.SLOT_READ_MASTER.value :][:2] = read is None
        assert np.where(unused, 0, rows[i]).tolist() == one.tolist()
    table.assign_records([3, 1], rows[[5, 6]])
    assert row(table.slot_table, 3) == rows[5].tolist()
    assert row(table.slot_table, 1) == rows[6].tolist()
