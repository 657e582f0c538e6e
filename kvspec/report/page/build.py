"""The whole page as one dictionary, within the limits of a tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvspec import __version__
from kvspec.report import anatomy, tasks, words
from kvspec.report.charts import Chart, dose_charts, outcome_chart, survival_chart
from kvspec.report.heat import anatomy_charts, heat_charts
from kvspec.report.limits import Limits
from kvspec.report.page.cells import cell_rows, dose_table, ec50_table, logprob_table, pair_table, vulnerability_table
from kvspec.report.page.certificate import certificate
from kvspec.report.page.facts import commands, controls, environment, headline, run_facts, spec_text
from kvspec.report.page.trials import trial_items
from kvspec.report.palette import PAGE
from kvspec.report.safe import brief, visible
from kvspec.report.series import DOSES, build_series
from kvspec.report.vega import Spec, compile_chart
from kvspec.score import Scores
from kvspec.score.views import RunFiles, Views

Tokenizer = Callable[[Sequence[int]], list[str]]
"""Token ids -> the text of each, of equal length."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What a page can show if this machine has the model's files."""

    tokenizer: Tokenizer | None = None
    geometry: Any = None
    """`kvspec.models.Geometry`, to list single flips."""


def page_context(scores: Scores, views: Views, files: RunFiles, extras: Extras, limits: Limits) -> dict[str, Any]:
    """Everything that `report.html.j2` prints."""
    series = build_series(scores, limits.name)
    charts: dict[str, Spec] = {}

    def place(found: Sequence[Chart]) -> list[dict[str, Any]]:
        placed = []
        for chart in found:
            charts[chart.key] = compile_chart(chart.spec)
            placed.append(
                {
                    "id": chart.key,
                    "title": chart.title,
                    "description": chart.description,
                    "note": chart.note,
                    "head": chart.head,
                    "rows": chart.rows[: limits.rows],
                }
            )
        return placed

    doses = [
        {
            "key": dose,
            "label": label,
            "charts": place(dose_charts(series, dose, scores, PAGE, limits)),
            "ec50": ec50_table(series, dose, limits),
        }
        for dose, label in DOSES.items()
    ]
    survival = survival_chart(scores, views, PAGE, limits)
    outcomes = outcome_chart(scores, PAGE, limits)
    rows, left_out = cell_rows(scores, limits)
    pairs = pair_table(scores, limits)
    return {
        **_common(files, limits),
        "headline": headline(scores),
        "facts": run_facts(scores, files),
        "verdict": _sentences(scores.verdict, limits),
        "warnings": _sentences(scores.warnings, limits),
        "rows": rows,
        "rows_left_out": left_out,
        "interval": words.interval_kind(scores),
        "logprobs": logprob_table(scores, limits),
        "doses": [dose for dose in doses if dose["charts"]],
        "dose_rows": dose_table(series, limits),
        "tasks": _tables(scores, limits),
        "pairs": pairs,
        "pairs_left_out": len(scores.pairs) - len(pairs),
        "vulnerabilities": vulnerability_table(scores, limits),
        "heat": place(heat_charts(scores, PAGE, limits)),
        "single": place(anatomy_charts(scores, PAGE, limits)),
        "single_tests": list(anatomy.test_rows(scores)),
        "single_head": anatomy.TESTS,
        "survival": place([survival] if survival else []),
        "outcomes": place([outcomes] if outcomes else []),
        "trials": trial_items(scores, views, files, extras, limits),
        "mismatches": any(cell.outcome["sdc"] + cell.outcome["due"] for cell in scores.cells),
        "controls": controls(scores, files),
        "commands": commands(files, scores.run.path),
        "charts": charts,
    }


def refusal_context(files: RunFiles, path: str, sentences: Sequence[str], limits: Limits) -> dict[str, Any]:
    """The page of a run that holds nothing to score: why, and what to do."""
    manifest = files.manifest
    recorded, planned = manifest.get("recorded", 0), manifest.get("trials", 0)
    return {
        **_common(files, limits),
        "headline": {"word": "Nothing to score", "tone": "warn"},
        "facts": [
            ("Trials", f"{recorded:,} of {planned:,} recorded, {visible(str(manifest.get('status')))}"),
            ("Plan", visible(str(manifest.get("plan"))[:12])),
        ],
        "verdict": {"shown": [brief(s, limits.text) for s in sentences], "more": [], "left_out": 0},
        "warnings": {"shown": [], "more": [], "left_out": 0},
        "rows": [],
        "rows_left_out": 0,
        "interval": "",
        "logprobs": [],
        "doses": [],
        "dose_rows": [],
        "tasks": [],
        "pairs": [],
        "pairs_left_out": 0,
        "vulnerabilities": [],
        "heat": [],
        "single": [],
        "single_tests": [],
        "single_head": (),
        "survival": [],
        "outcomes": [],
        "trials": [],
        "mismatches": False,
        "controls": None,
        "commands": commands(files, path),
        "charts": {},
    }


def summary_context(scores: Scores, limits: Limits) -> dict[str, Any]:
    """Verdict and table alone."""
    rows, left_out = cell_rows(scores, limits)
    return {
        "name": brief(scores.run.name, limits.name),
        "headline": headline(scores),
        "verdict": _sentences(scores.verdict, limits),
        "warnings": _sentences(scores.warnings, limits),
        "rows": rows,
        "rows_left_out": left_out,
    }


def _common(files: RunFiles, limits: Limits) -> dict[str, Any]:
    return {
        "name": brief(str(files.manifest.get("name", "run")), limits.name),
        "description": brief(str(files.spec.get("description") or ""), limits.text),
        "environment": environment(files, limits),
        "spec": spec_text(files, limits),
        "certificate": certificate(files, limits),
        "digest": visible(str(files.manifest.get("plan"))),
        "version": __version__,
        "created": visible(str(files.manifest.get("created") or "")),
    }


def _tables(scores: Scores, limits: Limits) -> list[dict[str, Any]]:
    """Graded answers; empty where no prompt is graded."""
    found = (
        ("Right answers", tasks.ANSWERS, tasks.answer_rows(scores)),
        ("Retrieval against reasoning", tasks.PAIRS, tasks.pair_rows(scores)),
    )
    tables = []
    for title, head, lines in found:
        rows: list[tuple[str, ...]] = []
        for row in lines:
            # A row below its like leaves out what it shares with it; read aloud it needs its own head.
            shared = rows[-1][:2] if rows and not row[0] else ()
            rows.append((*shared, *(brief(text, limits.name) for text in row[len(shared) :])))
        if rows:
            shown = rows[: limits.rows]
            tables.append({"title": title, "head": head, "rows": shown, "left_out": len(rows) - len(shown)})
    return tables


def _sentences(sentences: Sequence[str], limits: Limits, first: int = 8) -> dict[str, Any]:
    texts = [brief(sentence, limits.text) for sentence in sentences[: limits.sentences]]
    return {"shown": texts[:first], "more": texts[first:], "left_out": len(sentences) - len(texts)}
