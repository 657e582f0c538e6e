"""`kvspec plan`: what a spec will do and cost, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvspec.plan import Plan
    from kvspec.plan.estimate import Estimate


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a value of the spec.")
@click.option("--trials", "list_trials", is_flag=True, help="List every trial by id, in order.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="`json` prints the canonical plan, its digest and the estimate.",
)
def command(spec: Path, overrides: tuple[str, ...], list_trials: bool, output: str) -> int:
    """Show the plan of SPEC: cells, trials, digest, doses in all units, expected flips, cost.

    Needs neither torch nor vLLM. The digest names what is injected: comments, key order, the engine section and
    private `x-` notes do not change it.

    \b
    Examples:
      kvspec plan specs/quickstart.yaml
      kvspec plan my.yaml --format json | jq .digest
    """
    from kvspec.models import describe, prompt_lengths
    from kvspec.plan import compile_plan
    from kvspec.plan.estimate import estimate
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    if list_trials:
        for trial in plan.trials():
            click.echo(trial.id)
        return 0
    info = describe(plan.spec.model)
    lengths, exact = prompt_lengths(plan.spec.model, info, plan.spec.prompts.texts)
    expected = estimate(plan, info, lengths, exact)
    if output == "json":
        data = {"digest": plan.digest, "plan": plan.to_json(), "estimate": expected.to_json()}
        click.echo(json.dumps(data, indent=2, sort_keys=True))
    else:
        _print_text(plan, expected)
    return 0


def _print_text(plan: Plan, expected: Estimate) -> None:
    from rich.console import Console
    from rich.table import Table

    spec = plan.spec
    console = Console(highlight=False)
    approx = "" if expected.exact_lengths else "about "
    console.print(f"{spec.name}: {len(plan.cells)} cells, {expected.requests} requests", markup=False)
    console.print(f"digest    {plan.digest}", markup=False)
    console.print(f"model     {spec.model.id}, cache format {spec.model.storage_format}", markup=False)
    console.print(
        f"n         {plan.trials_per_cell} trials per cell: {plan.requests} prompts x {spec.trials.per_prompt}; "
        f"controls: {spec.controls.golden_repeats} golden repeats and {spec.controls.null_trials} null trials a prompt",
        markup=False,
        soft_wrap=True,
    )
    time = "" if expected.cpu_seconds is None else f"; about {_duration(expected.cpu_seconds)} on 2 CPU cores"
    console.print(
        f"cost      {approx}{expected.prompt_tokens:,} prompt and {expected.generated_tokens:,} generated tokens, "
        f"{expected.cache_gib:.3g} GiB of cache{time}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cell", overflow="fold")
    for name in ("rate", "n", "flips/trial", "flips/cell", "per bit", "per element", "per token", "per GiB"):
        table.add_column(name, justify="right")
    for cell, figures in zip(plan.cells, expected.cells, strict=True):
        dose = figures.dose
        numbers = (dose.per_eligible_bit, dose.per_element, dose.per_token, dose.per_gib)
        table.add_row(
            cell.name,
            str(cell.fault.rate),
            str(figures.trials),
            f"{figures.expected_flips_per_trial:.3g}",
            f"{figures.expected_flips:.3g}",
            *(f"{number:.2e}" for number in numbers),
        )
    console.print(table)
    console.print(
        "expected flips per eligible bit, element, token (all layers) and GiB of cache, before selectors; "
        "flips per trial and cell after them",
        markup=False,
        soft_wrap=True,
        style="dim",
    )
    for warning in expected.warnings:
        click.echo(f"\n{warning}", err=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
