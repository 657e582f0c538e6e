"""`kvspec shrink`: which flips did it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json

if TYPE_CHECKING:
    from kvspec.replay.shrink import Shrunk, Until


@click.command()
@click.argument("fault_map", type=click.Path(path_type=Path), metavar="MAP")
@click.option(
    "--until",
    type=click.Choice(["sdc", "due", "same"]),
    default="sdc",
    show_default=True,
    help="The outcome that must remain: an answer that differs from the fault-free one, one that breaks down, or "
    "exactly the one that the whole map gives.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the reduced map (.parquet or .json)."
)
@click.option("--model", metavar="ID", help="Run this model rather than the one that the map names.")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints the flips and both answers as data.")
def command(fault_map: Path, until: Until, out: Path | None, model: str | None, quiet: bool, output: str) -> int:
    """Reduce the flips of MAP to the fewest that still have the outcome, by delta debugging on the engine.

    Parts of the map run as requests of one batch. In the end no single flip can be left out. The reduced map is
    explicit and holds its answer: `kvspec replay` gives it again. Ctrl-C keeps the best so far.

    \b
    Examples:
      kvspec map export runs/first --worst 1 --out worst.parquet
      kvspec shrink worst.parquet --until sdc --out least.parquet
      kvspec replay least.parquet

    \b
    Exit codes: 0 reduced, 2 bad map or usage, or the whole map does not have the outcome,
    3 engine failed or something is missing, 130 interrupted (the best so far is printed and written).
    """
    from kvspec.engine.requirements import require_vllm
    from kvspec.replay.case import load_cases, one_model

    (case,) = load_cases([fault_map])
    chosen = one_model([case], model)
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import RequestProgress
    from kvspec.maps import write_map
    from kvspec.replay.shrink import shrink

    with RequestProgress(quiet=quiet) as progress:
        result = shrink(case, until, chosen, progress)
    if out is not None:
        write_map(result.fault_map, out)
    if output == "json":
        print_json(result.to_json())
    else:
        _print(result, out)
    return 0 if result.minimal else 130


def _print(result: Shrunk, out: Path | None) -> None:
    kept = len(result.flips)
    state = "none can be left out" if result.minimal else "interrupted: fewer may do"
    click.echo(f"{kept} of {result.whole} flips keep `{result.until}` ({state}), {result.runs} runs\n")
    click.echo("layer  head  K/V  token  elem  bit  op    before -> after")
    for flip in result.flips[:100]:
        value = "unchanged"
        if flip.before_code is not None:
            value = f"{flip.before:g} -> {flip.after:g}  ({flip.before_code:#06x} -> {flip.after_code:#06x})"
        click.echo(
            f"{flip.layer:>5}  {flip.head:>4}  {flip.kv:>3}  {flip.token:>5}  {flip.elem:>4}  {flip.bit:>3}  "
            f"{flip.op:<4}  {value}"
        )
    if kept > 100:
        click.echo(f"... {kept - 100} more")
    click.echo(f"\nfault-free  {result.golden_text!r}\nfaulted     {result.text!r}")
    if out is not None:
        click.echo(
            f"\n{out}: {kept} flips, id {result.fault_map.id[:16]}, part of {result.fault_map.header.derived_from}"
        )
