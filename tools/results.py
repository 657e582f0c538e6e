"""Run folders -> a page of docs/results: `python3 tools/results.py --command "kvspec run ..." RUN [RUN ...]`.

Writes NAME.md, and NAME.json with every figure; NAME is that of the runs' spec. All of it comes from the runs, and what
was asked from the spec's `x-` keys; nothing is written by hand. Several runs of one spec in different storage formats
are compared as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvspec.errors import KvspecError  # noqa: E402
from kvspec.records import RunStore  # noqa: E402
from kvspec.report import render_text, to_json  # noqa: E402
from kvspec.score import Proportion, Scores  # noqa: E402
from kvspec.score.scores import Scored, score_whole  # noqa: E402
from tools.findings import Findings, contrasts, formats, published, searched, share  # noqa: E402
from tools.spec_index import SPECS, declared, notes  # noqa: E402

RESULTS = ROOT / "docs" / "results"
WIDTH = 150
ANSWER = ("Accuracy lies below",)
"""Beginnings of the sentences that answer a question whose spec does not say which do."""


@dataclass(frozen=True)
class Run:
    """A run folder as its page needs it."""

    scored: Scored
    environment: dict[str, Any]
    spec: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Score a run folder. Raises `KvspecError`."""
        store = RunStore.open(folder)
        spec = store.read_json("spec.json") or {}
        del spec["prompts"]["texts"]  # the plan digest stands for them
        spec["prompts"].pop("tasks", None)
        spec["source"] = Path(spec["source"]).name
        return cls(score_whole(folder), store.read_json("environment.json") or {}, spec)

    @property
    def scores(self) -> Scores:
        """Its report."""
        return self.scored.scores

    @property
    def title(self) -> str:
        """What tells it from the other runs of a page."""
        run, device = self.scores.run, self.environment.get("device", {})
        where = device.get("name", "an unknown device")
        return f"{self.spec['model']['id']}, {run.storage_format}, {run.storage} on {where}"

    def facts(self) -> str:
        """Where and how it was made."""
        device, engine = self.environment.get("device", {}), self.environment.get("engine", {})
        versions = ", ".join(f"{name} {version}" for name, version in self.environment.get("packages", {}).items())
        how = ", ".join(
            f"{key} {value}" for key, value in (*device.items(), *engine.items()) if isinstance(value, str | int)
        )
        return f"- plan `{self.scores.run.plan_digest}`\n- {how}\n- {versions}"

    def to_json(self) -> dict[str, Any]:
        """Every figure, without a path of the machine that made it."""
        report = to_json(self.scores)
        report["run"]["path"] = Path(report["run"]["path"]).name
        return {"environment": self.environment, "spec": self.spec, "report": report}


def dose(scores: Scores) -> Iterator[str]:
    """The dose of every cell as a rate and as flips per request, and what it did."""
    yield "| cell | rate | expected flips a request | landed | equal to golden, 95 % Wilson interval, n |"
    yield "|---|---|---|---|---|"
    for cell in scores.cells:
        rate, flips = cell.plan.fault["rate"], cell.flips
        expected = "-" if cell.plan.expected_per_trial is None else f"{cell.plan.expected_per_trial:.3g}"
        landed = f"{flips.landed / flips.trials:.3g}" if flips.trials else "-"
        unit = str(rate["unit"]).removeprefix("per_")
        yield f"| {cell.plan.name} | {rate['value']:g}/{unit} | {expected} | {landed} | {share(cell.exact_match)} |"
    yield ""


def findings(runs: Sequence[Run], declared: Mapping[str, Any], search: Path | None) -> list[Findings]:
    """What decides the question beyond the report of each run."""
    found: list[Findings | None] = []
    if search is not None:
        found.append(searched(search))
    for run in runs:
        found.append(contrasts(run.scored, declared["contrasts"] or []))
        if declared["published"]:
            found.append(published(run.scored, declared["published"]))
    if len(runs) > 1:
        found += formats([run.scored for run in runs])
    return [one for one in found if one is not None]


def page(runs: Sequence[Run], commands: Sequence[str], found: Sequence[Findings]) -> str:
    """The whole page."""
    name = runs[0].scores.run.name
    parts = [f"# {name}\n", f"Made by `tools/results.py` from the run folders; every figure: `{name}.json`.\n"]
    file = SPECS / f"{name}.yaml"
    if file.is_file():
        said = notes(file)
        parts += [f"- Spec: [specs/{file.name}](../../specs/{file.name})"]
        titles = {
            "question": "Question",
            "hypothesis": "Hypothesis",
            "decision": "Decision rule",
            "guide": "In the guide",
        }
        parts += [f"- {title}: {said[key]}" for key, title in titles.items() if said[key]]
    if (RESULTS / name).is_dir():
        parts += [f"- Profile and fault maps of the state, for `kvspec replay`: [{name}]({name})"]
    parts += ["\n```", *commands, "```\n"]
    for run in runs:
        parts += [f"## Found: {run.title}\n", run.facts(), ""]
        parts += [f"- {sentence}" for sentence in run.scores.verdict]
        parts += [f"- Warning: {warning}" for warning in run.scores.warnings]
        parts += ["", *dose(run.scores)]
    for one in found:
        parts += [f"## {one.title}\n", *(f"- {sentence}" for sentence in one.sentences), "", *one.table, ""]
    for run in runs:
        report = "Floor (" + render_text(run.scores, width=WIDTH).partition("\nFloor (")[2]
        report = report.partition("\nrun folder:")[0].rstrip()
        parts.append(f"## Tables: {run.title}\n\n```text\n{report}\n```\n")
    return "\n".join(parts)


