"""KL divergence and top-1 agreement from recorded logprobs, and records of runs that have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kvspec.plan import Trial
from kvspec.records import SCHEMA, Record, RunStore
from kvspec.records.schema import LATER
from kvspec.report.html import html_report
from kvspec.score import score_run, score_trials
from kvspec.score.drift import kl_divergence
from kvspec.score.trials import to_table
from tests.run_folders import crashed, make_plan, masked, sdc, write_run

PLAN = make_plan(prompts=2, per_prompt=5)
K = 3


def with_logprobs(record: Record, seed: int, nan_at: int | None = None) -> Record:
    """Three likeliest tokens per position, the chosen one first; probabilities drawn from `seed`."""
    rng = np.random.default_rng(seed)
    length = len(record.token_ids)
    shares = np.sort(rng.dirichlet(np.ones(5), length), axis=1)[:, ::-1][:, :K]
    values = np.log(shares).astype(np.float32)
    if nan_at is not None:
        values[nan_at] = np.nan
    ids = np.asarray(record.token_ids)[:, None] + np.array([0, 1000, 2000])
    return replace(record, logprob_ids=ids.reshape(-1).tolist(), logprobs=values.reshape(-1).tolist())


def everywhere(effect: Callable[[Trial, Record], Record]) -> Callable[[Trial, Record], Record]:
    """Golden and controls by their request, fault trials by `effect`."""

    def change(trial: Trial, record: Record) -> Record:
        return effect(trial, record) if trial.kind == "fault" else with_logprobs(record, trial.request)

    return change


def test_equal_distributions_do_not_diverge(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, everywhere(lambda t, r: with_logprobs(r, t.request)))
    for cell in score_run(run).cells:
        assert cell.logprobs.trials == 10
        assert cell.logprobs.kl_mean == pytest.approx(0.0, abs=1e-6)
        assert cell.logprobs.top1_agreement_mean == 1.0
    page = html_report(run)
    section = page[page.index('<section id="logprobs"') :].partition("</section>")[0]
    assert section.count("100.0%") == len(score_run(run).cells)


def test_only_positions_with_the_same_context_count(tmp_path: Path) -> None:
    """`sdc` differs from token 3 on: positions 0 to 3 have the same context, and at 3 the choice differs."""
    run = write_run(tmp_path / "run", PLAN, everywhere(lambda t, r: with_logprobs(sdc(r), 100 + t.trial)))
    trial = Trial("fault", 0, 1, 2)
    clean, bad = masked(Trial("golden", -1, 1, 0)), sdc(masked(trial))
    p, q = with_logprobs(clean, 1), with_logprobs(bad, 102)
    pair = [np.array(x, kind).reshape(-1, K)[:4] for x, kind in ((p.logprobs, np.float32), (q.logprobs, np.float32))]
    ids = [np.array(x, np.uint32).reshape(-1, K)[:4] for x in (p.logprob_ids, q.logprob_ids)]
    expected = kl_divergence(*pair, golden_ids=ids[0], faulty_ids=ids[1]).mean()
    _, batches = score_trials(run)
    rows = [row for batch in batches for row in to_table(batch).to_pylist()]
    (row,) = [row for row in rows if row["trial_id"] == trial.id]
    assert row["kl"] == pytest.approx(expected)
    assert row["top1_agreement"] == 0.75
    assert score_run(run).cells[0].logprobs.top1_agreement_mean == 0.75


def test_nan_and_crashes_give_no_number(tmp_path: Path) -> None:
    def effect(trial: Trial, record: Record) -> Record:
        if trial.trial == 0:
            return with_logprobs(record, trial.request, nan_at=4)
        if trial.trial == 1:
            return with_logprobs(sdc(record), trial.request, nan_at=7)  # beyond the shared context
        return crashed(record) if trial.trial == 2 else record

    cell = score_run(write_run(tmp_path / "run", PLAN, everywhere(effect))).cells[0]
    assert cell.logprobs.trials == 2
    assert cell.logprobs.kl_mean is not None
    assert np.isfinite(cell.logprobs.kl_mean)


def test_without_logprobs_there_are_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    cell = score_run(run).cells[0]
    assert (cell.logprobs.trials, cell.logprobs.kl_mean, cell.logprobs.top1_agreement_mean) == (0, None, None)
    _, batches = score_trials(run)
    assert all(to_table(batch).column("kl").null_count == batch.batch.num_rows for batch in batches)


def test_logprobs_that_do_not_fit_their_tokens_are_not_used(tmp_path: Path) -> None:
    def short(trial: Trial, record: Record) -> Record:
        good = with_logprobs(record, trial.request)
        return replace(good, logprobs=good.logprobs[:-1]) if trial.id == "c0/p0/t0" else good  # type: ignore[index]

    run = write_run(tmp_path / "run", PLAN, everywhere(short), rows=10_000)
    scores = score_run(run)
    assert scores.cells[0].logprobs.trials == 0
    assert scores.cells[0].logprobs.unusable == scores.cells[0].exact_match.n
    assert any(w.startswith("logprobs of ") and "do not compare" in w for w in scores.warnings)


def test_logprobs_that_are_not_finite_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    def broken(trial: Trial, record: Record) -> Record:
        good = with_logprobs(record, trial.request)
        assert good.logprobs is not None
        return replace(good, logprobs=[math.nan, *good.logprobs[1:]]) if trial.id == "c0/p0/t0" else good

    scores = score_run(write_run(tmp_path / "run", PLAN, everywhere(broken)))
    first = scores.cells[0]
    assert (first.logprobs.unusable, first.logprobs.trials) == (1, first.exact_match.n - 1)
    assert [cell.logprobs.unusable for cell in scores.cells[1:]] == [0] * (len(scores.cells) - 1)
    (said,) = [w for w in scores.warnings if "do not compare" in w]
    assert (
        said
        == f"logprobs of 1 trial do not compare (not finite, or not k per token) and are in no mean: {first.plan.name}"
    )


@pytest.mark.parametrize("columns", [LATER, LATER[-1:]], ids=["logprobs", "token_ends"])
def test_parts_from_before_some_columns_are_read(tmp_path: Path, columns: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run", PLAN)
    before = score_run(run)
    for part in (run / "parts").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.drop_columns(list(columns)), part)
    assert score_run(run) == before
    assert RunStore.open(run).table().schema.equals(SCHEMA, check_metadata=False)
    assert RunStore.open(run).table(["trial_id", "logprobs"]).column_names == ["trial_id", "logprobs"]
