"""The report for people: the verdict in words, then what it rests on."""

from __future__ import annotations

import io

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from kvspec.report import words
from kvspec.report.table import anatomy_tables, cell_tables, task_tables
from kvspec.score import Proportion, Sample, Scores

LEGEND = "Accuracy: token ids equal golden. Interval: {}. Drift: mean of the finished trials. See docs/report.md."
DIVERGES = "tokens differ from index {}"
PLAIN_WIDTH = 10_000
"""Columns where there is no terminal: one line per sentence and per cell, for grep and for logs."""


def render_text(scores: Scores, *, width: int | None = None, colour: bool = False) -> str:
    """The whole report as text; `width` in columns, by default wide enough for every table."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width or PLAIN_WIDTH,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    _header(console, scores)
    _verdict(console, scores)
    _floor(console, scores)
    _injection(console, scores)
    for table in cell_tables(scores.cells, console):
        console.print()
        console.print(table)
    looks = scores.run.looks
    interval = "Wilson" if looks is None else f"repeated, {len(looks.rounds)} looks (Jennison & Turnbull)"
    console.print(Text(LEGEND.format(interval), style="dim"))
    for graded in task_tables(scores):
        console.print()
        console.print(graded)
    for number, places in enumerate(anatomy_tables(scores)):
        console.print()
        if not number:
            console.print(
                Text("Single flips: share of the trials with one flip that show it (sdc or due)", style="bold")
            )
        console.print(places)
    for sample in scores.samples:
        _sample(console, sample, scores)
    console.print()
    console.print(Text(f"run folder: {words.printable(scores.run.path)}"), soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n")).rstrip("\n") + "\n"


def _header(console: Console, scores: Scores) -> None:
    run = scores.run
    most = "" if run.looks is None else "up to "
    storage = f"{run.storage_format} ({run.storage or 'storage not recorded'})"
    console.print(Text(f"kvspec report: {words.printable(run.name)}", style="bold"))
    for name, value in (
        ("model", f"{run.model}, KV cache {storage}"),
        ("engine", run.engine or "not recorded"),
        (
            "plan",
            f"{run.plan_digest[:12]}, {run.requests:,} prompts, {most}{run.trials_per_cell:,} trials per cell",
        ),
        ("trials", f"{run.recorded:,} of {run.planned:,} recorded, {run.state}"),
        *([("tested", str(run.certificate))] if run.certificate else []),
    ):
        console.print(Text(f"  {name:<8}{words.printable(value)}"))


def _verdict(console: Console, scores: Scores) -> None:
    console.print()
    console.print(Text("Verdict", style="bold"))
    for sentence in scores.verdict:
        _indented(console, sentence, "bold red" if sentence.startswith("INVALID") else "")
    for warning in scores.warnings:
        _indented(console, f"warning: {warning}", "yellow")


def _indented(console: Console, text: str, style: str) -> None:
    console.print(Padding(Text(words.printable(text), style=style), (0, 0, 0, 2), expand=False))


def _floor(console: Console, scores: Scores) -> None:
    console.print()
    console.print(Text("Floor (trials without faults that equal golden)", style="bold"))
    for name, part in (
        ("golden repeats", scores.floor.golden_repeats),
        ("null control", scores.floor.null_trials),
    ):
        console.print(Text(f"  {name:<16}{_of(part)}"))


def _injection(console: Console, scores: Scores) -> None:
    """What proves that the faults were there, over all cells."""
    planned, landed, changed, exposed, reruns = (
        sum(getattr(cell.flips, name) for cell in scores.cells)
        for name in ("planned", "landed", "changed", "exposed", "reruns")
    )
    if not planned:
        return
    parts = [f"{planned:,} flips planned, {landed:,} landed"]
    if changed:
        parts.append(f"{changed:,} changed a bit")
    if exposed:
        parts.append(f"reads changed {exposed:,} bits" + (" and put back each" if scores.sound else ""))
    if reruns:
        parts.append(f"{reruns:,} preempted trials ran again alone")
    console.print(Text(f"  {'injection':<16}{', '.join(parts)}"))


def _of(part: Proportion) -> str:
    if not part.n:
        return "- (none recorded)"
    return f"{part.k:,} of {part.n:,} identical, {words.percent(part)} [{words.interval(part)}]"


def _sample(console: Console, sample: Sample, scores: Scores) -> None:
    room = max(30, min(console.width, 120) - 16)
    name = next(cell.plan.name for cell in scores.cells if cell.plan.index == sample.cell)
    flips = f"{sample.flips:,} flip{'' if sample.flips == 1 else 's'}"
    at = DIVERGES.format(sample.first_divergence) if sample.first_divergence is not None else "same tokens"
    console.print()
    console.print(
        Text(
            f"Sample mismatch, {sample.role}: {sample.trial_id} of {name}, {flips}, {sample.outcome}, {at}",
            "bold",
        )
    )
    prompt = words.printable(sample.prompt)
    console.print(Text(f"  prompt   {prompt[:room]}{'...' if len(prompt) > room else ''}"), no_wrap=True)
    marked = 0
    for label, text, style in (("golden", sample.golden, "green"), ("faulted", sample.faulted, "red")):
        head, tail = words.window(text, sample.first_char, room // 3, room)
        line = Text(f"  {label:<9}{head}").append(tail, style=style)
        console.print(line, no_wrap=True, overflow="ellipsis")
        marked = cell_len(f"  {label:<9}{head}")
    console.print(Text(" " * marked + "^ first difference"), no_wrap=True)
