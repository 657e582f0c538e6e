"""Campaigns on real vLLM with tiny models: what lands, what leaks, and what must not matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvspec.errors import EngineError, RecordsError
from kvspec.score import score_run
from kvspec.stats.design import plan_looks
from tests.engine.rows import golden, ids

Run = Callable[..., dict[str, dict[str, Any]]]

PROMPTS = [
    "Explain quantum entanglement in one sentence.",
    "Who was the first US president?",
    "The capital of France is",
    "a" * 70,  # over two cache blocks of 32 tokens
]


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": {"id": str(folder)},
        "prompts": {"inline": PROMPTS},
        "generation": {"max_tokens": 12},
        "faults": [
            {"name": "Rare", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-5}},
            {
                "name": "Often",
                "model": "random",
                "site": "KV_WRITE",
                "rate": {"per_bit": [1e-3, 0.3]},
                "bits": "mantissa",
            },
            {"name": "Burst", "model": "burst", "site": "KV_WRITE", "rate": {"per_bit": 1e-3}},
            {"name": "Page", "model": "page_local", "site": "KV_WRITE", "rate": {"per_page": 0.3}},
            {
                "name": "Msb",
                "model": "msb_biased",
                "msb_policy": "FP16_EXPONENT",
                "site": "KV_WRITE",
                "rate": {"per_element": 1e-2},
                "where": {"layers": [1], "cache": ["V"], "tokens": "prompt"},
            },
        ],
        "controls": {"null_trials": 2, "golden_repeats": 2},
        "trials": 3,
        "seed": 42,
    }
    return {**base, **changes}


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_every_planned_flip_lands_and_controls_are_clean(
    model: str, storage: str, run: Run, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    rows = run(spec(folder, model={"id": str(folder), "kv_cache_dtype": storage}))
    assert len(rows) == len(PROMPTS) * (1 + 2 + 2 + 6 * 3)
    reference = golden(rows)
    for row in rows.values():
        assert row["error"] is None
        assert row["flips_landed"] == row["flips_planned"]
        assert len(row["token_ids"]) == 12
        assert row["tokens_written"] == row["prompt_tokens"] + 11
        if row["kind"] != "fault":
            assert row["flips_planned"] == 0
            assert row["token_ids"] == reference[row["request"]], row["trial_id"]
    by_cell = [[r for r in rows.values() if r["cell"] == cell] for cell in range(6)]
    for cell in (1, 2, 3, 4, 5):
        assert sum(r["flips_landed"] for r in by_cell[cell]) > 0
    changed = [sum(r["token_ids"] != reference[r["request"]] for r in cell) for cell in by_cell]
    assert changed[2] > len(by_cell[2]) / 2  # 30 % of all mantissa bits
    assert len({tuple(r["token_ids"]) for r in by_cell[2]}) > len(PROMPTS)  # trials differ from each other


QUANTIZED_FAULTS = [
    {"name": "Bits", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-4, 0.2]}},
    {"name": "Burst", "model": "burst", "site": "KV_WRITE", "rate": {"per_bit": 1e-3}},
    {
        "name": "Nibble",
        "model": "msb_biased",
        "msb_policy": "INT4_NIBBLE",
        "site": "KV_WRITE",
        "rate": {"per_element": 1e-2},
        "where": {"layers": [1], "cache": ["K"], "tokens": "decode"},
    },
]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("storage", ["fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "int4_per_token_head"])
def test_flips_land_in_quantized_caches(model: str, storage: str, run: Run, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    rows = run(spec(folder, model={"id": str(folder), "kv_cache_dtype": storage}, faults=QUANTIZED_FAULTS))
    reference = golden(rows)
    for row in rows.values():
        assert row["flips_landed"] == row["flips_planned"], row
        if row["kind"] != "fault":
            assert row["token_ids"] == reference[row["request"]], row["trial_id"]
    cells = [[row for row in rows.values() if row["cell"] == cell] for cell in range(4)]
    assert all(sum(row["flips_landed"] for row in cell) > 0 for cell in cells)
    assert sum(row["token_ids"] != reference[row["request"]] for row in cells[1]) > len(cells[1]) / 2


def test_outcomes_depend_on_the_trial_alone(gpt2: Path, run: Run) -> None:
    first = ids(run(spec(gpt2)))
    for settings in (
        {},
        {"submission_seed": 5},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 32, "max_num_seqs": 8},
        {"block_size": 64},
    ):
        assert ids(run(spec(gpt2), **settings)) == first, settings


def test_preempted_trials_get_the_same_faults_again(gpt2: Path, run: Run) -> None:
    # Long answers and a cache for a handful of requests: the scheduler must take blocks away.
    long = spec(gpt2, generation={"max_tokens": 60}, trials=1)
    roomy = run(long)
    bytes_per_block = 32 * 4 * 2 * 4 * 32 * 4
    tight = run(long, kv_cache_gib=14 * bytes_per_block / 2**30)
    assert sum(row["preemptions"] for row in tight.values()) > 0
    assert ids(tight) == ids(roomy)
    for trial, row in tight.items():
        assert row["flips_landed"] == row["flips_planned"] == roomy[trial]["flips_landed"]


NAN_FAULTS = [
    # Every exponent bit of V set wrong in a few rows: infinities and NaN for certain.
    {
        "name": "NaN",
        "model": "msb_biased",
        "msb_policy": "FP16_EXPONENT",
        "site": "KV_WRITE",
        "rate": {"per_bit": 0.5},
        "where": {"cache": ["V"]},
    }
]


def test_golden_rows_survive_nan_neighbours(gpt2: Path, run: Run) -> None:
    rows = run(
        spec(gpt2, faults=NAN_FAULTS, controls={"golden_repeats": 6, "null_trials": 6}, trials=6), max_num_seqs=6
    )
    reference = golden(rows)
    assert sum(row["nonfinite_at"] is not None for row in rows.values() if row["kind"] == "fault") > 0
    controls = [row for row in rows.values() if row["kind"] in ("golden_repeat", "null")]
    assert len(controls) == len(PROMPTS) * 12
    assert [row["trial_id"] for row in controls if row["token_ids"] != reference[row["request"]]] == []


def test_without_scrubbing_golden_rows_go_wrong(gpt2: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # The proof that the test above can fail.
    from kvspec.engine.vllm.taint import Taint

    monkeypatch.setattr(Taint, "hand_out", lambda *_: 0)
    rows = run(
        spec(gpt2, faults=NAN_FAULTS, controls={"golden_repeats": 6, "null_trials": 6}, trials=6), max_num_seqs=6
    )
    reference = golden(rows)
    controls = [row for row in rows.values() if row["kind"] in ("golden_repeat", "null")]
    assert any(row["token_ids"] != reference[row["request"]] for row in controls)


def test_an_interrupted_run_goes_on_where_it_stopped(
    gpt2: Path, run: Run, tmp_path: Path, listener: Callable[..., Any]
) -> None:
    whole = ids(run(spec(gpt2)))
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run(spec(gpt2), out=out, listener=listener(interrupt_after=30), max_num_seqs=8)
    from kvspec.records import RunStore

    kept = RunStore.open(out)
    assert kept.status == "interrupted"
    done = kept.done()
    assert 30 <= len(done) < len(whole)
    rest = listener()
    assert ids(run(spec(gpt2), out=out, listener=rest, max_num_seqs=8)) == whole
    assert {r.trial_id for r in rest.records} == set(whole) - done


def test_a_run_of_another_plan_is_refused_before_the_engine_starts(gpt2: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(spec(gpt2, trials=1), out=out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(RecordsError) as caught:
        run(spec(gpt2, trials=1, seed=43), out=out)
    assert caught.value.diagnostics[0].code == "KVS503"
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_prompts_that_do_not_fit_are_named(gpt2: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "never"
    with pytest.raises(EngineError) as caught:
        run(spec(gpt2, prompts={"inline": ["fine", "b" * 505]}), out=out)
    assert [d.code for d in caught.value.diagnostics] == ["KVS405"]
    assert "prompt 1" in caught.value.diagnostics[0].message
    assert not out.exists()


def test_cells_stop_early_and_an_interrupted_run_stops_them_at_the_same_looks(
    gpt2: Path, run: Run, listener: Any, tmp_path: Path
) -> None:
    """Each at the first look that finds its interval narrow enough; batch size and order change nothing."""
    target = {"confidence": 0.9, "margin": 0.15, "looks": 4}
    wanted = spec(gpt2, trials={"target": target})
    rows = run(wanted, max_num_seqs=8, submission_seed=3)
    assert all(row["flips_planned"] == row["flips_landed"] for row in rows.values())
    looks, reference = plan_looks(0.9, 0.15, 4, len(PROMPTS)), golden(rows)
    sizes = []
    for cell in sorted({row["cell"] for row in rows.values()} - {-1}):
        mine = [row for row in rows.values() if row["cell"] == cell]
        for rounds in looks.rounds:
            some = [row["token_ids"] == reference[row["request"]] for row in mine if row["trial"] < rounds]
            if looks.narrow(sum(some), len(some)):
                break
        assert len(mine) == len(some) == rounds * len(PROMPTS)
        sizes.append(len(mine))
    assert min(sizes) == looks.rounds[0] * len(PROMPTS)
    out = tmp_path / "looks"
    with pytest.raises(KeyboardInterrupt):
        run(wanted, out=out, listener=listener(interrupt_after=60))
    again = run(wanted, out=out)
    assert ids(again) == ids(rows)
    scores = score_run(out)
    assert scores.run.status == "complete"
    assert not any("partial" in text for text in scores.warnings)
    assert run(wanted, out=out) == again
    assert score_run(out).run.status == "complete"


def test_logprobs_are_recorded_and_compared(gpt2: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = run(spec(gpt2, generation={"max_tokens": 6, "logprobs": 3}, trials=1), out=out)
    for row in rows.values():
        assert len(row["logprob_ids"]) == len(row["logprobs"]) == 3 * len(row["token_ids"])
        if row["nonfinite_at"] is None:
            assert row["logprob_ids"][::3] == row["token_ids"]  # greedy: the likeliest one is chosen
            assert all(row["logprobs"][i] >= row["logprobs"][i + 1] for i in range(0, len(row["logprobs"]), 3))
            assert max(row["logprobs"]) <= 0.0
    for cell in score_run(out).cells:
        if cell.exact_match.k == cell.exact_match.n:
            assert cell.logprobs.kl_mean is not None
            assert cell.logprobs.kl_mean < 1.0
    assert any((cell.logprobs.kl_mean or 0.0) > 0.0 for cell in score_run(out).cells)


def test_an_answer_is_the_likeliest_of_the_choices(gpt2: Path, run: Run, tmp_path: Path) -> None:
    choices = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh")
    rows = run(spec(gpt2, generation={"max_tokens": 1, "choices": choices, "logprobs": 20}), out=tmp_path / "run")
    assert {row["text"] for row in rows.values()} <= set(choices)
    tokens = {row["text"]: row["token_ids"][0] for row in rows.values()}
    decided = 0
    for row in rows.values():
        # vLLM's logprobs are those of all tokens; the first choice among them is the likeliest one
        seen = [] if row["nonfinite_at"] is not None else [t for t in row["logprob_ids"] if t in tokens.values()]
        decided += len(seen) > 1
        assert row["token_ids"] == (seen[:1] or row["token_ids"])
        assert row["tokens_written"] == row["prompt_tokens"]
    assert decided > 20
    assert any(row["token_ids"][0] != row["logprob_ids"][0] for row in rows.values() if row["kind"] == "golden")


def test_a_choice_that_is_no_token_is_refused_before_the_engine_starts(gpt2: Path, run: Run) -> None:
    with pytest.raises(EngineError) as caught:
        run(spec(gpt2, generation={"max_tokens": 1, "choices": ["A", " B"]}))
    assert caught.value.diagnostics[0].code == "KVS409"
