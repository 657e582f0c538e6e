"""`kvspec shrink`: which flips did it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json

if TYPE_CHECKING:
    from kvspec.replay.case import Case
    from kvspec.replay.recorded import RecordedRun
    from kvspec.replay.shrink import Right, Shrunk, Until


@click.command()
@click.argument("fault_map", type=click.Path(path_type=Path), metavar="MAP")
@click.option(
    "--until",
    type=click.Choice(["sdc", "due", "nan", "differs", "wrong", "same"]),
    default="sdc",
    show_default=True,
    help="The outcome that must remain.",
)
@click.option("--right", metavar="REGEX", help="With `wrong`: a right answer matches this.")
@click.option(
    "--against",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="The run that the map came from: its grader says what is wrong, and it holds a withheld prompt.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the reduced map (.parquet or .json)."
)
@click.option("--model", metavar="ID", help="Run this model rather than the one that the map names.")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints the flips and both answers as data.")
def command(
    fault_map: Path,
    until: Until,
    right: str | None,
    run: Path | None,
    out: Path | None,
    model: str | None,
    quiet: bool,
    output: str,
) -> int:
    """Reduce the flips of MAP to the fewest that still have the outcome, by delta debugging on the engine.

    Parts of the map run as requests of one batch. In the end no single flip can be left out. The reduced map is
    explicit and holds its answer: `kvspec replay` gives it again. Ctrl-C keeps the best so far.

    \b
    Outcomes:
      sdc      the answer is finished, finite, and not the fault-free one
      due      logits are not finite, or the answer does not finish
      nan      logits are not finite
      differs  sdc or due
      wrong    the answer is not right, by --right or by the run's grader
      same     the answer is the one that the whole map gives, token by token

    \b
    Examples:
      kvspec map export runs/first --worst 1 --out worst.parquet
      kvspec shrink worst.parquet --until sdc --out least.parquet
      kvspec replay least.parquet
      kvspec shrink worst.parquet --until wrong --right Paris

    \b
    Exit codes: 0 reduced, 2 bad map or usage, or the whole map does not have the outcome,
    3 engine failed or something is missing, 130 interrupted (the best so far is printed and written).
    """
    from kvspec.engine.requirements import require_vllm
    from kvspec.replay.case import load_cases, one_model
    from kvspec.replay.recorded import RecordedRun

    recorded = None if run is None else RecordedRun(run)
    case, *more = load_cases([fault_map], recorded.texts if recorded else ())
    if more:
        raise click.UsageError(f"{fault_map} holds several maps: name one")
    if right is not None and until != "wrong":
        raise click.UsageError("--right goes with --until wrong")
    grade = _right(case, right, recorded) if until == "wrong" else None
    chosen = one_model([case], model)
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import RequestProgress
    from kvspec.maps import write_map
    from kvspec.replay.shrink import shrink

    with RequestProgress(quiet=quiet) as progress:
        result = shrink(case, until, chosen, progress, right=grade)
    if out is not None:
        write_map(result.fault_map, out)
    if output == "json":
        print_json(result.to_json())
    else:
        _print(result, out)
    return 0 if result.minimal else 130


def _right(case: Case, pattern: str | None, run: RecordedRun | None) -> Right:
    """The test of an answer: a pattern, or the grader that the run has for the prompt."""
    from kvspec import _native

    if pattern is not None:
        try:
            return _native.Pattern(pattern).occurs_in
        except ValueError as error:
            raise click.UsageError(f"--right is no pattern: {error}") from error
    if run is None or (grader := run.grader(case)) is None:
        raise click.UsageError("--until wrong needs --right REGEX, or --against RUN with a grader for the prompt")
    from kvspec.score.grading import grade_function

    return grade_function(grader)


def _print(result: Shrunk, out: Path | None) -> None:
    kept = len(result.flips)
    state = "none can be left out" if result.minimal else "interrupted: fewer may do"
    click.echo(f"{kept} of {result.whole} flips keep `{result.until}` ({state}), {result.runs} runs\n")
    reads = any(flip.step for flip in result.flips)
    click.echo(f"{'step  ' if reads else ''}layer  head  K/V  token   elem  bit  op    before -> after")
    for flip in result.flips[:100]:
        step = f"{flip.step:>4}  " if reads else ""
        element = flip.elem if flip.target == "values" else "scale"
        value = "unchanged"
        if flip.before_code is not None:
            value = f"{flip.before:g} -> {flip.after:g}  ({flip.before_code:#06x} -> {flip.after_code:#06x})"
        click.echo(
            f"{step}{flip.layer:>5}  {flip.head:>4}  {flip.kv:>3}  {flip.token:>5}  {element:>5}  {flip.bit:>3}  "
            f"{flip.op:<4}  {value}"
        )
    if kept > 100:
        click.echo(f"... {kept - 100} more")
    click.echo(f"\nfault-free  {result.golden_text!r}\nfaulted     {result.text!r}")
    if out is not None:
        click.echo(
            f"\n{out}: {kept} flips, id {result.fault_map.id[:16]}, part of {result.fault_map.header.derived_from}"
        )
