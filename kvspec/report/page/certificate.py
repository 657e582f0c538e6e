"""The certificate of `kvspec verify`, where one lies in the run folder. Nothing in the file is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvspec.report import words
from kvspec.report.limits import Limits
from kvspec.report.safe import brief, visible
from kvspec.score.certificate import Certificate
from kvspec.score.views import RunFiles

STATES = {True: "ok", False: "FAIL", None: "not applicable"}


def certificate(files: RunFiles, limits: Limits) -> dict[str, Any] | None:
    """What the page shows of it; `None` if there is none."""
    judged, data = files.judged, files.certificate
    if judged is None or data is None:
        return None
    try:
        checks = [_check(check, limits) for check in data["checks"][: limits.rows]] if not judged.unreadable else []
        faults = [_fault(row, limits) for row in data["faults"][: limits.rows]] if not judged.unreadable else []
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        judged, checks, faults = Certificate("certificate.json lacks fields of a certificate"), [], []
    tone, word = "good", "passed"
    if judged.unreadable:
        tone, word, sentence = "warn", "unreadable", f"It cannot be read: {judged.unreadable}."
    elif judged.failed:
        total = judged.checks + judged.faults
        tone, word = "bad", "failed"
        sentence = f"FAILED: {len(judged.failed)} of {total} checks; do not rely on this injector."
    else:
        sentence = "All checks passed."
        if judged.other:
            tone, word = "warn", "passed elsewhere"
    made = f" Made {judged.made}, {judged.maker}." if judged.made else ""
    return {
        "tone": tone,
        "word": word,
        "sentence": brief(sentence + made, limits.name * 3),
        "other": [brief(text, limits.text) for text in judged.other],
        "checks": checks,
        "faults": faults,
    }


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
