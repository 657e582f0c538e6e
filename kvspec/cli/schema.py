"""`kvspec schema`: the schemas that other tools can use."""

from __future__ import annotations

from typing import Literal

import click


@click.command()
@click.argument("name", type=click.Choice(["spec", "faultmap", "report", "diff", "certificate"]), default="spec")
def command(name: Literal["spec", "faultmap", "report", "diff", "certificate"]) -> None:
    """Print the JSON Schema (draft-07) of a spec, a fault map's header, a report, a comparison or a certificate.

    \b
    Examples:
      kvspec schema spec > spec.schema.json
      kvspec schema faultmap > faultmap.schema.json
      kvspec schema report > report.schema.json
      # then let an editor use it, as the first line of a spec:
      # yaml-language-server: $schema=spec.schema.json
    """
    from kvspec import _native

    click.echo(_native.schema(name), nl=False)
