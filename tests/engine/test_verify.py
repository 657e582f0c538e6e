"""The self-test must pass on a sound injector and fail on a broken one. Each test breaks one thing on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft7Validator

from kvspec import _native
from kvspec.cli import main
from tests.engine.sabotage import leave_a_trace

Sabotage = Callable[[pytest.MonkeyPatch], None]


def kvspec(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def spec(gpt2: Path, tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    rate = {"per_bit": 3e-3}
    fault = {"name": "Mine", "model": "random", "site": ["KV_WRITE", "KV_READ"], "rate": rate, "bits": "mantissa"}
    data = {"kvspec": 1, "name": "own", "model": {"id": str(gpt2)}, "prompts": {"inline": ["Who was the first"]}}
    path.write_text(json.dumps({**data, "faults": [fault], "trials": 1}), encoding="utf-8")
    return path


def run(spec: Path, tmp_path: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "certificate.json"
    done = kvspec("verify", spec, "--out", out, "--quiet", *(word for one in overrides for word in ("--set", one)))
    assert out.exists(), done.output
    return done.exit_code, json.loads(out.read_text(encoding="utf-8"))


def failed(certificate: dict[str, Any]) -> set[str]:
    return {check["name"] for check in certificate["checks"] if check["passed"] is False}


def test_a_sound_injector_passes(spec: Path, tmp_path: Path) -> None:
    code, certificate = run(spec, tmp_path)
    assert code == 0, certificate
    assert certificate["passed"]
    assert failed(certificate) == set()
    Draft7Validator(json.loads(_native.schema("certificate"))).validate(certificate)
    rows = {row["fault"]: row for row in certificate["faults"]}
    assert set(rows) >= {"random per bit", "burst of 4", "page_local", "msb FP16_EXPONENT", "reads per bit"}
    assert all(row["flips_planned"] == row["flips_measured"] > 0 for row in rows.values())
    own = [row for name, row in rows.items() if name.startswith("spec: Mine")]
    assert [row["mask"] for row in own] == ["7f", "7f"]
    assert own[1]["exposed"] > 5 * own[0]["exposed"]  # every read event is exposed anew


INT8 = ("model.kv_cache_dtype=int8_per_token_head", "faults[0].bits=all")


def test_scales_are_tested_where_a_format_has_them(spec: Path, tmp_path: Path) -> None:
    code, certificate = run(spec, tmp_path, *INT8)
    assert code == 0, certificate
    rows = {row["fault"]: row for row in certificate["faults"] if row["fault"].startswith("scales")}
    assert list(rows) == ["scales per bit", "scales, reads per bit"]
    for row in rows.values():
        assert (row["mask"], row["unit"], row["as_planned"]) == ("ffffffff", "bits", True)
        assert row["flips_planned"] == row["flips_measured"] > 0
    (sites,) = [check for check in certificate["checks"] if check["name"] == "sites"]
    assert sites["found"].startswith("144 of 144 sites change the logits: ")  # 4 * 2 * 4 rows three times, 8, 32, 4 * 2
    assert sites["found"].endswith(", scales of 4 layers x K, V")


def no_drawn_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan has faults of scales, and the injector draws none."""
    from kvspec.engine.table import TableData

    original = TableData.build

    def build(self: TableData, geometry: Any) -> Any:
        faults = tuple(replace(f, rate=0.0) if f.target == "scales" else f for f in self.faults)
        return original(replace(self, faults=faults), geometry)

    monkeypatch.setattr(TableData, "build", build)


