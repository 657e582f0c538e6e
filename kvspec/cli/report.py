"""`kvspec report`: a run folder in words or JSON."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the report.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead.")
def command(folder: Path, output: str, out: Path | None) -> int:
    """Report the run in DIR: verdict, golden floor, one row per cell, a sample mismatch.

    Works on complete, interrupted and running campaigns, without torch or vLLM. docs/report.md explains every
    column.

    \b
    Examples:
      kvspec report runs/quickstart-1a2b3c4d5e6f
      kvspec report runs/quickstart-1a2b3c4d5e6f --format json --out report.json

    \b
    Exit codes: 0 done, 1 flips did not land as planned, 2 the folder cannot be read or scored.
    """
    from kvspec.report import print_report, render
    from kvspec.score import score_run

    if out is None:
        scores = print_report(folder, output)
    else:
        from kvspec.cli.files import write_output

        scores = score_run(folder)
        text = render(scores, output)
        write_output(out, lambda file: file.write(text.encode()))
    return 0 if scores.sound else 1
