"""The findings of a self-test as data. Knows no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kvspec
from kvspec.errors import RecordsError
from kvspec.records.files import write_atomic

VERSION = 1
FILE = "certificate.json"
"""Its name in a run folder, where `kvspec report` looks for it."""


@dataclass(frozen=True)
class Check:
    """One property of the injector."""

    name: str
    claim: str
    """What is true if it passed."""
    passed: bool | None
    """`None`: not applicable here, for the reason in `found`."""
    found: str


@dataclass(frozen=True)
class FaultRow:
    """Expected against measured, for one fault model and policy."""

    fault: str
    mask: str
    """Eligible bits of an element, hexadecimal."""
    trials: int
    flips_planned: int
    flips_measured: int
    """Bits that differ in the cache from what was written."""
    unit: str | None
    """What the binomial test counts; `None` where a selector or a stuck-at leaves nothing to test."""
    exposed: int | None
    expected: float | None
    measured: int | None
    p_value: float | None
    stray_bits: int
    as_planned: bool
    """Whether every trial was read back exactly as planned."""
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """What a self-test found, and where."""

    model: Mapping[str, Any]
    geometry: Mapping[str, Any]
    environment: Mapping[str, str]
    seed: int
    alpha: float
    faults: tuple[FaultRow, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(c.passed is not False for c in self.checks) and all(f.passed for f in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the schema describes it."""
        return {
            "kvspec_certificate": VERSION,
            "passed": self.passed,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "kvspec": kvspec.__version__,
            "model": dict(self.model),
            "geometry": dict(self.geometry),
            "environment": dict(self.environment),
            "seed": self.seed,
            "alpha": self.alpha,
            "seconds": round(self.seconds, 1),
            "faults": [asdict(row) for row in self.faults],
            "checks": [asdict(check) for check in self.checks],
        }


def write_certificate(data: dict[str, Any], path: Path) -> Path:
    """Write it to a file, or into a folder as `certificate.json`. Raises KVS501."""
    path = path / FILE if path.is_dir() else path
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    try:
        write_atomic(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise RecordsError.one("KVS501", f"cannot write `{path}`: {error.strerror or error}") from error
    return path
