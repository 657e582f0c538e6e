"""`kvspec map`: fault maps, the files in which a fault is stored, cited and sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvspec.cli.output import format_option, print_json, set_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvspec.maps import FaultMap, Header

_FILE = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Store, cite, send and compare faults as files.

    A fault map holds the faults of one trial: every flipped bit by request, layer, K or V, head, token, element and
    bit, and where they come from. It is Parquet, or JSON if its name ends in .json; docs/faultmap.md defines both.
    No command here needs torch or vLLM.

    \b
    Examples:
      kvspec map export runs/first --worst 3 --out maps/
      kvspec map show maps/c0-p0-t3.write.parquet
      kvspec map verify maps/c0-p0-t3.write.parquet
    """


@command.command()
@click.argument("run", type=_FILE, metavar="RUN")
@click.option("--cell", "cells", multiple=True, metavar="NAME", help="Only trials of this cell. May be repeated.")
@click.option(
    "--trial", "trials", multiple=True, metavar="ID", help="Only this trial, such as c0/p0/t3. May be repeated."
)
@click.option(
    "--worst", type=click.IntRange(min=1), metavar="N", help="Only the N trials that drifted most from golden."
)
@click.option("--out", required=True, type=_FILE, help="File for one map (.parquet or .json), else a folder.")
@click.option("--explicit", is_flag=True, help="Write every flip as a row rather than its generator.")
@click.option("--withhold-prompt", is_flag=True, help="Put the prompt's sha256 into the map instead of its text.")
@format_option("`json` lists the files with their ids.")
def export(
    run: Path,
    cells: tuple[str, ...],
    trials: tuple[str, ...],
    worst: int | None,
    out: Path,
    explicit: bool,
    withhold_prompt: bool,
    output: str,
) -> int:
    """Write the maps of trials of the run in folder RUN, with what each trial answered.

    Without a choice: all recorded fault trials. A trial at site BOTH gives two maps, one of writes and one of reads.

    \b
    Examples:
      kvspec map export runs/first --trial c0/p0/t3 --out fault.json
      kvspec map export runs/first --cell BitRot --worst 5 --out maps/ --explicit
    """
    from kvspec.maps.runs import Run

    source = Run(run)
    chosen = source.choose(cells, trials)
    if worst is not None:
        chosen = set(_worst(run, chosen, worst))
    made = source.maps(chosen, withhold_prompt=withhold_prompt)
    return _write_all(made, out, single=len(chosen) == 1, rows=explicit, output=output)


@command.command("enumerate")
@click.argument("spec", type=_FILE, metavar="SPEC")
@set_option
@click.option("--cell", "cells", multiple=True, metavar="NAME", help="Only this cell. May be repeated.")
@click.option(
    "--trial", "trials", multiple=True, metavar="ID", help="Only this trial, such as c0/p0/t3. May be repeated."
)
@click.option("--out", required=True, type=_FILE, help="File for one map (.parquet or .json), else a folder.")
@click.option("--generative", is_flag=True, help="Write the generator rather than every flip as a row.")
@click.option("--withhold-prompt", is_flag=True, help="Put the prompt's sha256 into the map instead of its text.")
@format_option("`json` lists the files with their ids.")
def enumerate_command(
    spec: Path,
    overrides: tuple[str, ...],
    cells: tuple[str, ...],
    trials: tuple[str, ...],
    out: Path,
    generative: bool,
    withhold_prompt: bool,
    output: str,
) -> int:
    """Write the maps that a run of SPEC would inject, without running it.

    Needs the geometry of the model and its tokenizer, both from files on this machine. Requests are taken to generate
    `max_tokens` tokens.

    \b
    Examples:
      kvspec map enumerate specs/quickstart.yaml --trial c0/p0/t0 --out fault.parquet
      kvspec map enumerate my.yaml --cell BitRot --out maps/ --generative
    """
    from kvspec.maps.planned import planned_maps
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    plan = compile_plan(load_spec(spec, overrides))
    count, made = planned_maps(plan, cells, trials, withhold_prompt=withhold_prompt)
    return _write_all(made, out, single=count == 1, rows=not generative, output=output)


@command.command()
@click.argument("file", type=_FILE, metavar="MAP")
@click.option("--limit", type=click.IntRange(min=0), default=10, show_default=True, help="Flips to list.")
@format_option("`json` prints header, histograms and the first flips.")
def show(file: Path, limit: int, output: str) -> int:
    """Tell who, what and where of MAP: trial and model, generator, flips by layer, head and bit, the first flips.

    \b
    Examples:
      kvspec map show fault.parquet
      kvspec map show fault.parquet --format json --limit 1000 | jq '.first[] | select(.bit == 14)'
    """
    from kvspec.cli.map_text import print_summary
    from kvspec.maps import read_map
    from kvspec.maps.summary import summarize

    summary = summarize(read_map(file), limit)
    if output == "json":
        print_json(summary.to_json())
    else:
        print_summary(summary)
    return 0