def no_listed_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests list faults of scales, and the injector has only those of values."""
    from kvspec.engine.events import EventData

    original = EventData.build

    def build(self: EventData, geometry: Any) -> Any:
        kept = self.columns["target"] == 0
        starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.uint64)[self.starts.astype(np.int64)]
        columns = {name: column[kept] for name, column in self.columns.items()}
        return original(replace(self, starts=starts, columns=columns), geometry)

    monkeypatch.setattr(EventData, "build", build)


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        pytest.param(no_drawn_scales, {"read-back", "rates"}, id="drawn"),
        pytest.param(no_listed_scales, {"sites"}, id="listed"),
    ],
)
def test_scales_that_are_not_hit_fail(
    sabotage: Sabotage, noticed: set[str], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    code, certificate = run(spec, tmp_path, *INT8)
    assert code == 1
    assert failed(certificate) == noticed, certificate["checks"]


def wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.table import TableData

    original = TableData.build

    def build(self: TableData, geometry: Any) -> Any:
        faults = tuple(replace(f, mask=0x7FFF if f.mask == 0xFFFF else f.mask << 1 & 0xFFFF) for f in self.faults)
        return original(replace(self, faults=faults), geometry)

    monkeypatch.setattr(TableData, "build", build)


class Wrapped:
    """Step faults with some of them changed."""

    def __init__(self, faults: Any) -> None:
        self._faults = faults

    def __len__(self) -> int:
        return len(self._faults)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faults, name)


class Dropping(Wrapped):
    def layer_len(self, layer: int) -> int:
        return 0 if layer == 1 else int(self._faults.layer_len(layer))


class Shifted(Wrapped):
    def layer_len(self, layer: int) -> int:
        return int(self._faults.layer_len((layer + 1) % 4))

    def inject(self, layer: int, *args: Any, **kwargs: Any) -> None:
        self._faults.inject((layer + 1) % 4, *args, **kwargs)


def through(kind: type[Wrapped], step: str = "write_step") -> Sabotage:
    """Both tables give wrapped faults of writes, or of reads."""

    class Table:
        def __init__(self, table: Any) -> None:
            self._table = table

        def __getattr__(self, name: str) -> Any:
            method = getattr(self._table, name)
            return (lambda **rows: kind(method(**rows))) if name == step else method

    def sabotage(monkeypatch: pytest.MonkeyPatch) -> None:
        from kvspec.engine.events import EventData
        from kvspec.engine.table import TableData

        for data in (TableData, EventData):
            original = data.build
            monkeypatch.setattr(data, "build", lambda self, shape, original=original: Table(original(self, shape)))

    return sabotage


def repeating(along: str) -> Sabotage:
    """The flips of token 0 at every token, or of the first read event at every event, in the injector and in the plan
    too: only independence can tell."""

    def sabotage(monkeypatch: pytest.MonkeyPatch) -> None:
        from kvspec.engine.events import WRITE, EventData, Request
        from kvspec.engine.table import TableData
        from kvspec.verify import run

        original = run._Suite._expected
        planned: list[Request] = []

        def repeated(self: Any, trial: Any) -> Any:
            events = original(self, trial)
            prompt = self._prompts[trial.request]
            last = len(prompt) + run.NEW_TOKENS - 1
            if along == "token":
                first, others = (events["step"] == WRITE) & (events["token"] == 0), events["step"] != WRITE
                values = np.arange(last, dtype=np.uint32)
            else:
                first, others = events["step"] == len(prompt), events["step"] == WRITE
                values = np.arange(len(prompt), last + 1, dtype=np.uint32)
            columns = {n: np.concatenate([c[others], np.tile(c[first], len(values))]) for n, c in events.items()}
            columns[along] = np.concatenate([events[along][others], np.repeat(values, int(first.sum()))])
            planned.append(Request(prompt, self._plan.spec.generation, 0, columns))
            return columns

        def build(self: TableData, geometry: Any) -> Any:
            return EventData.of(self.storage_format, planned).build(geometry)

        monkeypatch.setattr(run._Suite, "_expected", repeated)
        monkeypatch.setattr(TableData, "build", build)

    return sabotage


def leaking_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.taint import Taint

    monkeypatch.setattr(Taint, "hand_out", lambda *_: 0)


def a_deaf_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults in V of the last layer are undone right after they were counted and read back: nobody reads them."""
    from kvspec.engine.vllm.cpu import CpuInjector

    original = CpuInjector._after_write

    def write(self: Any, layer: int, *rest: Any) -> None:
        saved = self.cache.words[layer].copy() if layer == 3 and self._cache is not None else None
        original(self, layer, *rest)
        if saved is not None:
            self.cache.words[layer][:] = saved

    monkeypatch.setattr(CpuInjector, "_after_write", write)


def deaf_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of reads are taken back right after they were counted and read back, before attention."""
    from kvspec.engine.vllm.cpu import CpuInjector

    original = CpuInjector._before_read

    def read(self: Any, layer: int) -> None:
        original(self, layer)
        if layer == 3 and self._reads is not None:
            self._reads.restore(self.cache.words[layer], format=self._format)

    monkeypatch.setattr(CpuInjector, "_before_read", read)


def a_trace_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the flips of a read is not taken back, and the counts do not tell."""
    leave_a_trace(monkeypatch, lambda _: True)


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        pytest.param(wrong_mask, {"read-back", "masks"}, id="wrong mask"),
        pytest.param(through(Dropping), {"read-back", "rates", "sites"}, id="dropped flips"),
        pytest.param(through(Shifted), {"read-back", "sites"}, id="layer off by one"),
        pytest.param(repeating("token"), {"independence"}, id="same bits for every token"),
        pytest.param(repeating("step"), {"independence"}, id="same bits at every read"),
        pytest.param(through(Dropping, "read_step"), {"read-back", "rates", "sites"}, id="dropped reads"),
        pytest.param(through(Shifted, "read_step"), {"read-back", "sites"}, id="reads of another layer"),
        pytest.param(a_trace_of_reads, {"read-back"}, id="a trace of reads"),
        pytest.param(deaf_reads, {"sites"}, id="reads that attention does not see"),
        pytest.param(leaking_blocks, {"isolation"}, id="leaking blocks"),
        pytest.param(a_deaf_site, {"sites"}, id="a site nobody reads"),
    ],
)
def test_a_broken_injector_fails(
    sabotage: Sabotage, noticed: set[str], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    code, certificate = run(spec, tmp_path)
    assert code == 1
    assert not certificate["passed"]
    assert noticed <= failed(certificate), certificate["checks"]
