"""`kvspec plan`: what a spec will do and cost, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, set_option

if TYPE_CHECKING:
    from kvspec.plan import Plan
    from kvspec.plan.estimate import Estimate


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@click.option("--trials", "list_trials", is_flag=True, help="List every trial by id, in order.")
@format_option("`json` prints the canonical plan, its digest and the estimate; with --trials an array of ids.")
def command(spec: Path, overrides: tuple[str, ...], list_trials: bool, output: str) -> int:
    """Show the plan of SPEC: cells, trials, digest, doses in all units, expected flips, cost.

    Needs neither torch nor vLLM. The digest names what is injected: comments, key order, the engine section and
    private `x-` notes do not change it. Where the model's tokenizer is on this machine, choices that are no single
    token of it are refused.

    \b
    Examples:
      kvspec plan specs/quickstart.yaml
      kvspec plan my.yaml --format json | jq .digest
    """
    from kvspec.models import describe, find_tokenizer, prompt_lengths
    from kvspec.plan import compile_plan
    from kvspec.plan.estimate import estimate
    from kvspec.plan.lengths import choice_ids
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    if list_trials:
        ids = [trial.id for trial in plan.trials()]
        click.echo(json.dumps(ids) if output == "json" else "\n".join(ids))
        return 0
    info = describe(plan.spec.model)
    choices = plan.spec.generation.choices
    if choices and (tokenizer := find_tokenizer(plan.spec.model, info)) is not None:
        choice_ids(lambda text: tokenizer.encode(text).ids, choices)
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

    from kvspec.cli.plan_text import PLAIN_WIDTH, dose_tables

    spec = plan.spec
    console = Console(highlight=False, markup=False)  # a cell may be called `A[set0]`
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=PLAIN_WIDTH)  # one line per row, for grep and for logs
    approx = "" if expected.exact_lengths else "about "
    cost = f"{approx}{expected.prompt_tokens:,} prompt and {expected.generated_tokens:,} generated tokens"
    if spec.trials.looks is not None:
        cost = f"at most {cost}"
    time = "" if expected.cpu_seconds is None else f"about {_duration(expected.cpu_seconds)} on 2 CPU cores, "
    memory = "" if expected.memory_gib is None else f"about {expected.memory_gib:.1f} GiB of memory, "
    controls = spec.controls
    kinds = f"{controls.golden_repeats} golden repeats and {controls.null_trials} null trials a prompt"
    graded = sum(task is not None for task in spec.prompts.tasks)
    cells = "1 cell" if len(plan.cells) == 1 else f"{len(plan.cells)} cells"
    lines = [
        f"{spec.name}: {cells}, {expected.requests} requests",
        f"digest    {plan.digest}",
        f"model     {spec.model.id}, cache format {spec.model.storage_format}",
        f"n         {_trials(plan)}",
        *([f"graded    {graded} of {plan.requests} prompts"] if graded else []),
        f"floor     {expected.controls} controls ({kinds}): {_shown(plan, expected)}",
        f"cost      {cost}; {time}{memory}{expected.cache_gib:.3g} GiB of it cache contents",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
    for table in dose_tables(plan, expected, console):
        console.print()
        console.print(table)
    console.print(
        "hit: share of trials with a flip, at most; per bit (eligible), element, token (all layers) and GiB of cache: "
        "expected flips before selectors (in a spec, `per_token` is faults per token and layer, and `per_element` and "
        "`per_row` are probabilities of a fault); flips per trial and cell after them",
        soft_wrap=True,
        style="dim",
    )
    for warning in expected.warnings:
        click.echo(f"\n{warning}", err=True)


def _shown(plan: Plan, expected: Estimate) -> str:
    cells = "a cell" if len(plan.cells) == 1 else f"one of {len(plan.cells)} cells"
    if expected.detectable_drop is None:
        return f"no effect of {cells} can be shown"
    return f"a fall of accuracy by {expected.detectable_drop:.1%} in {cells} is shown with 80 % power (Fisher, Holm)"


def _trials(plan: Plan) -> str:
    trials = plan.spec.trials
    shape = f"{plan.requests} prompts x {trials.per_prompt}"
    if trials.looks is None:
        return f"{plan.trials_per_cell} trials per cell: {shape}"
    sizes = ", ".join(str(plan.requests * rounds) for rounds in trials.looks.rounds)
    return (
        f"at most {plan.trials_per_cell} trials per cell: {shape}; a cell stops at {sizes} once its "
        f"{trials.looks.each:.1%} interval is within +-{trials.looks.margin:g}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
