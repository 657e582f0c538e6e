"""What a single flip does by its place: against places that fault maps give, and against outcomes that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from kvspec.maps.generate import events_of
from kvspec.maps.trial import maps_of_trial
from kvspec.models import Geometry
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import Record
from kvspec.report import render_text, to_json
from kvspec.report.heat import anatomy_charts
from kvspec.report.html import html_report
from kvspec.report.limits import Limits
from kvspec.report.palette import PAPER
from kvspec.score import Proportion, score_run
from kvspec.score.anatomy import Anatomy, Sites, site_maps
from kvspec.spec.model import Fault, Rate, Selector
from kvspec.stats.association import association, slope
from kvspec.stats.exact import Strata
from tests.run_folders import make_plan, sdc, write_run

GPT2 = Geometry(12, 12, 64)
SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "report.schema.json").read_text(encoding="utf-8"))


def plan_of(per_prompt: int = 500) -> Plan:
    """About one flip a trial: anywhere, in exponents, and two cells that may not count."""
    faults = (
        Fault("Anywhere", 0, "KV_WRITE", "random", Rate("per_bit", 2.6e-7)),
        Fault("Late", 1, "KV_WRITE", "random", Rate("per_bit", 5.2e-7), where=Selector(layers=((6, None),))),
        Fault("Burst", 2, "KV_WRITE", "burst", Rate("per_bit", 2.6e-7), burst_len=2),
        Fault("Reads", 3, "KV_READ", "random", Rate("per_bit", 2e-8)),
    )
    return compile_plan(replace(make_plan(per_prompt=per_prompt).spec, faults=faults))


def where(plan: Plan, trial: Trial, record: Record) -> dict[str, np.ndarray]:
    """The flips of a trial by its fault maps, which score knows nothing of."""
    maps = maps_of_trial(plan, trial, GPT2, prompt_len=record.prompt_tokens, written=record.tokens_written)
    return events_of(maps)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str, str], list[int]]]:
    """Bits from 10 on in K, from 14 on in V show in 90 %, others in 10 %; (map, row, column) -> [visible, all]."""
    plan = plan_of()
    truth: dict[tuple[str, str, str], list[int]] = {}
    chance = np.random.default_rng(1)

    def change(trial: Trial, record: Record) -> Record:
        if trial.kind != "fault":
            return record
        events = where(plan, trial, record)
        found = len(events["bit"])
        record = replace(record, flips_planned=found, flips_landed=found, flips_exposed=0)
        if found != 1:
            return record
        bit, kv, layer, token = (int(events[name][0]) for name in ("bit", "kv", "layer", "token"))
        shows = chance.random() < (0.9 if bit >= 10 + 4 * kv else 0.1)
        if trial.cell < 2:
            phase = "generated" if token >= record.prompt_tokens else "prompt"
            tenth = 10 * token // record.tokens_written
            for key in (
                ("bit", f"{bit}", "KV"[kv]),
                ("layer", f"{layer}", "KV"[kv]),
                ("position", f"{10 * tenth}-{10 * tenth + 10} %", phase),
            ):
                counts = truth.setdefault(key, [0, 0])
                counts[0] += shows
                counts[1] += 1
        return sdc(record) if shows else record

    return write_run(tmp_path_factory.mktemp("anatomy") / "run", plan, change, rows=500), truth


def anatomy_of(run: Path) -> Anatomy:
    found = score_run(run).anatomy
    assert found is not None
    return found


def test_every_flip_is_where_its_map_says(run: tuple[Path, dict[tuple[str, str, str], list[int]]]) -> None:
    folder, truth = run
    anatomy = anatomy_of(folder)
    assert anatomy.unlocated == 0
    found = {
        (one.name, square.row, square.column): [square.visible.k, square.visible.n]
        for one in anatomy.maps
        for square in one.squares
    }
    assert [one.name for one in anatomy.maps] == ["bit", "layer", "position"], "bit-layer would hold 4 a square"
    assert found == truth
    assert anatomy.trials == sum(n for (name, *_), (_, n) in truth.items() if name == "bit")
    assert [square.row for square in anatomy.maps[0].squares[:2]] == ["15", "15"], "the highest bit first"


def test_tests_find_what_matters_and_nothing_else(run: tuple[Path, dict[tuple[str, str, str], list[int]]]) -> None:
    tests = {test.name: test for test in anatomy_of(run[0]).tests}
    assert tests["bits"].p_holm < 1e-9
    assert tests["K against V"].p_holm < 0.05
    assert tests["K against V"].difference is not None
    assert tests["K against V"].difference.value > 0
    for name in ("layers", "depth", "prompt against generated tokens", "position"):
        assert tests[name].p_holm > 0.05, name


def test_the_report_says_it_in_every_form(run: tuple[Path, dict[tuple[str, str, str], list[int]]]) -> None:
    scores = score_run(run[0])
    assert scores.anatomy is not None
    said = " ".join(scores.verdict)
    assert f"Places of {scores.anatomy.trials:,} single flips are known" in said
    assert "Bits: they differ (chi2 = " in said
    assert "K against V: a flip in K shows more often" in said
    assert "Layers: no difference is shown" in said
    text = render_text(scores)
    assert "Single flips: share of the trials with one flip" in text
    assert "prompt against generated tokens" in text
    data = to_json(scores)
    jsonschema.validate(json.loads(json.dumps(data)), SCHEMA)
    assert data["anatomy"]["trials"] == scores.anatomy.trials
    html = html_report(run[0])
    assert 'id="single"' in html
    charts = {chart.key: chart for chart in anatomy_charts(scores, PAPER, Limits())}
    assert list(charts) == ["single-bit", "single-layer", "single-position"]
    assert charts["single-bit"].head == ("Bit", "K", "V")
    k, n = run[1]["bit", "15", "K"]
    assert charts["single-bit"].rows[0][:2] == ("15", f"{k / n:.1%}")


def test_the_map_of_bits_and_layers_comes_with_trials_enough() -> None:
    n = np.arange(400)
    sites = Sites(n % 3 == 0, n % 2, n % 4, n % 2, n % 5, n % 10, n % 2 == 0)
    found = {one.name: one for one in site_maps(sites)}
    squares = {(square.row, square.column): square.visible for square in found["bit-layer"].squares}
    assert len(squares) == 20
    assert squares["3", "4"] == Proportion.of(int(((n % 20 == 19) & (n % 3 == 0)).sum()), 20)
    few = Sites(*(getattr(sites, name)[:199] for name in Sites.__slots__))
    assert "bit-layer" not in [one.name for one in site_maps(few)]


def test_too_few_or_another_shape_give_none(run: tuple[Path, object], tmp_path: Path) -> None:
    few = write_run(tmp_path / "few", plan_of(20))
    assert score_run(few).anatomy is None
    assert to_json(score_run(few))["anatomy"] is None
    # Records of a model of another shape: what enumerates to another number of flips is no place.
    plan = plan_of(200)
    wrong = write_run(
        tmp_path / "wrong", plan, lambda t, r: replace(r, flips_planned=1, flips_landed=1) if t.cell >= 0 else r
    )
    found = score_run(wrong).anatomy
    assert found is None or found.unlocated > 0
    assert run[0].is_dir()


def test_association_of_two_groups_is_mantel_haenszel() -> None:
    rng = np.random.default_rng(5)
    stratum, group = rng.integers(0, 6, 900), rng.integers(0, 2, 900)
    hits = rng.random(900) < 0.2 + 0.1 * group + 0.05 * stratum
    k1, n1, k2, n2 = (
        np.bincount(stratum[rows], minlength=6)
        for rows in (hits & (group == 0), group == 0, hits & (group == 1), group == 1)
    )
    total, marked = n1 + n2, k1 + k2
    mean = n1 * marked / total
    variance = n1 * n2 * marked * (total - marked) / (total**2 * (total - 1.0))
    test = association(hits, group, stratum)
    line = slope(hits, group, stratum)
    assert test is not None
    assert line is not None
    assert test.chi2 == pytest.approx((k1 - mean).sum() ** 2 / variance.sum())
    assert line.z**2 == pytest.approx(test.chi2), "two groups are a trend"
    assert test.p == pytest.approx(line.p)
    assert test.p == pytest.approx(Strata.of(k1, n1, k2, n2).different(), rel=0.5)


def test_association_keeps_its_level_and_finds_an_effect() -> None:
    rng = np.random.default_rng(11)
    alarms = trends = found = 0
    for _ in range(400):
        stratum, group = rng.integers(0, 20, 400), rng.integers(0, 8, 400)
        # Strata differ widely; the group does nothing, but is more frequent in some strata.
        group = np.where(rng.random(400) < 0.3, stratum % 8, group)
        hits = rng.random(400) < 0.05 + 0.04 * stratum
        test, line = association(hits, group, stratum), slope(hits, group, stratum)
        assert test is not None
        assert line is not None
        alarms += test.p < 0.05
        trends += line.p < 0.05
        more = association(hits | ((group == 3) & (rng.random(400) < 0.5)), group, stratum)
        found += more is not None and more.p < 0.05
    assert 8 <= alarms <= 36  # 20 expected; 3.7 standard deviations
    assert 6 <= trends <= 36
    assert found > 300
    assert association([True, True], [0, 1], [0, 0]) is None
    assert slope([True, False], [1, 1], [0, 0]) is None
