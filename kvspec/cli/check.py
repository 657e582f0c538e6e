"""`kvspec check`: are the specs right?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_diagnostics, print_json, set_option
from kvspec.errors import Diagnostic, SpecError

if TYPE_CHECKING:
    from kvspec.spec import Spec


@click.command()
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@set_option
@format_option("`json` prints the specs and the diagnostics as one document.")
def command(specs: tuple[str, ...], overrides: tuple[str, ...], output: str) -> int:
    """Validate SPEC files: every error at once, each with its place, what was expected, and a hint.

    Needs no model, torch or vLLM. Prints the name, cells and trials of each valid spec. Exit code 2 if one is wrong.

    \b
    Examples:
      kvspec check specs/*.yaml
      kvspec check specs/quickstart.yaml --set 'faults[0].rate.per_bit=[1e-7, 1e-6]'
      kvspec check my.yaml --format json | jq '.diagnostics[].message'
    """
    from kvspec.spec import load_spec

    valid: list[tuple[str, Spec]] = []
    found: list[Diagnostic] = []
    for path in specs:
        try:
            valid.append((path, load_spec(path, overrides)))
        except SpecError as error:
            found += error.diagnostics
    if output == "json":
        rows = [{"file": path, "name": spec.name, **_size(spec)} for path, spec in valid]
        print_json({"specs": rows, "diagnostics": [diagnostic.to_json() for diagnostic in found]})
    else:
        for path, spec in valid:
            sizes = (f"{count} {what if count != 1 else what[:-1]}" for what, count in _size(spec).items())
            click.echo(f"{path}: {spec.name}, {', '.join(sizes)}")
        print_diagnostics(found, as_json=False)
    return 2 if found else 0


def _size(spec: Spec) -> dict[str, int]:
    cells, prompts = len(spec.faults), len(spec.prompts.texts)
    return {"cells": cells, "prompts": prompts, "trials": cells * prompts * spec.trials.per_prompt}
