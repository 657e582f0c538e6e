"""Fault maps in words, for `kvspec map`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kvspec.maps import MapDiff
    from kvspec.maps.summary import MapSummary


def print_summary(summary: MapSummary) -> None:
    """Who, what and where."""
    header = summary.header
    geometry, coverage, trial = header.geometry, header.coverage, header.trial or {}
    planes = "K and V" if geometry.planes == 2 else "one plane"
    lines = [
        ("id", header.id),
        (
            "kind",
            f"{header.kind}, {header.flips} flips ({header.op or 'op by row'}) of {header.target} at {header.site}s",
        ),
        ("trial", f"{header.name} of {trial.get('spec', 'no spec')}, cell {trial.get('cell', 'none')}"),
        ("plan", header.plan or "none"),
        ("model", str((header.model or {}).get("id", "none"))),
        (
            "geometry",
            f"{geometry.layers} layers x {planes} x {geometry.kv_heads} heads x {geometry.head_size} {geometry.format}",
        ),
        ("tokens", f"{coverage.tokens} written, {coverage.prompt_tokens} of them prompt"),
    ]
    if header.generator is not None:
        made = header.generator
        burst = f", bursts of {made.burst_len}" if made.burst_len > 1 else ""
        page = f", in pages of {made.page_tokens} hit with {made.page_rate:g}" if made.page_tokens else ""
        lines.append(("generator", f"{made.rate:g} per {made.per}, mask {made.mask:x}{burst}{page}"))
    if header.derived_from:
        lines.append(("part of", header.derived_from))
    for name, text in lines:
        click.echo(f"{name:<10}{text}")
    if not header.flips:
        return
    click.echo(f"{'phase':<10}{summary.prompt} in the prompt, {header.flips - summary.prompt} in generated tokens")
    counts = {name: dict(enumerate(getattr(summary, name).tolist())) for name in ("layer", "kv", "head", "bit")}
    for name, count in ({"step": summary.step} | counts).items():
        shown = [f"{'KV'[index] if name == 'kv' else index}:{flips}" for index, flips in count.items() if flips]
        if shown:
            click.echo(f"{name:<10}{' '.join(shown[:64])}{' ...' if len(shown) > 64 else ''}")
    _print_flips(summary.first, header.flips)


def _print_flips(rows: Sequence[Mapping[str, object]], total: int) -> None:
    if not rows:
        return
    names = list(rows[0])
    click.echo("\n" + "".join(f"{name:>9}" for name in names))
    for row in rows:
        click.echo("".join(f"{'KV'[row[n]] if n == 'kv' else row[n]!s:>9}" for n in names))  # type: ignore[index]
    if total > len(rows):
        click.echo(f"... {total - len(rows)} more")


def print_diff(found: MapDiff) -> None:
    """What differs, flips first."""
    if found.same_flips:
        click.echo(f"the same {found.common} flips")
    elif found.common is None:
        click.echo("the maps are for different caches or sites; their flips cannot be compared")
    else:
        click.echo(f"{found.common} flips in both, {found.only_a} only in A, {found.only_b} only in B")
        for name, rows, total in (("A", found.first_a, found.only_a), ("B", found.first_b, found.only_b)):
            if rows:
                click.echo(f"\nonly in {name}:")
                _print_flips(rows, total or 0)
    for path, a, b in found.header:
        click.echo(f"{path}: {_short(a)} | {_short(b)}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
