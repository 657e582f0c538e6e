"""`kvspec run`: a spec becomes a campaign on real vLLM, then a report."""

from __future__ import annotations

from pathlib import Path

import click

from kvspec.cli.output import format_option, print_diagnostics, set_option


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. Default: runs/<name>-<digest>.")
@set_option
@click.option("--quiet", is_flag=True, help="No progress, only the report.")
@format_option("Form of the report on standard output.")
@click.option("--html", is_flag=True, help="Also leave the page `report.html` in the run folder (2 to 3 s more).")
def command(spec: Path, out: Path | None, overrides: tuple[str, ...], quiet: bool, output: str, html: bool) -> int:
    """Run the campaign that SPEC declares, and report it.

    Every trial of every cell, the golden runs and the null controls go through one vLLM engine in one continuous
    batch. Finished trials are written as they end: after Ctrl-C or a crash, the same command goes on where it
    stopped.

    \b
    Examples:
      kvspec run specs/quickstart.yaml --html
      kvspec run specs/gpt2_bitrot.yaml --set model.id=bundled:smollm2
      kvspec run my.yaml --set trials=20 --set seed=7 --out runs/more

    \b
    Exit codes: 0 done, 1 flips did not land as planned, 2 bad spec or usage, 3 engine failed or something is missing,
    130 interrupted (what is done is kept).
    """
    from kvspec.engine.requirements import require_vllm
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import CampaignProgress
    from kvspec.engine.campaign import run_campaign
    from kvspec.errors import Diagnostic
    from kvspec.report import print_report
    from kvspec.score import score_run

    folder = out or default_folder(plan.spec.name, plan.digest)
    with CampaignProgress(quiet=quiet) as progress:
        outcome = run_campaign(plan, folder, progress)
    scores = score_run(outcome.store_path)
    print_report(scores, output)
    if html:
        leave_page(outcome.store_path)
    if not scores.sound:
        # On standard error, whatever the form of the report: standard output is one document.
        found = Diagnostic(
            "KVS404",
            "in some trials the flips that landed differ from those planned",
            hint="these trials are marked in the records and left out of every figure: please report it",
        )
        print_diagnostics([found], as_json=False)
    return 0 if scores.sound else 1


def leave_page(folder: Path) -> None:
    """Write the page of a run into its folder and say where it is. Whatever fails here must not spoil the run."""
    from kvspec.cli.report import PAGE, write_drawings

    page = folder / PAGE
    try:
        write_drawings(folder, page, None)
    except Exception as error:  # the run is done and reported; only the page is missing
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        click.echo(f"kvspec: no page was written ({reason}); later: kvspec report {folder} --html {page}", err=True)


def default_folder(name: str, digest: str) -> Path:
    """Where a run goes if nobody says."""
    return Path("runs") / f"{name}-{digest[:12]}"