def index(folder: Path) -> str:
    """What the guide claims and what was found, over all pages of a folder."""
    parts = [
        "# Results\n",
        "What was measured, against what the guide claims. Generated by `python3 tools/results.py` from the figures in",
        "the `.json` files: what was found are the sentences of the reports, which follow from their tests.",
        "Intervals are Wilson's over the trials of the prompts that were asked, five in most specs: for other prompts",
        "they are too narrow, by what the warning of a page tells.\n",
        "| spec | the guide | found | accuracy, 95 % interval, n |",
        "|---|---|---|---|",
    ]
    details = []
    for file in sorted(folder.glob("*.json")):
        figures, spec = json.loads(file.read_text(encoding="utf-8")), SPECS / f"{file.stem}.yaml"
        said, answer = (notes(spec), declared(spec)["answer"]) if spec.is_file() else ({}, None)
        found = " ".join(_answers(figures, answer or ANSWER))
        sizes = "; ".join(_sizes(run) for run in figures["runs"])
        parts.append(f"| [{file.stem}]({file.stem}.md) | {said.get('guide') or '-'} | {found} | {sizes} |")
        details += [f"## [{file.stem}]({file.stem}.md)\n"]
        details += [f"{said['question']}\n"] if said.get("question") else []
        details += [f"- Expected: {said['hypothesis']}"] if said.get("hypothesis") else []
        details += [f"- {sentence}" for sentence in figures["findings"]]
        for run in figures["runs"]:
            report = run["report"]
            details.append(f"- {_where(run)} ({report['run']['recorded']:,} trials): {' '.join(report['verdict'])}")
        details.append("")
    printed = [f"- [{file.name}]({file.name})" for file in sorted(folder.glob("*.txt"))]
    details += ["## Printed reports without their runs\n", *printed, ""] if printed else []
    pages = {file.stem for file in folder.glob("*.json")}
    left = ", ".join(f"`{file.stem}`" for file in sorted(SPECS.glob("*.yaml")) if file.stem not in pages)
    details.append(f"## Not here yet\n\nSpecs of the library without a page: {left}.\n" if left else "")
    return "\n".join([*parts, "", *details]).rstrip("\n") + "\n"


def _answers(figures: Mapping[str, Any], beginnings: Sequence[str]) -> Iterator[str]:
    """The sentences that answer the question of a spec, those of a run with its format where there are several."""
    several = len(figures["runs"]) > 1
    sources = [("", figures["findings"])]
    for run in figures["runs"]:
        where = f"{run['report']['run']['storage_format']}: " if several else ""
        sources.append((where, run["report"]["verdict"]))
    for beginning in beginnings:
        for where, sentences in sources:
            yield from (f"{where}{sentence}" for sentence in sentences if sentence.startswith(beginning))


def _sizes(run: Mapping[str, Any]) -> str:
    cells = [(cell["name"], Proportion(**cell["exact_match"])) for cell in run["report"]["cells"]]
    if len(cells) <= 3:
        return f"{_where(run)}: " + ", ".join(f"{name} {share(found)}" for name, found in cells)
    rates = [found.rate for _, found in cells if found.rate is not None]
    n = sorted({found.n for _, found in cells})
    sizes = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
    return f"{_where(run)}: {min(rates):.1%} to {max(rates):.1%}, n = {sizes} a cell"


def _where(run: Mapping[str, Any]) -> str:
    device = run["environment"].get("device", {}).get("name", "unknown device")
    return f"{run['spec']['model']['id']}, {run['report']['run']['storage_format']} on {device}"


def main() -> int:
    """Write the page and its figures, and the index of all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders of one spec")
    parser.add_argument("--command", action="append", required=True, help="what made the runs; may be repeated")
    parser.add_argument("--search", type=Path, help="folder of a `kvspec search`, whose grid is the run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the page, by default docs/results")
    given = parser.parse_args()
    try:
        runs = [Run.read(folder) for folder in given.runs]
    except KvspecError as error:
        print(error, file=sys.stderr)
        return 2
    names = {run.scores.run.name for run in runs}
    if len(names) > 1:
        parser.error(f"the runs are of several specs: {', '.join(sorted(names))}")
    (name,) = names
    given.out.mkdir(parents=True, exist_ok=True)
    file = SPECS / f"{name}.yaml"
    said = declared(file) if file.is_file() else {"contrasts": None, "published": None}
    found = findings(runs, said, given.search)
    (given.out / f"{name}.md").write_text(page(runs, given.command, found), encoding="utf-8")
    figures = {
        "commands": given.command,
        "findings": [sentence for one in found for sentence in one.sentences],
        "runs": [run.to_json() for run in runs],
    }
    (given.out / f"{name}.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (given.out / "README.md").write_text(index(given.out), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
