"""How commands speak: diagnostics as text or JSON, and the shared options."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from kvspec.errors import Diagnostic

F = TypeVar("F", bound=Callable[..., Any])


def set_option(function: F) -> F:
    """`--set path=value`, as often as wanted."""
    decorate = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Override a value of the spec, such as `trials=4`. May be repeated.",
    )
    return decorate(function)


def format_option(text: str) -> Callable[[F], F]:
    """`--format text|json`; `json` turns errors into JSON too."""
    return click.option(
        "--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True, help=text
    )


def print_diagnostics(diagnostics: Iterable[Diagnostic], *, as_json: bool) -> None:
    """Text goes to stderr, so that stdout stays data. JSON is data: one document on stdout."""
    if as_json:
        print_json({"diagnostics": [found.to_json() for found in diagnostics]})
        return
    for number, found in enumerate(diagnostics):
        click.echo(("\n" if number else "") + styled(found), err=True, color=colour())


def print_json(data: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(data, indent=2))


def styled(found: Diagnostic) -> str:
    """The text of a diagnostic with its first words coloured; click takes the colour off where it is not wanted."""
    head, colon, rest = str(found).partition(": ")
    hue = "red" if found.severity == "error" else "yellow"
    lines = (click.style(head, fg=hue, bold=True) + colon + rest).split("\n")
    return "\n".join(click.style(line, fg="cyan") if line.startswith("hint: ") else line for line in lines)


def colour() -> bool | None:
    """`False` where NO_COLOR is set; `None` lets click look for a terminal."""
    return False if os.environ.get("NO_COLOR") else None


def print_unexpected(error: Exception) -> None:
    """A bug of kvspec: short by default, the traceback on request."""
    if os.environ.get("KVSPEC_TRACEBACK"):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        return
    reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
    head = click.style("internal error", fg="red", bold=True)
    click.echo(f"{head}: {type(error).__name__}: {reason}", err=True, color=colour())
    click.echo("\nhint: this is a bug in kvspec; KVSPEC_TRACEBACK=1 shows where, please report it", err=True)
