"""What a certificate in the run folder is worth for this run: whether it can be read, passed, and was made for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate against the run that it lies in."""

    unreadable: str
    """Why it cannot be read as a certificate; empty if it can, and all else is empty if it cannot."""
    failed: tuple[str, ...] = ()
    """Checks and faults of the self-test that failed."""
    checks: int = 0
    faults: int = 0
    made: str = ""
    """When."""
    maker: str = ""
    """Version of kvspec and model."""
    other: tuple[str, ...] = ()
    """Why it says nothing about this run: made for another model, format, package or device."""

    @property
    def passed(self) -> bool:
        """Whether it can be read and nothing failed."""
        return not self.unreadable and not self.failed

    def __str__(self) -> str:
        """In a few words, for one line of the report."""
        if self.unreadable:
            return f"NOT READABLE: {self.unreadable}"
        if self.failed:
            return f"the injector FAILED its self-test ({', '.join(self.failed)}), {self.made}"
        if self.other:
            return f"NOT OF THIS RUN: {'; '.join(self.other)}"
        return f"the injector passed its self-test ({self.checks} checks, {self.faults} faults), {self.made}"


def judge_certificate(
    data: Mapping[str, Any] | None, model: str, storage_format: str, environment: Mapping[str, Any]
) -> Certificate | None:
    """Judge the content of `certificate.json`; `None` without one.

    Args:
        data: its content, empty if it is no JSON object.
        model: model id of the run.
        storage_format: format whose bits flip in the run.
        environment: fingerprint of the run.
    """
    if data is None:
        return None
    if data.get("kvspec_certificate") != VERSION or not isinstance(data.get("passed"), bool):
        return Certificate("certificate.json is no certificate of this version of kvspec")
    try:
        failed = [str(check["name"]) for check in data["checks"] if check["passed"] is False]
        failed += [str(row["fault"]) for row in data["faults"] if row["passed"] is not True]
        if not data["passed"] and not failed:
            failed = ["as it says itself"]
        ours = {**(environment.get("packages") or {})}
        ours |= {f"device.{name}": value for name, value in (environment.get("device") or {}).items()}
        pairs = [
            ("model", data["model"]["id"], model),
            ("storage format", data["geometry"]["format"], storage_format),
            *((name, value, ours[name]) for name, value in data["environment"].items() if name in ours),
        ]
        return Certificate(
            "",
            failed=tuple(failed),
            checks=len(data["checks"]),
            faults=len(data["faults"]),
            made=str(data["made"]),
            maker=f"kvspec {data['kvspec']}, model {data['model']['id']}",
            other=tuple(
                f"{name} is {theirs} in the certificate, {own} in this run"
                for name, theirs, own in pairs
                if str(theirs) != str(own)
            ),
        )
    except (AttributeError, KeyError, TypeError):
        return Certificate("certificate.json lacks fields of a certificate")