@command.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="MAP...")
@format_option("`json` prints one document with a result per map.")
def verify(files: tuple[Path, ...], output: str) -> int:
    """Check MAP files: every value, order, geometry, hashes; and that generator, key and flips agree.

    Exit code 0 if all are sound, 1 if one is not, with the column and row that are wrong. Memory stays bounded
    whatever a file holds.

    \b
    Examples:
      kvspec map verify fault.parquet
      kvspec map verify maps/*.parquet --format json
    """
    from kvspec.cli.output import print_diagnostics
    from kvspec.errors import KvspecError
    from kvspec.maps import verify_map

    results = []
    for file in files:
        try:
            header = verify_map(file)
        except KvspecError as error:
            results.append({"file": str(file), "ok": False, "diagnostics": [d.to_json() for d in error.diagnostics]})
            if output == "text":
                print_diagnostics(error.diagnostics, as_json=False)
        else:
            results.append({"file": str(file), "ok": True, "id": header.id, "flips": header.flips})
            if output == "text":
                click.echo(f"{file}: sound, {header.flips} flips, id {header.id}")
    if output == "json":
        print_json({"maps": results})
    return 0 if all(result["ok"] for result in results) else 1


@command.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--limit", type=click.IntRange(min=0), default=10, show_default=True, help="Flips to list of each side.")
@format_option("`json` prints the differences as data.")
def diff(a: Path, b: Path, limit: int, output: str) -> int:
    """Compare the flips of maps A and B, generative or explicit.

    Exit code 0 if both inject the same flips into the same geometry, 1 if not. Differences of the headers are shown
    too, and alone do not count: two trials may hold the same flips.

    \b
    Examples:
      kvspec map diff mine.parquet theirs.parquet
    """
    from kvspec.cli.map_text import print_diff
    from kvspec.maps import diff_maps, read_map

    found = diff_maps(read_map(a), read_map(b), limit)
    if output == "json":
        print_json(found.to_json())
    else:
        print_diff(found)
    return 0 if found.same_flips else 1


def _worst(run: Path, chosen: set[str], number: int) -> Sequence[str]:
    """The ids of the trials with the largest token drift; ties go to the first in the run."""
    from kvspec.score import score_trials

    drifts: list[tuple[int, str]] = []
    for batch in score_trials(run)[1]:
        ids = batch.batch.column("trial_id").to_pylist()
        drifts += [(-int(d), i) for d, i in zip(batch.drift["token_drift"], ids, strict=True) if i in chosen]
    return [trial for _, trial in sorted(drifts, key=lambda pair: pair[0])[:number]]


def _write_all(made: Iterable[FaultMap], out: Path, *, single: bool, rows: bool, output: str) -> int:
    """Write maps as they come: into the file `out`, or, if there are several or `out` is a folder, into it."""
    from kvspec.errors import RecordsError
    from kvspec.maps import explicit, write_map
    from kvspec.maps.runs import file_name
    from kvspec.records import refuse_files_of_a_run
    from kvspec.records.folder import PARTS

    written: list[tuple[Path, Header]] = []
    folder = out.is_dir() or not (single and out.suffix in (".parquet", ".json"))
    if folder and out.suffix in (".parquet", ".json"):
        raise click.UsageError(f"several maps do not go into one file: give a folder as --out, not {out}")
    if folder:
        refuse_files_of_a_run(out / PARTS)
    try:
        out.mkdir(parents=True, exist_ok=True) if folder else None
    except OSError as error:
        raise RecordsError.one("KVS501", f"cannot make `{out}`: {error.strerror or error}") from error
    for fault_map in made:
        path = out / file_name(fault_map) if folder else out
        if path in (place for place, _ in written):
            # The trial at BOTH has a map of writes and one of reads.
            path = path.with_name(f"{path.stem}.{fault_map.header.site}{path.suffix}")
        write_map(explicit(fault_map) if rows else fault_map, path)
        written.append((path, fault_map.header))
    if output == "json":
        fields = (("trial", "name"), ("site", "site"), ("flips", "flips"), ("id", "id"))
        print_json([{"file": str(p), **{name: getattr(h, of) for name, of in fields}} for p, h in written])
    else:
        for path, header in written:
            click.echo(f"{path}: {header.name}, {header.flips} flips, id {header.id[:16]}")
    return 0
