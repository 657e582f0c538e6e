"""`kvspec search`: is there a fault under which a model recalls and does not reason?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json, set_option

if TYPE_CHECKING:
    from kvspec.search import Found

RESULT = "search.json"


@click.command()
@click.argument("spec", metavar="SPEC | FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the search. Default: runs/<name>-search-<digest>; that of FOLDER is FOLDER.",
)
@set_option
@click.option("--steps", type=click.IntRange(0, 30), default=5, show_default=True, help="Bisections after the grid.")
@click.option(
    "--maps",
    "most",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Trials to export as maps, an even number: retrieval and reasoning of an item each.",
)
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints every point.")
def command(
    spec: Path, out: Path | None, overrides: tuple[str, ...], steps: int, most: int, quiet: bool, output: str
) -> int:
    """Search the faults of SPEC for a zombie state: retrieval at 95 % of clean or above, reasoning at 50 % or below.

    SPEC needs a retrieval and a reasoning task, such as those of `generator: math_needle`.

    The cells of SPEC are run first. Then, for every fault, more rates are tried where reasoning falls to half and where
    retrieval is lost. Both rates are told with their intervals, and whether a state lies between them: by the answers,
    and silent, that is of trials that no check of the logits would have stopped. The closest cells are run again with
    another seed, and left as a spec (profile.yaml), figures (profile.json) and fault maps of trials (maps/). All in one
    engine.

    A FOLDER that such a search left is read again without an engine; `--out` then says where profile and maps go.

    \b
    Examples:
      kvspec search specs/zombie_search.yaml --set prompts.items=200 --out runs/zombie
      kvspec search runs/zombie --out exported --maps 4
      kvspec run runs/zombie/profile.yaml --out runs/again
      kvspec replay runs/zombie/maps/*.parquet

    \b
    Exit codes: 0 done, whether or not the state was found, 2 bad spec or usage, 3 engine failed or something is
    missing, 130 interrupted (the same command goes on; FOLDER can be read, and its profile.yaml run anywhere, into
    FOLDER/state, as the other seed).
    """
    if most % 2:
        raise click.UsageError(
            f"`--maps {most}` would part a pair: trials come in pairs, retrieval and reasoning of one item; "
            f"try {most - 1} or {most + 1}"
        )
    found = _read(spec, overrides) if spec.is_dir() else _search(spec, overrides, out, steps, quiet)
    folder = out or found.folder

    from kvspec.cli.files import write_output
    from kvspec.search.export import export

    maps = export(found, folder, most // 2)
    text = json_text(found)
    write_output(found.folder / RESULT, lambda stream: stream.write(text))
    if output == "json":
        print_json(found.to_json())
    else:
        _print(found, folder, maps)
    return 0


def json_text(found: Found) -> bytes:
    """Every point of a search as one JSON document."""
    import json

    return json.dumps(found.to_json(), indent=1).encode()


def _read(folder: Path, overrides: tuple[str, ...]) -> Found:
    from kvspec.search import read_search

    if overrides:
        raise click.UsageError("`--set` changes a spec; what is in FOLDER was measured")
    return read_search(folder)


def _search(spec: Path, overrides: tuple[str, ...], out: Path | None, steps: int, quiet: bool) -> Found:
    from kvspec.engine.requirements import require_vllm
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import CampaignProgress
    from kvspec.cli.run import default_folder
    from kvspec.search.run import search

    folder = out or default_folder(f"{plan.spec.name}-search", plan.digest)
    with CampaignProgress(quiet=quiet) as progress:
        return search(spec, overrides, folder, steps, progress)


def _print(found: Found, folder: Path, maps: list[Path]) -> None:
    from kvspec.search.export import FIGURES
    from kvspec.search.found import BOTH, PROFILE, STATE

    click.echo(
        "Rates at which a share passes its level, with 95 % intervals: by the answers, and silent, where detected"
    )
    click.echo(
        "trials are neither kept retrieval nor silent failures. Below, per rate, the trials of items solved clean:"
    )
    click.echo("right, right but detected, wrong silently, wrong and detected.\n")
    for series in found.series:
        click.echo(f"{series.label}, rates {series.fault.rate.unit}")
        for silent in BOTH:
            click.echo(f"  {'silent:' if silent else 'answers:':<9}{series.windows(silent)[0].words}")
        for point in series.points:
            state = point.closest(False)
            ends = (
                f"{task} {one.right:>4} {one.right_due:>4} {one.wrong:>4} {one.wrong_due:>4}"
                for task, one in zip((state.retrieval, state.reasoning), state.ends, strict=True)
            )
            click.echo(f"    {point.rate:<10.4g} {'   '.join(ends)}")
    for sentence in found.sentences():
        click.echo(f"\n{sentence}")
    written = [f"{len(maps)} maps", f"figures {folder / FIGURES}", f"every point {found.folder / RESULT}"]
    written += [f"profile {folder / PROFILE}"] if (folder / PROFILE).is_file() else []
    written += [f"its run {found.folder / STATE}"] if found.confirmed else []
    click.echo(f"\n{', '.join(written)}")
