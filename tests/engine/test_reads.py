"""Faults of reads on real vLLM with tiny models: shown to attention, then gone. And stuck-ats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvspec.errors import EngineError
from tests.engine.rows import golden, ids

Run = Callable[..., dict[str, dict[str, Any]]]

PROMPTS = [
    "Explain quantum entanglement in one sentence.",
    "The capital of France is",
    "a" * 70,  # over two cache blocks of 32 tokens
]
TOKENS = 12


def fault(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": "random",
        "site": "KV_READ",
        "rate": {"per_bit": 1e-3},
        "bits": "mantissa",
        **changes,
    }


def spec(folder: Path, faults: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": {"id": str(folder)},
        "prompts": {"inline": PROMPTS},
        "generation": {"max_tokens": TOKENS},
        "faults": faults
        or [
            fault("Rare", rate={"per_bit": 1e-6}, bits="all"),
            fault("Often", rate={"per_bit": [1e-4, 0.1]}, site=["KV_READ", "BOTH"]),
            {"name": "Burst", "model": "burst", "site": "KV_READ", "rate": {"per_bit": 1e-4}},
            {"name": "Page", "model": "page_local", "site": "KV_READ", "rate": {"per_page": 0.1}},
            fault("Window", where={"steps": [0, "3-5"], "layers": ["1-"], "cache": ["V"], "tokens": "prompt"}),
        ],
        "controls": {"null_trials": 2, "golden_repeats": 2},
        "trials": 2,
        "seed": 42,
    }
    return {**base, **changes}


def first_divergence(row: dict[str, Any], reference: dict[int, list[int]]) -> int | None:
    pairs = zip(row["token_ids"], reference[row["request"]], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def cell(rows: dict[str, dict[str, Any]], *cells: int) -> list[dict[str, Any]]:
    return [row for row in rows.values() if row["cell"] in cells]


@pytest.mark.parametrize(("model", "storage"), [("gpt2", "bf16"), ("llama", "fp16")])
def test_every_planned_flip_lands_and_is_taken_back(
    model: str, storage: str, run: Run, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    rows = run(spec(folder, model={"id": str(folder), "kv_cache_dtype": storage}))
    assert len(rows) == len(PROMPTS) * (1 + 2 + 2 + 8 * 2)
    reference = golden(rows)
    for row in rows.values():
        assert row["error"] is None
        assert row["flips_landed"] == row["flips_planned"] == row["flips_changed"]
        assert row["flips_exposed"] == row["flips_restored"]
        assert row["reruns"] == 0
        if row["kind"] != "fault":
            assert row["flips_planned"] == row["flips_exposed"] == 0
            assert row["token_ids"] == reference[row["request"]], row["trial_id"]
    # Cells: Rare, Often x (KV_READ, BOTH) x (1e-4, 0.1), Burst, Page, Window.
    for row in cell(rows, 1, 2, 5, 6, 7):
        # Once per event, and again in every chunk of a prompt that the scheduler has cut.
        assert row["flips_exposed"] >= row["flips_landed"]
    for c in range(1, 8):
        assert sum(row["flips_landed"] for row in cell(rows, c)) > 0, c
    for row in cell(rows, 3, 4):
        assert 0 < row["flips_exposed"] < row["flips_landed"]  # BOTH: the writes land and stay
    changed = [sum(row["token_ids"] != reference[row["request"]] for row in cell(rows, c)) for c in (2, 4)]
    assert min(changed) == len(PROMPTS) * 2


def test_outcomes_depend_on_the_trial_alone(gpt2: Path, run: Run) -> None:
    first = run(spec(gpt2))
    for settings in (
        {"submission_seed": 5},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 32, "max_num_seqs": 8},
        {"block_size": 64},
    ):
        again = run(spec(gpt2), **settings)
        assert ids(again) == ids(first), settings
        for trial, row in again.items():
            assert row["error"] is None
            assert row["flips_landed"] == first[trial]["flips_landed"]
            assert row["flips_restored"] == row["flips_exposed"]


def test_a_chunked_prefill_exposes_the_same_event_in_every_chunk(gpt2: Path, run: Run) -> None:
    faults = [fault("Prefill", where={"steps": "prefill"})]
    whole = run(spec(gpt2, faults))
    chunked = run(spec(gpt2, faults), max_num_batched_tokens=32, max_num_seqs=1)
    assert ids(chunked) == ids(whole)
    long = [t for t, row in whole.items() if row["kind"] == "fault" and row["prompt_tokens"] > 64]
    assert long
    for trial in long:
        assert chunked[trial]["flips_landed"] == whole[trial]["flips_landed"]
        assert chunked[trial]["flips_exposed"] > 1.3 * whole[trial]["flips_exposed"]


def test_a_window_of_steps_acts_from_its_first_step_on(gpt2: Path, run: Run) -> None:
    # The i-th decode step reads for generated token i, the prefill for token 0.
    faults = [
        fault("Late", rate={"per_bit": 0.1}, where=[{"steps": [4]}, {"steps": ["4-6"]}, {"steps": ["0-11"]}]),
        fault("Never", rate={"per_bit": 0.1}, where={"steps": "decode"}),
    ]
    rows = run(spec(gpt2, faults))
    reference = golden(rows)
    for cells, first in (((0, 1), 4), ((2,), 0), ((3,), 1)):
        found = {first_divergence(row, reference) for row in cell(rows, *cells)} - {None}
        assert found
        assert min(found) == first  # type: ignore[type-var]
    one, three = (sum(row["flips_landed"] for row in cell(rows, c)) for c in (0, 1))
    assert 2.5 < three / one < 3.5


def test_the_cache_is_bit_identical_after_every_read(gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector

    before, after = CpuInjector._before_read, CpuInjector._after_read
    seen = {"reads": 0, "faulty": 0}
    state: dict[str, Any] = {}

    def remember(self: Any, layer: int) -> None:
        if self._reads is None:
            return before(self, layer)
        state["whole"] = self.cache.words[layer].copy()
        before(self, layer)
        seen["faulty"] += not np.array_equal(self.cache.words[layer], state["whole"])
        return None

    def compare(self: Any, layer: int) -> None:
        after(self, layer)
        if self._reads is not None:
            assert np.array_equal(self.cache.words[layer], state["whole"])
            seen["reads"] += 1

    monkeypatch.setattr(CpuInjector, "_before_read", remember)
    monkeypatch.setattr(CpuInjector, "_after_read", compare)
    faults = [
        # Exponents too: NaN and infinities are put back as they were, and so are stuck bits.
        fault("Flip", rate={"per_bit": 0.2}, bits="all", site=["KV_READ", "BOTH"]),
        fault("Stuck", rate={"per_bit": 0.2}, bits="all", op=["set0", "set1"]),
    ]
    rows = run(spec(gpt2, faults, trials=1), max_num_batched_tokens=32, max_num_seqs=8)
    assert all(row["error"] is None for row in rows.values())
    assert sum(row["nonfinite_at"] is not None for row in rows.values()) > 0
    assert seen["reads"] > 100
    assert seen["faulty"] > 100


def test_golden_rows_survive_neighbours_that_read_nan(gpt2: Path, run: Run) -> None:
    faults = [fault("NaN", bits="exponent", rate={"per_bit": 0.5}, where={"cache": ["V"]})]
    rows = run(spec(gpt2, faults, controls={"golden_repeats": 4, "null_trials": 4}, trials=4), max_num_seqs=6)
    reference = golden(rows)
    assert all(row["nonfinite_at"] is not None for row in rows.values() if row["kind"] == "fault")
    controls = [row for row in rows.values() if row["kind"] in ("golden_repeat", "null")]
    assert len(controls) == len(PROMPTS) * 8
    assert [row["trial_id"] for row in controls if row["token_ids"] != reference[row["request"]]] == []


@pytest.mark.parametrize("site", ["KV_WRITE", "KV_READ"])
def test_stuck_bits_land_everywhere_and_change_about_half(site: str, llama: Path, run: Run) -> None:
    rows = run(spec(llama, [fault("Stuck", site=site, op=["flip", "set0", "set1"])]))
    flip, set0, set1 = ({(r["request"], r["trial"]): r for r in cell(rows, c)} for c in range(3))
    for trial, flipped in flip.items():
        zero, one = set0[trial], set1[trial]
        for row in (flipped, zero, one):
            assert row["error"] is None
            # The same sites, whatever is done to them.
            assert row["flips_landed"] == row["flips_planned"] == flipped["flips_planned"] > 0
            assert row["flips_exposed"] == row["flips_restored"]
            assert row["flips_exposed"] >= row["flips_changed"] if site == "KV_READ" else not row["flips_exposed"]
        assert flipped["flips_changed"] == flipped["flips_landed"]
        for row in (zero, one):
            assert 0.3 < row["flips_changed"] / row["flips_landed"] < 0.7


def test_preempted_trials_are_run_again_alone(gpt2: Path, run: Run) -> None:
    # Long answers and a cache for a handful of requests: the scheduler must take blocks away.
    faults = [fault("Read", site=["KV_READ", "BOTH"]), fault("Write", site="KV_WRITE")]
    long = spec(gpt2, faults, generation={"max_tokens": 60}, trials=2)
    roomy = run(long)
    bytes_per_block = 32 * 4 * 2 * 4 * 32 * 4
    tight = run(long, kv_cache_gib=14 * bytes_per_block / 2**30)
    reads = cell(tight, 0, 1)
    assert sum(row["reruns"] for row in reads) > 0
    assert all(row["preemptions"] == 0 for row in reads)
    assert all(row["reruns"] == 0 for row in tight.values() if row not in reads)
    assert ids(tight) == ids(roomy)
    for trial, row in tight.items():
        assert row["error"] is None
        assert row["flips_exposed"] == row["flips_restored"]
        for count in ("flips_planned", "flips_landed", "flips_changed"):
            assert row[count] == roomy[trial][count]


def test_without_the_rerun_preempted_reads_would_go_wrong(
    gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proof that the test above can fail.
    from kvspec.engine.table import TableData

    monkeypatch.setattr(TableData, "reads", lambda *_: False)
    long = spec(gpt2, [fault("Read")], generation={"max_tokens": 60}, trials=4)
    bytes_per_block = 32 * 4 * 2 * 4 * 32 * 4
    rows = run(long, kv_cache_gib=14 * bytes_per_block / 2**30)
    preempted = [row for row in cell(rows, 0) if row["preemptions"]]
    assert preempted
    assert any(row["error"] for row in preempted)


def forget_to_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector

    def after(self: Any, layer: int) -> None:
        if self._reads is not None:
            # Into a copy, so that the next layer may go on.
            self._reads.restore(self.cache.words[layer].copy(), format=self._format)
        self._check_read(layer, exposed=False)

    monkeypatch.setattr(CpuInjector, "_after_read", after)


def restore_all_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector

    def after(self: Any, layer: int) -> None:
        if self._reads is not None and self._reads.layer_len(layer):
            words = self.cache.words[layer]
            faulty = words.copy()
            self._reads.restore(words, format=self._format)
            last = np.flatnonzero(words != faulty)[-1]
            words[last] = faulty[last]
        self._check_read(layer, exposed=False)

    monkeypatch.setattr(CpuInjector, "_after_read", after)


def flips_that_attention_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector

    def before(self: Any, layer: int) -> None:
        if self._reads is not None:
            clean = self.cache.words[layer].copy()
            self._inject(self._reads, layer)
            self.cache.words[layer][:] = clean
        self._check_read(layer, exposed=True)

    monkeypatch.setattr(CpuInjector, "_before_read", before)


def wrong_read_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.table import TableData

    original = TableData.build

    def build(self: Any, geometry: Any) -> Any:
        self.read_master[:, 1] ^= 1
        return original(self, geometry)

    monkeypatch.setattr(TableData, "build", build)


def same_flips_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.table import TableData

    original = TableData.build

    class Frozen:
        """A table whose decode steps all read with the key of the prefill."""

        def __init__(self, table: Any, data: Any) -> None:
            self._table, self._data = table, data

        def write_step(self, **rows: Any) -> Any:
            return self._table.write_step(**rows)

        def read_step(self, *, entry: Any, row: Any, start: Any, count: Any) -> Any:
            prompt = self._data.prompt_len[entry]
            return self._table.read_step(entry=entry, row=row, start=np.minimum(start, prompt - count), count=count)

    monkeypatch.setattr(TableData, "build", lambda self, geometry: Frozen(original(self, geometry), self))


def read_of_the_neighbours_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector

    original = CpuInjector._before_read

    def before(self: Any, layer: int) -> None:
        blocks = self._blocks
        if blocks is not None:
            # Other blocks of the cache: the next row's in a batch, unowned ones where the canary runs alone.
            other = np.roll(blocks, -1, axis=0) if len(blocks) > 1 else blocks + 1
            self._blocks = np.ascontiguousarray(other % len(self.cache.tensors[0]))
            self._inject(self._reads, layer)
            self._blocks = blocks
            self._check_read(layer, exposed=True)
            return
        original(self, layer)

    monkeypatch.setattr(CpuInjector, "_before_read", before)


SABOTAGE = [
    forget_to_restore,
    restore_all_but_one,
    flips_that_attention_does_not_see,
    wrong_read_key,
    same_flips_at_every_step,
    read_of_the_neighbours_blocks,
]


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_the_canary_stops_broken_reads(
    sabotage: Callable[[pytest.MonkeyPatch], None], gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(EngineError) as caught:
        run(spec(gpt2, [fault("Read")], trials=1))
    assert caught.value.diagnostics[0].code == "KVS403"


def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine import campaign

    monkeypatch.setattr(campaign, "run_canaries", lambda *_, **__: {})


def test_the_records_show_reads_that_attention_did_not_see(
    gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_canary(monkeypatch)
    flips_that_attention_does_not_see(monkeypatch)
    rows = run(spec(gpt2, [fault("Read")], trials=1))
    assert all("put back" in (row["error"] or "") for row in cell(rows, 0))


def test_isolation_shows_reads_in_the_neighbours_blocks(gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    no_canary(monkeypatch)
    read_of_the_neighbours_blocks(monkeypatch)
    faults = [fault("Read", rate={"per_bit": 0.1})]
    rows = run(spec(gpt2, faults, controls={"golden_repeats": 3, "null_trials": 3}))
    reference = golden(rows)
    controls = [row for row in rows.values() if row["kind"] in ("golden_repeat", "null")]
    assert any(row["token_ids"] != reference[row["request"]] for row in controls)


def test_a_run_of_reads_exports_its_maps(gpt2: Path, run: Run, tmp_path: Path) -> None:
    from kvspec.maps.columns import names
    from kvspec.maps.generate import explicit
    from kvspec.maps.runs import Run as MapsOfRun

    out = tmp_path / "run"
    faults = [fault("Both", site="BOTH", rate={"per_bit": 1e-4}), fault("Stuck", op="set1", where={"steps": ["2-3"]})]
    rows = run(spec(gpt2, faults, trials=1), out=out)
    source = MapsOfRun(out)
    maps = list(source.maps(source.choose((), ())))
    assert len(maps) == len(PROMPTS) * 3  # two of each trial at BOTH
    for trial, row in rows.items():
        mine = [explicit(m) for m in maps if m.header.name == trial]
        assert sum(map(len, mine)) == row["flips_landed"]
        for found in mine:
            assert found.columns is not None
            header = found.header
            assert header.op == ("flip" if row["cell"] == 0 else "set1")
            assert set(found.columns) == set(names(header.site, header.op))
            if header.site == "read":
                # An event is named by its step: the prompt's length for the prefill, then the cached tokens.
                first, last = row["prompt_tokens"], row["tokens_written"]
                shown = range(first, last + 1) if row["cell"] == 0 else (first + 2, first + 3)
                assert set(found.columns["step"].tolist()) <= set(shown)
                assert (found.columns["token"] < found.columns["step"]).all()
    assert {m.header.site for m in maps} == {"write", "read"}
