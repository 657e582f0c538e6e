"""The self-test must pass on a sound injector and fail on a broken one. Each test breaks one thing on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft7Validator

from kvspec import _native
from kvspec.cli import main

Sabotage = Callable[[pytest.MonkeyPatch], None]


def kvspec(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def spec(gpt2: Path, tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    fault = {"name": "Mine", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 3e-3}, "bits": "mantissa"}
    data = {"kvspec": 1, "name": "own", "model": {"id": str(gpt2)}, "prompts": {"inline": ["Who was the first"]}}
    path.write_text(json.dumps({**data, "faults": [fault], "trials": 1}), encoding="utf-8")
    return path


def run(spec: Path, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "certificate.json"
    done = kvspec("verify", spec, "--out", out, "--quiet")
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
    assert set(rows) >= {"random per bit", "burst of 4", "page_local", "msb FP16_EXPONENT", "spec: Mine"}
    assert all(row["flips_planned"] == row["flips_measured"] > 0 for row in rows.values())
    assert rows["spec: Mine"]["mask"] == "7f"


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


def through(kind: type[Wrapped]) -> Sabotage:
    """Both tables give wrapped faults."""

    class Table:
        def __init__(self, table: Any) -> None:
            self._table = table

        def write_step(self, **rows: Any) -> Any:
            return kind(self._table.write_step(**rows))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._table, name)

    def sabotage(monkeypatch: pytest.MonkeyPatch) -> None:
        from kvspec.engine.events import EventData
        from kvspec.engine.table import TableData

        for data in (TableData, EventData):
            original = data.build
            monkeypatch.setattr(data, "build", lambda self, shape, original=original: Table(original(self, shape)))

    return sabotage


@pytest.mark.parametrize(
    ("sabotage", "noticed"),
    [
        pytest.param(wrong_mask, {"read-back", "masks"}, id="wrong mask"),
        pytest.param(through(Dropping), {"read-back", "rates", "sites"}, id="dropped flips"),
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
