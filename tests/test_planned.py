"""The flips that trials must have received, against the enumeration of every site of every event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvspec import _native
from kvspec.engine.table import native_selector
from kvspec.plan.events import read_events, shown_events
from kvspec.spec.model import Selector
from tests.reference_sampler import Key
from tests.test_sampling import key_strategy, models, u32

LAYERS, REQUEST = 2, 7
MASTER = (3, 4)
PROMPT = 4


def table_of(model: dict[str, Any], key: Key, site: str, where: Selector, entries: int = 1) -> _native.TrialTable:
    return _native.TrialTable(
        layers=LAYERS,
        samplers=[_native.Sampler(**model)],
        selectors=[native_selector(where)],
        sampler=u32([0] * entries),
        selector=u32([0] * entries),
        write_key=u32([key] * entries),
        request=u32([REQUEST] * entries),
        prompt_len=u32([PROMPT] * entries),
        site=[site],
        read_master=u32([MASTER] * entries),
    )


def ranges(top: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    cut = st.tuples(st.integers(0, top), st.integers(0, top)).map(lambda ab: (min(ab), max(ab)))
    return st.lists(cut, min_size=1, max_size=3).map(tuple)


wheres = st.builds(
    Selector,
    heads=st.one_of(st.none(), ranges(4)),
    cache=st.sampled_from([("K", "V"), ("K",), ("V",)]),
    tokens=st.one_of(st.sampled_from(["all", "prompt", "decode"]), ranges(12)),
    steps=st.one_of(st.sampled_from(["all", "prefill", "decode"]), ranges(8)),
)


@settings(max_examples=200, deadline=None)
@given(models(), key_strategy, st.sampled_from(["KV_WRITE", "KV_READ", "BOTH"]), wheres, st.integers(0, 12))
def test_planned_is_what_enumeration_lists(
    model: dict[str, Any], key: Key, site: str, where: Selector, written: int
) -> None:
    sampler, selector = _native.Sampler(**model), native_selector(where)

    def flips(key: Key, tokens: int) -> int:
        listed = sampler.enumerate(
            key=key, request=REQUEST, layers=(0, LAYERS), tokens=(0, tokens), prompt_len=PROMPT, selector=selector
        )
        return len(listed["token"])

    expected = flips(key, written) if site != "KV_READ" else 0
    if site != "KV_WRITE":
        for step in shown_events(where, read_events(PROMPT, written)):
            expected += flips(_native.read_key(MASTER, REQUEST, step), step)
    found = table_of(model, key, site, where).planned(u32([0]), u32([written]))
    assert found.dtype == np.uint64
    assert found.tolist() == [expected]


def test_entries_and_positions_go_together() -> None:
    model = {"head_size": 8, "bits": 16, "heads": 2, "rate": 0.3, "mask": 0xFFFF}
    table = table_of(model, (1, 2), "BOTH", Selector(), entries=3)
    alone = [table.planned(u32([entry]), u32([written]))[0] for entry, written in ((2, 9), (0, 5))]
    assert table.planned(u32([2, 0]), u32([9, 5])).tolist() == alone
    assert alone[0] > alone[1] > 0
    assert table.planned(u32([]), u32([])).tolist() == []
    with pytest.raises(ValueError, match="entry 3"):
        table.planned(u32([3]), u32([1]))
    with pytest.raises(ValueError, match="written"):
        table.planned(u32([0, 1]), u32([1]))


def test_each_entry_has_its_own_sampler_selector_site_and_keys() -> None:
    """The engine of a CPU has the same table, so nothing else would tell that it mixes them up."""
    models = [{"head_size": 8, "bits": 16, "heads": 2, "mask": 0xFFFF, "rate": rate} for rate in (0.3, 0.02, 0.004)]
    samplers = [_native.Sampler(**model) for model in models]  # type: ignore[arg-type]
    selectors = [native_selector(where) for where in (Selector(), Selector(cache=("V",)), Selector(tokens="prompt"))]
    sites = ["KV_READ", "BOTH", "KV_WRITE"]
    rng = np.random.default_rng(7)
    sampler, selector, request, prompts = (rng.integers(0, 3, 9).astype(np.uint32) for _ in range(4))
    write, master = (rng.integers(0, 2**32, (9, 2), np.uint32) for _ in range(2))
    table = _native.TrialTable(
        layers=LAYERS, samplers=samplers, selectors=selectors, sampler=sampler, selector=selector, write_key=write,
        request=request, prompt_len=prompts, site=sites, read_master=master,
    )  # fmt: skip

    def flips(i: int, key: Key, tokens: int) -> int:
        listed = samplers[sampler[i]].enumerate(
            key=key, request=int(request[i]), layers=(0, LAYERS), tokens=(0, tokens), prompt_len=int(prompts[i]),
            selector=selectors[selector[i]],
        )  # fmt: skip
        return len(listed["token"])

    written, expected = u32(range(3, 12)), []
    for i in range(9):
        site, prompt = sites[sampler[i]], int(prompts[i])
        flipped = flips(i, tuple(write[i].tolist()), int(written[i])) if site != "KV_READ" else 0
        for step in read_events(prompt, int(written[i])) if site != "KV_WRITE" else ():
            flipped += flips(i, _native.read_key(tuple(master[i].tolist()), int(request[i]), step), step)
        expected.append(flipped)
    assert table.planned(u32(range(9)), written).tolist() == expected
    assert len(set(expected)) == 9


@pytest.mark.parametrize(("rate", "level"), [(3e-4, "token"), (0.1, "head"), (0.3, "dense")])
def test_long_requests_are_counted_to_their_end(rate: float, level: str) -> None:
    """Cells are drawn many at a time; the last of them may be alone."""
    sampler = _native.Sampler(head_size=16, bits=16, heads=3, rate=rate, mask=0xFFFF)
    assert sampler.level == level
    model = {"head_size": 16, "bits": 16, "heads": 3, "rate": rate, "mask": 0xFFFF}
    table = table_of(model, (5, 6), "KV_WRITE", Selector())
    for written in (255, 256, 257, 600):
        flips = sampler.enumerate(key=(5, 6), request=REQUEST, layers=(0, LAYERS), tokens=(0, written))
        assert table.planned(u32([0]), u32([written])).tolist() == [len(flips["token"])]
