"""The `kvspec` command: a group whose subcommands are imported only when they run."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from kvspec.errors import KvspecError

COMMANDS = {
    "check": ("kvspec.cli.check:command", "Validate specs; show every error with its place."),
    "plan": ("kvspec.cli.plan:command", "Show cells, doses, expected flips and cost before anything runs."),
    "run": ("kvspec.cli.run:command", "Run a campaign, score it and print the report."),
    "search": ("kvspec.cli.search:command", "Search a spec's rates and places for the zombie state."),
    "score": ("kvspec.cli.score:command", "Score the records of a run."),
    "report": ("kvspec.cli.report:command", "Print the report of a run."),
    "diff": ("kvspec.cli.diff:command", "Compare two runs: spec, environment, results."),
    "map": ("kvspec.cli.map:command", "Export, enumerate, show, verify and compare fault maps."),
    "replay": ("kvspec.cli.replay:command", "Run the trials of fault maps again, with exactly their flips."),
    "shrink": ("kvspec.cli.shrink:command", "Reduce a fault map to the fewest flips that keep its outcome."),
    "verify": ("kvspec.cli.verify:command", "Test the injector itself; write a certificate."),
    "schema": ("kvspec.cli.schema:command", "Print a JSON Schema, for editors and other labs."),
}
"""Name of each command, where it lives, and its line in the help. Read by the help, so nothing is imported for it."""

EPILOG = """\b
Examples:
  kvspec check specs/quickstart.yaml
  kvspec plan specs/quickstart.yaml --set trials=100
  kvspec run specs/quickstart.yaml --out runs/first

\b
Exit codes: 0 done, 1 findings, 2 bad spec or usage, 3 engine or prerequisite.
"""


class Main(click.Group):
    """Imports a subcommand when it is asked for, and turns every failure into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All commands, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands in the help, written from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and note whether the subcommand was asked for JSON."""
        # The subcommand's context is gone when its error arrives here, so what it was asked is noted now.
        pairs = zip(args, [*args, ""][1:], strict=True)
        ctx.meta["kvspec.json"] = any(p == ("--format", "json") or p[0] == "--format=json" for p in pairs)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a number that it returns is the exit code."""
        try:
            result = super().invoke(ctx)
        except KvspecError as error:
            from kvspec.cli.output import print_diagnostics

            print_diagnostics(error.diagnostics, as_json=ctx.meta["kvspec.json"])
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click has messages and exit codes of its own for these
        except BrokenPipeError:
            _stop_writing()
            ctx.exit(141)  # as if SIGPIPE had ended it: 1 would mean findings
        except OSError as error:
            if error.errno != errno.ENOSPC:
                _unexpected(ctx, error)
            _stop_writing()
            click.echo("error: no space left where the output goes", err=True)
            ctx.exit(3)
        except Exception as error:
            _unexpected(ctx, error)
        if isinstance(result, int):
            ctx.exit(result)
        return result


def _stop_writing() -> None:
    """Let the interpreter flush standard output into nothing when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(ctx: click.Context, error: Exception) -> NoReturn:
    from kvspec.cli.output import print_unexpected

    print_unexpected(error)
    ctx.exit(3)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from kvspec import __version__

        click.echo(f"kvspec {__version__}")
        ctx.exit()


@click.group(cls=Main, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Declare faults in the KV cache of a vLLM model, inject them, and see what they do to its answers.

    A campaign is one YAML file. `check` validates it, `plan` shows what it will do, `run` does it.
    """


def entry() -> NoReturn:
    """The `kvspec` command. After an engine it ends at once: its work is on disk and its engine closed, and taking
    torch, vLLM and CUDA apart object by object takes seconds."""
    # Fits of four parameters lose more to the threads of a BLAS than they take: 3.4 s, alone 0.7 s, for 320 cells.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        main()
    except SystemExit as ended:
        import multiprocessing

        # processes that are still there (an engine failed, say) are ended by the interpreter
        if "vllm" in sys.modules and isinstance(ended.code, int) and not multiprocessing.active_children():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code)
        raise
    sys.exit(0)
