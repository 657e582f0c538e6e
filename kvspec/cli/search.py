"""`kvspec search`: is there a fault under which a model recalls and does not reason?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json, set_option

if TYPE_CHECKING:
    from kvspec.search import Found

RESULT = "search.json"
MAPS = "maps"


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the search. Default: runs/<name>-<digest>-search."
)
@set_option
@click.option("--steps", type=click.IntRange(0, 30), default=5, show_default=True, help="Bisections after the grid.")
@click.option("--maps", "most", type=click.IntRange(0), default=10, show_default=True, help="Fault maps to export.")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints every point.")
def command(
    spec: Path, out: Path | None, overrides: tuple[str, ...], steps: int, most: int, quiet: bool, output: str
) -> int:
    """Search the faults of SPEC for a zombie state: retrieval at 95 % of clean or above, reasoning at 50 % or below.

    The cells of SPEC are run first. Then, for every fault, its rate is bisected between the last rate at which the best
    retrieval task keeps 95 % and the first at which none does. The closest cell is run again with another seed, and
    left as a spec of its own (profile.yaml) with fault maps of its trials (maps/). All in one engine.

    \b
    Examples:
      kvspec search specs/zombie_search.yaml --set prompts.items=385 --out runs/zombie
      kvspec run runs/zombie/profile.yaml --out runs/again
      kvspec replay runs/zombie/maps/*.parquet

    \b
    Exit codes: 0 done, whether or not the state was found, 2 bad spec or usage, 3 engine failed or something is
    missing, 130 interrupted (the same command goes on).
    """
    from kvspec.engine.requirements import require_vllm
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    require_vllm()  # the next imports need it

    from kvspec.cli.files import write_output
    from kvspec.cli.progress import CampaignProgress
    from kvspec.cli.run import default_folder
    from kvspec.search import search

    folder = out or default_folder(f"{plan.spec.name}-search", plan.digest)
    with CampaignProgress(quiet=quiet) as progress:
        found = search(spec, overrides, folder, steps, progress)
    text = json_text(found)
    write_output(folder / RESULT, lambda stream: stream.write(text))
    _export(found, folder / MAPS, most)
    if output == "json":
        print_json(found.to_json())
    else:
        _print(found, folder)
    return 0


def json_text(found: Found) -> bytes:
    """Every point of a search as one JSON document."""
    import json

    return json.dumps(found.to_json(), indent=1).encode()


def _export(found: Found, folder: Path, most: int) -> None:
    """Maps of the first trials of the state's run."""
    from kvspec.maps import write_map
    from kvspec.maps.runs import Run, file_name

    run = Run(found.state)
    chosen = sorted(run.choose((), ()))[:most]
    folder.mkdir(exist_ok=True)
    for fault_map in run.maps(chosen):
        write_map(fault_map, folder / file_name(fault_map))


def _print(found: Found, folder: Path) -> None:
    click.echo("retrieval is lost between  fault")
    for series in found.series:
        low, high = series.interval
        ends = f"{'?' if low is None else f'{low:.3g}'} and {'?' if high is None else f'{high:.3g}'}"
        click.echo(f"{ends:<25}  {series.label}")
        for point in series.points:
            click.echo(f"  {point.rate:<10.4g} {point.closest}")
    click.echo(f"\n{found.verdict()}")
    click.echo(f"\nprofile {found.profile}, its run {found.state}, maps {folder / MAPS}, every point {folder / RESULT}")
