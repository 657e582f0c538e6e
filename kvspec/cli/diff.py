"""`kvspec diff`: what differs between two runs, with a test for every cell."""

from __future__ import annotations

from pathlib import Path

import click

from kvspec.cli.output import format_option


@click.command()
@click.argument("first", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("second", metavar="RUN_B", type=click.Path(path_type=Path))
@format_option("Form of the comparison.")
def command(first: Path, second: Path, output: str) -> int:
    """Compare the runs in RUN_A and RUN_B: spec, environment, golden answers, and every cell that both have.

    A cell's trials are compared pair by pair where both runs hold the same faults in the same prompts, within prompts
    where only these are the same, and as independent samples otherwise. Two-sided exact tests, Holm-adjusted over
    all of them. docs/statistics.md says more.

    \b
    Examples:
      kvspec diff runs/before runs/after
      kvspec diff runs/cpu runs/gpu --format json

    \b
    Exit codes: 0 no difference is significant, 1 one is, or a run holds flips that were not planned, 2 a folder
    cannot be read or scored.
    """
    from kvspec.report.comparison import comparison_json, comparison_text
    from kvspec.score import compare_runs

    found = compare_runs(first, second)
    if output == "json":
        from kvspec.cli.output import print_json

        print_json(comparison_json(found))
    else:
        click.echo(comparison_text(found), nl=False)
    return 1 if found.significant or not (found.first.sound and found.second.sound) else 0
