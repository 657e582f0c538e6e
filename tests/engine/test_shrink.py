"""Delta debugging on the engine: few flips, none of which can be left out, and the same answer again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kvspec.cli import main
from kvspec.maps import explicit, read_map, write_map
from kvspec.maps.runs import Run
from kvspec.maps.trial import subset

FAULTS = [
    {"name": "F", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 2e-2}, "bits": "sign"},
    {"name": "NaN", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 0.5}, "bits": "exponent",
     "where": {"cache": ["V"], "tokens": ["2-3"]}},
]  # fmt: skip


def kvspec(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


class Silent:
    def phase(self, text: str) -> None: ...

    def warn(self, warning: Any) -> None: ...

    def start(self, total: int, done: int = 0) -> None: ...

    def trial(self, record: Any, identical: Any) -> None: ...

    def step(self) -> None: ...

    def done(self) -> None: ...


@pytest.fixture(scope="module")
def worst(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A map that changes the answer, and one that breaks it."""
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.records import RunStore
    from kvspec.spec import load_spec

    folder = tmp_path_factory.mktemp("shrink")
    spec = {
        "kvspec": 1,
        "name": "shrink",
        "model": {"id": str(gpt2)},
        "prompts": {"inline": ["Who was the first US president?"]},
        "generation": {"max_tokens": 10},
        "faults": FAULTS,
        "trials": 3,
        "controls": {"null_trials": 0, "golden_repeats": 0},
    }
    (folder / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")
    run_campaign(compile_plan(load_spec(folder / "spec.yaml")), folder / "run", Silent())
    rows = {row["trial_id"]: row for row in RunStore.open(folder / "run").table().to_pylist()}
    golden = rows["golden/p0"]["token_ids"]
    chosen = {
        "sdc": next(i for i, r in rows.items() if r["token_ids"] != golden and r["nonfinite_at"] is None),
        "due": next(i for i, r in rows.items() if r["nonfinite_at"] is not None),
    }
    source = Run(folder / "run")
    found = {}
    for until, trial in chosen.items():
        (fault_map,) = source.maps({trial})
        found[until] = folder / f"{until}.parquet"
        write_map(fault_map, found[until])
    return found


@pytest.mark.parametrize("until", ["sdc", "due"])
def test_the_fewest_flips_and_their_replay(until: str, worst: dict[str, Path], tmp_path: Path) -> None:
    least = tmp_path / "least.parquet"
    done = kvspec("shrink", worst[until], "--until", until, "--out", least, "--format", "json", "--quiet")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    whole, reduced = explicit(read_map(worst[until])), read_map(least)
    assert said["minimal"]
    assert said["flips_before"] == len(whole)
    assert 0 < len(reduced) == len(said["flips"]) < len(whole) / 10
    assert reduced.header.derived_from == whole.id

    # A part of the whole map, with the values that were really in the cache.
    assert whole.columns is not None
    assert reduced.columns is not None
    names = ("layer", "kv", "head", "token", "elem", "bit")
    sites = set(zip(*(whole.columns[n].tolist() for n in names), strict=True))
    assert set(zip(*(reduced.columns[n].tolist() for n in names), strict=True)) <= sites
    by_element = itertools.groupby(
        said["flips"], key=lambda f: [f[n] for n in ("layer", "kv", "head", "token", "elem")]
    )
    for _, flips in by_element:
        group = list(flips)
        mask = sum(1 << f["bit"] for f in group)
        assert {f["before_code"] ^ f["after_code"] for f in group} == {mask}
        bits = np.array([group[0]["before_code"] << 16], dtype=np.uint32)
        assert float(bits.view(np.float32)[0]) == group[0]["before"]

    # 1-minimal: without any one of them the outcome is gone.
    parts = tmp_path / "parts"
    parts.mkdir()
    for i in range(len(reduced)):
        part = subset(reduced, np.arange(len(reduced)) != i)
        write_map(part, parts / f"{i}.json")
    again = kvspec("replay", least, parts, "--format", "json", "--quiet")
    assert again.exit_code == 0, again.output
    first, *rest = json.loads(again.stdout)["trials"]
    assert (first["verdict"], first["outcome"]) == ("identical", until)
    assert first["text"] == said["text"]
    assert len(rest) == len(reduced)
    assert until not in [trial["outcome"] for trial in rest]


def test_a_map_without_the_outcome_is_refused(worst: dict[str, Path]) -> None:
    done = kvspec("shrink", worst["sdc"], "--until", "due", "--quiet")
    assert done.exit_code == 2
    assert "the outcome is not `due`" in done.output


def test_ctrl_c_keeps_the_best_so_far(worst: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.replay import shrink

    original = shrink._Shrinking._test
    rounds = iter(range(100))

    def interrupted(self: Any, candidates: Any) -> Any:
        if next(rounds) == 3:
            raise KeyboardInterrupt
        return original(self, candidates)

    monkeypatch.setattr(shrink._Shrinking, "_test", interrupted)
    out = tmp_path / "best.json"
    done = kvspec("shrink", worst["sdc"], "--out", out)
    assert done.exit_code == 130
    assert "interrupted: fewer may do" in done.output
    assert 1 < len(read_map(out)) < len(explicit(read_map(worst["sdc"])))
    monkeypatch.undo()
    assert kvspec("replay", out).exit_code == 0


def test_a_map_that_is_empty_is_refused(worst: dict[str, Path], tmp_path: Path) -> None:
    whole = explicit(read_map(worst["sdc"]))
    write_map(subset(whole, np.zeros(len(whole), bool)), tmp_path / "empty.json")
    done = kvspec("shrink", tmp_path / "empty.json")
    assert done.exit_code == 2
    assert "holds no flips" in done.output
