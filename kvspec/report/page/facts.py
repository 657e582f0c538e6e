"""Where a run comes from and how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from kvspec.report import words
from kvspec.report.limits import Limits
from kvspec.report.safe import brief, visible
from kvspec.score import Proportion, Scores
from kvspec.score.views import RunFiles


def headline(scores: Scores) -> dict[str, str]:
    """One word for the state of the run, before any sentence."""
    if not scores.sound:
        return {"word": "Invalid", "tone": "bad"}
    if scores.floor.clean is False:
        return {"word": "Floor not clean", "tone": "warn"}
    if any(trend.rises for trend in scores.trends):
        return {"word": "Accuracy rises", "tone": "warn"}
    if scores.run.recorded < scores.run.planned or scores.run.error:
        return {"word": "Records missing" if scores.run.lost else "Partial", "tone": "warn"}
    if scores.floor.clean is None:
        return {"word": "No controls", "tone": "warn"}
    return {"word": "Sound", "tone": "good"}


def run_facts(scores: Scores, files: RunFiles) -> list[tuple[str, str]]:
    """The head of the page."""
    run = scores.run
    facts = [
        ("Model", run.model),
        ("KV cache", f"{run.storage_format}, {run.storage or 'storage not recorded'}"),
        ("Engine", run.engine or "not recorded"),
        ("Trials", f"{run.recorded:,} of {run.planned:,} recorded, {run.state}"),
        ("Design", f"{len(scores.cells):,} cells, {run.requests:,} prompts, {run.trials_per_cell:,} trials per cell"),
        ("Plan", run.plan_digest[:12]),
    ]
    if created := files.manifest.get("created"):
        facts.append(("Begun", str(created).replace("T", " ")))
    return [(name, brief(value, 300)) for name, value in facts]


def controls(scores: Scores, files: RunFiles) -> dict[str, Any]:
    """Floor, null control and canary."""
    floor = scores.floor
    rows = [
        ("Golden repeats", *_of(floor.golden_repeats), "the fault-free request again, in the same batch"),
        ("Null control", *_of(floor.null_trials), "through the armed injector at rate 0"),
        ("Both together", *_of(floor.combined), "what an effect must fall below"),
    ]
    canary = files.environment.get("canary")
    sentence = "The run records no canary."
    if isinstance(canary, Mapping) and all(isinstance(canary.get(k), int) for k in ("planned", "landed", "checked")):
        planned, landed, checked = canary["planned"], canary["landed"], canary["checked"]
        state = "as planned" if planned == landed else "NOT as planned"
        sentence = (
            f"Before the first trial, {landed:,} of {planned:,} planned flips landed ({state}); "
            f"{checked:,} elements were read back and compared one by one."
        )
    return {"rows": rows, "canary": sentence}


def _of(part: Proportion) -> tuple[str, str, str]:
    if not part.n:
        return "none recorded", words.DASH, words.DASH
    return f"{part.k:,} of {part.n:,}", words.percent(part), words.interval(part)


def environment(files: RunFiles, limits: Limits) -> list[tuple[str, str]]:
    """Every field of the fingerprint, by its dotted name."""
    pairs = [
        (brief(name, 120), brief(value, 400))
        for name, value in _leaves(files.environment)
        if not name.startswith("canary")
    ]
    return pairs[: max(20, limits.spec // 400)]


def _leaves(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and depth < 8:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value)


def spec_text(files: RunFiles, limits: Limits) -> str:
    """The resolved spec as indented JSON."""
    return brief(json.dumps(files.spec, indent=2, ensure_ascii=False), limits.spec, keep="\n")


def commands(files: RunFiles, path: str) -> list[dict[str, str]]:
    """What to type to get this run and this page again."""
    found: list[dict[str, str]] = []
    name, digest = str(files.manifest.get("name", "run")), str(files.manifest.get("plan", ""))
    if source := files.spec.get("source"):
        folder = f"runs/{name}-{digest[:12]}"
        found.append(
            {
                "what": "Run the campaign again",
                "text": f"kvspec run {shlex.quote(str(source))} --out {shlex.quote(folder)}",
            }
        )
        found.append(
            {
                "what": "Check that the spec still gives this plan: the digest must be the one above",
                "text": f"kvspec plan {shlex.quote(str(source))} --format json | jq -r .digest",
            }
        )
    found.append({"what": "Make this page again", "text": f"kvspec report {shlex.quote(path)} --html report.html"})
    return [{"what": one["what"], "text": visible(one["text"])} for one in found]
