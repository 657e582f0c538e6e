"""`kvspec score`: the scores of every trial, for other tools."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output",
    type=click.Choice(["json", "csv", "parquet"]),
    default="json",
    show_default=True,
    help="json is one object per line.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file instead of standard output. Required for parquet.",
)
@click.option(
    "--metrics",
    metavar="NAME,NAME",
    help="Columns to write, such as `exact_match,outcome`. Default: the metrics that the spec of the run names.",
)
def command(folder: Path, output: str, out: Path | None, metrics: str | None) -> int:
    """Score every trial of the run in DIR against its golden answer.

    One row per trial: outcome, exact match, drifts, first divergence, flips. The spec's `metrics`, or --metrics,
    choose among them. Works without torch or vLLM.

    \b
    Examples:
      kvspec score runs/quickstart-1a2b3c4d5e6f --format csv --out trials.csv
      kvspec score runs/quickstart-1a2b3c4d5e6f --metrics outcome | jq 'select(.outcome == "sdc")'

    \b
    Exit codes: 0 done, 2 the folder cannot be read or scored.
    """
    from kvspec.cli.files import write_output
    from kvspec.score import score_trials
    from kvspec.score.export import declared_metrics, write_trials

    if output == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    wanted = declared_metrics(folder) if metrics is None else _names(metrics)
    _, batches = score_trials(folder)
    if out is None:
        write_trials(batches, output, sys.stdout.buffer, metrics=wanted)
    else:
        write_output(out, lambda file: write_trials(batches, output, file, metrics=wanted))
    return 0


def _names(text: str) -> list[str]:
    """The metrics of an option `NAME,NAME`."""
    from kvspec.spec.model import METRICS

    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        problem = f"no such metric: {', '.join(unknown)}" if unknown else "--metrics names none"
        raise click.UsageError(f"{problem}; known are {', '.join(METRICS)}")
    return names
