"""Run folders -> a page of docs/results: `python3 tools/results.py OUT.md --command "kvspec run ..." RUN [RUN ...]`.

Everything on the page comes from the runs: plan digest, environment, verdict, table. With several runs of one spec in
different storage formats, the formats are compared as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from kvspec import _native
from kvspec.models import describe
from kvspec.records import RunStore
from kvspec.report import render_text
from kvspec.score import CellScore, Scores, score_run
from kvspec.spec.model import ModelSpec
from kvspec.stats.exact import ALPHA, fisher_greater, holm

GIB = 2**33
"""Bits."""


def facts(run: Path) -> str:
    """Where and how a run was made."""
    store = RunStore.open(run)
    environment: dict[str, Any] = store.read_json("environment.json") or {}
    device, packages = environment.get("device", {}), environment.get("packages", {})
    storage = environment.get("storage", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return (
        f"- plan {store.digest}\n- {device.get('name', 'device not recorded')}, {device.get('threads', '?')} threads; "
        f"cache {storage.get('format')} ({storage.get('how')}, container {storage.get('container')})\n- {versions}"
    )


def compare(runs: Sequence[Scores]) -> Iterator[str]:
    """The same cells in caches of different formats."""
    yield "## Formats\n"
    yield "Accuracy: token ids equal the golden ones of the same format; 95 % Wilson interval.\n"
    names = [scores.run.storage_format for scores in runs]
    yield "| cell | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for cells in zip(*(scores.cells for scores in runs), strict=True):
        yield f"| {cells[0].plan.name} | " + " | ".join(_accuracy(cell) for cell in cells) + " |"
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
    assert geometry is not None
    yield "Per GiB: at one rate per bit a GiB gets the same faults in all formats, and a narrow one holds more tokens."
    yield "Broken requests per GiB = share of broken requests x requests of 32 tokens that fit (scales included).\n"
    yield "| cell | " + " | ".join(scores.run.storage_format for scores in runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for cells in zip(*(scores.cells for scores in runs), strict=True):
        if cells[0].plan.fault["rate"]["unit"] != "per_bit":
            continue
        broken = []
        for scores, cell in zip(runs, cells, strict=True):
            name = scores.run.storage_format
            row = geometry.head_size * _native.format_bits(name) + 32 * _native.format_scaled(name)
            requests = GIB / (row * geometry.rows_per_token * geometry.layers * 32)
            low, high = (1 - (cell.exact_match.high or 0)) * requests, (1 - (cell.exact_match.low or 0)) * requests
            broken.append(f"{(1 - (cell.exact_match.rate or 0)) * requests:,.0f} [{low:,.0f}, {high:,.0f}]")
        yield f"| {cells[0].plan.name} | " + " | ".join(broken) + " |"
    yield ""


def _accuracy(cell: CellScore) -> str:
    found = cell.exact_match
    return f"{found.rate:.0%} [{found.low:.0%}, {found.high:.0%}], n = {found.n}" if found.n else "-"


def _fisher(a: CellScore, b: CellScore) -> float:
    first, second = (a.exact_match.k, a.exact_match.n), (b.exact_match.k, b.exact_match.n)
    if not first[1] or not second[1]:
        return 1.0
    return min(1.0, 2 * min(fisher_greater(*first, *second), fisher_greater(*second, *first)))


def page(title: str, commands: Sequence[str], runs: Sequence[Path]) -> str:
    """The whole page."""
    scores = [score_run(run) for run in runs]
    parts = [f"# {title}\n", "Made by `tools/results.py` from the run folders.\n", "```"]
    parts += [*commands, "```\n"]
    if len(scores) > 1:
        parts += compare(scores)
    for run, found in zip(runs, scores, strict=True):
        report = render_text(found, width=150).partition("\nrun folder:")[0].rstrip()
        parts.append(f"## {found.run.name}, {found.run.storage_format}\n\n{facts(run)}\n\n```text\n{report}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--title", required=True)
    parser.add_argument("--command", action="append", required=True)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page(given.title, given.command, given.runs), encoding="utf-8")
