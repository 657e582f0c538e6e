"""`kvspec report`: a run folder in words, as a table for other tools, as a page, or as plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvspec.report.page import Extras
    from kvspec.score import Scores
    from kvspec.score.views import Views

PAGE = "report.html"
"""Name of the page inside a run folder."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "latex", "csv", "parquet"]),
    default=None,
    help="Form of the report: all of it as text or json, its table of cells as latex, csv or parquet. Default: text, "
    "or nothing beside --html and --plots.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead. Required for parquet."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one HTML file that opens without a network.",
)
@click.option(
    "--plots", type=click.Path(path_type=Path, file_okay=False), help="Write every plot as SVG and PNG into a folder."
)
def command(folder: Path, output: str | None, out: Path | None, html: Path | None, plots: Path | None) -> int:
    """Report the run in DIR: verdict, golden floor, one row per cell, a sample mismatch.

    Works on complete, interrupted and running campaigns, without torch or vLLM. docs/report.md explains every
    column.

    \b
    Examples:
      kvspec report runs/quickstart-1a2b3c4d5e6f
      kvspec report runs/quickstart-1a2b3c4d5e6f --html report.html --plots figures
      kvspec report runs/quickstart-1a2b3c4d5e6f --format json --out report.json
      kvspec report runs/quickstart-1a2b3c4d5e6f --format latex --out table.tex

    \b
    Exit codes: 0 done, 1 flips did not land as planned, 2 the folder cannot be read or scored.
    """
    from kvspec.report import print_report, render_bytes
    from kvspec.score import score_run

    if output == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    scores = score_run(folder) if html is None and plots is None else write_drawings(folder, html, plots)
    if out is not None:
        from kvspec.cli.files import write_output

        content = render_bytes(scores, output or "text")
        write_output(out, lambda file: file.write(content))
    elif output is not None or (html is None and plots is None):
        print_report(scores, output or "text")
    return 0 if scores.sound else 1


def write_drawings(folder: Path, html: Path | None, plots: Path | None) -> Scores:
    """Write the page and the plots that are wanted, from one pass over the records. Raises like `score_run`."""
    from kvspec.cli.files import write_output
    from kvspec.errors import KvspecError
    from kvspec.report.html import page_of, refusal_page
    from kvspec.score.views import read_files, view_run

    def write_page(file: Path, page: str) -> None:
        content = page.encode()
        write_output(file, lambda stream: stream.write(content))
        say_written(file, len(content))

    try:
        scores, views = view_run(folder)
    except KvspecError as error:
        if html is not None:
            write_page(html, refusal_page(folder, error))
        raise
    if html is not None:
        write_page(html, page_of(scores, views, read_files(folder), page_extras(folder)))
    if plots is not None:
        write_plots(scores, views, plots)
    return scores


def write_plots(scores: Scores, views: Views, target: Path) -> None:
    """Write every plot of a run as SVG and PNG into `target`, which is made if it is absent."""
    from kvspec.cli.files import write_output
    from kvspec.report.plots import plot_files

    def write(name: str, content: bytes) -> None:
        write_output(target / name, lambda stream: stream.write(content))

    made = False
    for name, content in plot_files(scores, views):
        if not made:
            _make(target)
            made = True
        write(name, content)
        say_written(target / name, len(content))
    if not made:
        click.echo("kvspec: nothing was scored, so there is no plot", err=True)


def page_extras(folder: Path) -> Extras:
    """Tokenizer and geometry of the run's model, as far as this machine has them. Never asks the network."""
    from kvspec.models import describe, load_tokenizer
    from kvspec.report.page import Extras
    from kvspec.report.pieces import token_pieces
    from kvspec.score.views import read_files
    from kvspec.spec.model import ModelSpec

    try:
        model = read_files(folder).spec["model"]
        info = describe(ModelSpec(id=str(model["id"]), revision=model.get("revision")))
        tokenizer = None if info.folder is None else load_tokenizer(info.folder)
    except Exception:  # what the page lacks then is a convenience, never a result
        return Extras()
    return Extras(None if tokenizer is None else token_pieces(tokenizer), info.geometry)


def _make(folder: Path) -> None:
    from kvspec.errors import RecordsError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordsError.one("KVS501", f"cannot make `{folder}`: {error.strerror or error}") from error


def say_written(file: Path, size: int) -> None:
    """Tell people, on standard error, what was written where."""
    click.echo(f"kvspec: wrote {file} ({max(1, round(size / 1000)):,} kB)", err=True)
