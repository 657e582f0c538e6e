"""Shrinking with a bench of our own in place of the engine: which candidates pass, what is kept, what is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from kvspec.cli import main
from kvspec.errors import EngineError, RecordsError
from kvspec.maps import explicit, read_map, write_map
from kvspec.replay import shrink as module
from kvspec.replay.case import Case, load_cases
from kvspec.replay.shrink import Shrunk, _Shrinking
from tests.test_replay import fault_map

GOLDEN, CHANGED, OTHER = [1, 2, 3, 5], [1, 2, 3, 4], [9, 9, 9, 9]


class Bench:
    """An engine in which three flips together change the answer, and one other flip breaks it."""

    def __init__(self, whole: Any) -> None:
        self.environment = {"vllm": "0"}
        self.columns = whole.columns
        self.culprits, self.breaker = {5, 40, 41}, 60
        self.batches: list[int] = []
        self.damage: dict[str, Any] = {}

    def request(self, case: int, events: Any) -> Any:
        assert case == 0
        return events

    def rows(self, events: Any) -> set[int]:
        names = ("layer", "kv", "head", "token", "elem", "bit")
        sites = list(zip(*(self.columns[n].tolist() for n in names), strict=True))
        return {sites.index(site) for site in zip(*(events[n].tolist() for n in names), strict=True)}

    def run(self, requests: Iterable[Any], *, record: bool) -> Iterator[tuple[int, Any]]:
        from kvspec.engine.events import Answer

        assert record
        requests = list(requests)
        self.batches.append(len(requests))
        for index, events in reversed(list(enumerate(requests))):
            rows = set() if events is None else self.rows(events)
            tokens = CHANGED if self.culprits <= rows else OTHER if len(rows) == 3 else GOLDEN
            changes = None
            if events is not None:
                changes = {
                    n: events[n].astype(np.int64) for n in ("step", "layer", "kv", "head", "token", "elem", "target")
                }
                changes["before"] = np.full(len(rows), 0x3F80)
                changes["after"] = 0x3F80 ^ (1 << events["bit"].astype(np.int64))
                for name in ("before", "after"):
                    changes[f"{name}_value"] = changes[name] << 16
            facts = {"planned": len(rows), "landed": len(rows), "read_back": len(rows), "mismatches": 0}
            facts |= {"exposed": 0, "restored": 0}
            yield (
                index,
                Answer(
                    token_ids=tokens,
                    text=str(tokens),
                    finish_reason="length",
                    written=9,
                    preemptions=0,
                    nonfinite_at=0 if self.breaker in rows else None,
                    changes=changes,
                    **(facts | self.damage),
                ),
            )


class Silent:
    def phase(self, text: str) -> None: ...

    def start(self, total: int) -> None: ...

    def done(self) -> None: ...


@pytest.fixture
def case(tmp_path: Path) -> Case:
    write_map(explicit(fault_map()), tmp_path / "a.parquet")
    (found,) = load_cases([tmp_path / "a.parquet"])
    assert found.flips > 70
    return found


def shrunk(case: Case, until: Any, bench: Bench | None = None, right: Any = None) -> Shrunk:
    return _Shrinking(case, until, bench or Bench(case.maps[0]), Silent(), right).run()  # type: ignore[arg-type]


def without_breaker(case: Case) -> Bench:
    bench = Bench(case.maps[0])
    bench.breaker = -1
    return bench


def test_until_same_keeps_what_the_whole_map_answers(case: Case, tmp_path: Path) -> None:
    bench = without_breaker(case)
    result = shrunk(case, "same", bench)
    assert result.minimal
    assert len(result.fault_map) == 3
    assert bench.rows(result.fault_map.columns) == bench.culprits
    assert result.runs == sum(bench.batches)
    assert max(bench.batches) <= module.AT_ONCE

    header = result.fault_map.header
    assert header.derived_from == case.maps[0].id
    assert dict(header.record or {}) == {
        "token_ids": CHANGED,
        "golden_token_ids": GOLDEN,
        "finish_reason": "length",
        "flips_landed": 3,
        "environment": {"vllm": "0"},
    }
    write_map(result.fault_map, tmp_path / "least.parquet")
    assert read_map(tmp_path / "least.parquet").id == result.fault_map.id
    assert [f.before for f in result.flips] == [1.0] * 3
    assert all(f.after_code == 0x3F80 ^ 1 << f.bit for f in result.flips)
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("until", ["due", "nan", "differs"])
def test_one_flip_that_breaks_it_is_enough(until: str, case: Case) -> None:
    bench = Bench(case.maps[0])
    assert bench.rows(shrunk(case, until, bench).fault_map.columns) == {bench.breaker}


def test_until_wrong_asks_the_grader(case: Case) -> None:
    bench = without_breaker(case)
    result = shrunk(case, "wrong", bench, lambda text: text != str(CHANGED))
    assert bench.rows(result.fault_map.columns) == bench.culprits


@pytest.mark.parametrize(("until", "right"), [("wrong", lambda _: False), ("same", None)])
def test_an_outcome_of_the_fault_free_request_is_refused(until: str, right: Any, case: Case) -> None:
    bench = without_breaker(case)
    bench.culprits = {10**9}
    with pytest.raises(RecordsError) as error:
        shrunk(case, until, bench, right)
    assert "without any flip" in error.value.diagnostics[0].message


def test_until_sdc_takes_any_finite_answer_that_is_not_golden(case: Case) -> None:
    bench = without_breaker(case)
    result = shrunk(case, "sdc", bench)
    assert len(result.fault_map) == 3
    assert not set(result.fault_map.header.record or {}) - {
        "token_ids", "golden_token_ids", "finish_reason", "flips_landed", "environment",
    }  # fmt: skip


def test_an_outcome_that_the_whole_map_does_not_have_is_refused(case: Case) -> None:
    with pytest.raises(RecordsError) as error:
        shrunk(case, "sdc")  # the breaker makes it due
    assert "the outcome is not `sdc`" in error.value.diagnostics[0].message


def test_ctrl_c_keeps_the_best_so_far(case: Case) -> None:
    class Interrupted(Bench):
        def run(self, requests: Iterable[Any], *, record: bool) -> Iterator[tuple[int, Any]]:
            if len(self.batches) == 3:
                raise KeyboardInterrupt
            return super().run(requests, record=record)

    result = shrunk(case, "due", Interrupted(case.maps[0]))
    assert not result.minimal
    assert 1 < len(result.fault_map) < case.flips


def test_flips_that_did_not_land_end_it(case: Case) -> None:
    bench = Bench(case.maps[0])
    bench.damage = {"read_back": 0}
    with pytest.raises(EngineError) as error:
        shrunk(case, "due", bench)
    assert error.value.diagnostics[0].code == "KVS404"


def test_values_that_json_has_no_word_for() -> None:
    assert module._plain(float("inf")) == "inf"
    assert module._plain(float("nan")) == "nan"
    assert module._plain(1.5) == 1.5


def test_a_map_without_flips_is_refused(tmp_path: Path) -> None:
    whole = explicit(fault_map())
    from kvspec.maps.trial import subset

    empty = subset(whole, np.zeros(len(whole), bool))
    write_map(replace(empty, header=replace(empty.header, trial=None)), tmp_path / "a.json")
    (case,) = load_cases([tmp_path / "a.json"])
    with pytest.raises(RecordsError) as error:
        module.shrink(case, "sdc", case.model, Silent())
    assert "holds no flips" in error.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--until", "wrong"], "needs --right REGEX, or --against RUN"),
        (["--until", "wrong", "--right", "("], "--right is no pattern"),
        (["--right", "Paris"], "--right goes with --until wrong"),
        (["--until", "better"], "'better' is not one of"),
    ],
)
def test_wrong_usage_is_told_before_the_engine_is_looked_for(options: list[str], said: str, tmp_path: Path) -> None:
    write_map(fault_map(), tmp_path / "a.parquet")
    done = CliRunner().invoke(main, ["shrink", str(tmp_path / "a.parquet"), *options])
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_one_map_is_shrunk_at_a_time(case: Case, tmp_path: Path) -> None:
    write_map(fault_map(), tmp_path / "b.parquet")
    done = CliRunner().invoke(main, ["shrink", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds several maps" in done.output
    both = replace(case, maps=case.maps * 2)
    with pytest.raises(RecordsError) as error:
        module.shrink(both, "sdc", case.model, Silent())
    assert "two maps of one trial" in error.value.diagnostics[0].message
