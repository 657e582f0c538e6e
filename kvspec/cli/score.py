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
def command(folder: Path, output: str, out: Path | None) -> int:
    """Score every trial of the run in DIR against its golden answer.

    One row per trial: outcome, exact match, drifts, first divergence, flips. Works without torch or vLLM.

    \b
    Examples:
      kvspec score runs/quickstart-1a2b3c4d5e6f --format csv --out trials.csv
      kvspec score runs/quickstart-1a2b3c4d5e6f | jq 'select(.outcome == "sdc")'

    \b
    Exit codes: 0 done, 2 the folder cannot be read or scored.
    """
    from kvspec.cli.files import write_output
    from kvspec.score import score_trials
    from kvspec.score.export import write_trials

    if output == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    _, batches = score_trials(folder)
    if out is None:
        write_trials(batches, output, sys.stdout.buffer)
    else:
        write_output(out, lambda file: write_trials(batches, output, file))
    return 0
