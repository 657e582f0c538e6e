"""Run folders -> a page of docs/results: `python3 tools/results.py --command "kvspec run ..." RUN [RUN ...]`.

Writes NAME.md, and NAME.json with every figure; NAME is that of the runs' spec. All of it comes from the runs, and what
was asked from the spec's `x-` keys; nothing is written by hand. Several runs of one spec in different storage formats
are compared as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvspec import _native  # noqa: E402
from kvspec.errors import KvspecError  # noqa: E402
from kvspec.models import describe  # noqa: E402
from kvspec.records import RunStore  # noqa: E402
from kvspec.report import render_text, to_json  # noqa: E402
from kvspec.score import CellScore, Proportion, Scores, score_run  # noqa: E402
from kvspec.spec.model import ModelSpec  # noqa: E402
from kvspec.stats.exact import ALPHA, fisher_greater, holm  # noqa: E402
from tools.spec_index import SPECS, notes  # noqa: E402

RESULTS = ROOT / "docs" / "results"
GIB = 2**33
"""Bits."""
REQUEST_TOKENS = 32
"""Length of the requests that are counted per GiB."""
WIDTH = 150


@dataclass(frozen=True)
class Run:
    """A run folder as its page needs it."""

    scores: Scores
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
        return cls(score_run(folder), store.read_json("environment.json") or {}, spec)

    @property
    def title(self) -> str:
        """What tells it from the other runs of a page."""
        run, device = self.scores.run, self.environment.get("device", {})
        return f"{run.storage_format}, {run.storage} on {device.get('name', 'an unknown device')}"

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


def compare(runs: Sequence[Scores]) -> Iterator[str]:
    """The same cells in caches of different formats."""
    yield "## Formats\n"
    yield "Accuracy: token ids equal the golden ones of the same format; 95 % Wilson interval.\n"
    names = [scores.run.storage_format for scores in runs]
    yield "| cell | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for cells in zip(*(scores.cells for scores in runs), strict=True):
        yield f"| {cells[0].plan.name} | " + " | ".join(share(cell.exact_match) for cell in cells) + " |"
    tests = [
        (cells[i].plan.name, names[i], names[j], _fisher(cells[i], cells[j]))
        for cells in zip(*(scores.cells for scores in runs), strict=True)
        for i, j in combinations(range(len(runs)), 2)
    ]
    adjusted = holm([test[3] for test in tests])
    apart = [(test, p) for test, p in zip(tests, adjusted, strict=True) if p < ALPHA]
    yield (
        f"\nOf {len(tests)} comparisons of two formats at one dose (Fisher, two-sided, Holm) {len(apart)} differ"
        + (": " + "; ".join(f"{cell} {a} against {b} (p = {p:.2g})" for (cell, a, b, _), p in apart) if apart else "")
        + ".\n"
    )
    yield from _per_gib(runs)


def _per_gib(runs: Sequence[Scores]) -> Iterator[str]:
    """A GiB of every format has the same bits, so the same faults; what differs is how many requests it holds."""
    geometry = describe(ModelSpec(runs[0].run.model)).geometry
    if geometry is None:
        yield "Per GiB: not computed, since the shape of the model is not known on this machine.\n"
        return
    yield "Per GiB: at one rate per bit a GiB gets the same faults in all formats, and a narrow one holds more tokens."
    yield (
        f"Broken requests per GiB = share of broken requests x requests of {REQUEST_TOKENS} tokens that fit "
        "(scales included).\n"
    )
    yield "| cell | " + " | ".join(scores.run.storage_format for scores in runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for cells in zip(*(scores.cells for scores in runs), strict=True):
        if cells[0].plan.fault["rate"]["unit"] != "per_bit":
            continue
        broken = []
        for scores, cell in zip(runs, cells, strict=True):
            name = scores.run.storage_format
            row = geometry.head_size * _native.format_bits(name) + 32 * _native.format_scaled(name)
            requests = GIB / (row * geometry.rows_per_token * geometry.layers * REQUEST_TOKENS)
            found = cell.exact_match
            if found.rate is None or found.low is None or found.high is None:
                broken.append("-")
                continue
            mean, low, high = ((1 - x) * requests for x in (found.rate, found.high, found.low))
            broken.append(f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]")
        yield f"| {cells[0].plan.name} | " + " | ".join(broken) + " |"
    yield ""


def share(found: Proportion) -> str:
    """A proportion with its interval and n."""
    return f"{found.rate:.1%} [{found.low:.1%}, {found.high:.1%}], n = {found.n:,}" if found.n else "-"


def _fisher(a: CellScore, b: CellScore) -> float:
    first, second = (a.exact_match.k, a.exact_match.n), (b.exact_match.k, b.exact_match.n)
    if not first[1] or not second[1]:
        return 1.0
    return min(1.0, 2 * min(fisher_greater(*first, *second), fisher_greater(*second, *first)))


def page(runs: Sequence[Run], commands: Sequence[str]) -> str:
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
    parts += ["\n```", *commands, "```\n"]
    for run in runs:
        parts += [f"## Found: {run.title}\n", run.facts(), ""]
        parts += [f"- {sentence}" for sentence in run.scores.verdict]
        parts += [f"- Warning: {warning}" for warning in run.scores.warnings]
        parts += ["", *dose(run.scores)]
    if len(runs) > 1:
        parts += compare([run.scores for run in runs])
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
        "the `.json` files: what was found are the sentences of the reports, which follow from their tests.\n",
    ]
    for file in sorted(folder.glob("*.json")):
        figures = json.loads(file.read_text(encoding="utf-8"))
        said = notes(SPECS / f"{file.stem}.yaml") if (SPECS / f"{file.stem}.yaml").is_file() else {}
        parts += [f"## [{file.stem}]({file.stem}.md)\n"]
        parts += [f"{said['question']}\n"] if said.get("question") else []
        parts += [f"- The guide: {said['guide']}"] if said.get("guide") else []
        parts += [f"- Expected: {said['hypothesis']}"] if said.get("hypothesis") else []
        for run in figures["runs"]:
            report, device = run["report"], run["environment"].get("device", {}).get("name", "unknown device")
            cells = [cell["exact_match"]["n"] for cell in report["cells"]]
            parts.append(
                f"- Found in {report['run']['storage_format']} on {device} ({report['run']['recorded']:,} trials, "
                f"n = {min(cells):,} to {max(cells):,} a cell): {' '.join(report['verdict'])}"
            )
        parts.append("")
    printed = [f"- [{file.name}]({file.name})" for file in sorted(folder.glob("*.txt"))]
    parts += ["## Printed reports without their runs\n", *printed, ""] if printed else []
    pages = {file.stem for file in folder.glob("*.json")}
    left = ", ".join(f"`{file.stem}`" for file in sorted(SPECS.glob("*.yaml")) if file.stem not in pages)
    parts.append(f"## Not here yet\n\nSpecs of the library without a page: {left}.\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page and its figures, and the index of all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders of one spec")
    parser.add_argument("--command", action="append", required=True, help="what made the runs; may be repeated")
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
    (given.out / f"{name}.md").write_text(page(runs, given.command), encoding="utf-8")
    figures = {"commands": given.command, "runs": [run.to_json() for run in runs]}
    (given.out / f"{name}.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (given.out / "README.md").write_text(index(given.out), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
