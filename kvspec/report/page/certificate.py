"""The certificate of `kvspec verify`, where one lies in the run folder. Nothing in the file is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvspec.report import words
from kvspec.report.limits import Limits
from kvspec.report.safe import brief, visible
from kvspec.score.views import RunFiles

VERSION = 1
STATES = {True: "ok", False: "FAIL", None: "not applicable"}


def certificate(files: RunFiles, limits: Limits) -> dict[str, Any] | None:
    """What the page shows of it; `None` if there is none."""
    data = files.certificate
    if data is None:
        return None
    if data.get("kvspec_certificate") != VERSION or not isinstance(data.get("passed"), bool):
        return _only(
            "The certificate.json in the run folder cannot be read as a certificate of this version of kvspec."
        )
    try:
        checks = [_check(check, limits) for check in data["checks"][: limits.rows]]
        faults = [_fault(row, limits) for row in data["faults"][: limits.rows]]
        other = _differences(data, files)
        failed = sum(check["passed"] is False for check in data["checks"])
        failed += sum(row["passed"] is not True for row in data["faults"])
        made = brief(f"{data['made']}, kvspec {data['kvspec']}, model {data['model']['id']}", limits.name * 2)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return _only("The certificate.json in the run folder lacks fields of a certificate.")
    passed = data["passed"] and not failed
    total = len(data["checks"]) + len(data["faults"])
    sentence = "All checks passed." if passed else f"FAILED: {failed} of {total} checks; do not rely on this injector."
    return {
        "tone": "bad" if not passed else "warn" if other else "good",
        "word": "failed" if not passed else "passed" if not other else "passed elsewhere",
        "sentence": f"{sentence} Made {made}.",
        "other": [brief(text, limits.text) for text in other],
        "checks": checks,
        "faults": faults,
    }


def _only(sentence: str) -> dict[str, Any]:
    return {"tone": "warn", "word": "unreadable", "sentence": sentence, "other": [], "checks": [], "faults": []}


def _check(check: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    texts = (brief(str(check[key]), limits.text // 8) for key in ("name", "claim", "found"))
    return STATES[check["passed"]], *texts


def _fault(row: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    tested = (words.DASH,) * 3
    if row["unit"] is not None:
        expected, exposed = f"{float(row['expected']):,.1f}", f"{int(row['exposed']):,} {visible(str(row['unit']))}"
        tested = f"{expected} of {exposed}", f"{int(row['measured']):,}", f"{float(row['p_value']):.3g}"
    return (
        brief(str(row["fault"]), limits.name),
        f"{int(row['flips_planned']):,}/{int(row['flips_measured']):,}",
        *tested,
        f"{int(row['stray_bits']):,}",
        STATES[row["passed"]],
    )


def _differences(data: Mapping[str, Any], files: RunFiles) -> list[str]:
    """Why it may say nothing about this run: made for another model, format, package or device."""
    model = files.spec.get("model") or {}
    storage = files.environment.get("storage") or {}
    pairs = [
        ("model", data["model"]["id"], model.get("id")),
        ("storage format", data["geometry"]["format"], storage.get("format")),
    ]
    ours = {**(files.environment.get("packages") or {})}
    ours |= {f"device.{name}": value for name, value in (files.environment.get("device") or {}).items()}
    pairs += [(name, value, ours[name]) for name, value in data["environment"].items() if name in ours]
    return [
        f"{name} is {theirs} in the certificate, {own} in this run"
        for name, theirs, own in pairs
        if own is not None and str(theirs) != str(own)
    ]
