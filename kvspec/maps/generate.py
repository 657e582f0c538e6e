"""Generative -> explicit: the flips that sampling.md gives for a header, in canonical order, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kvspec import _native
from kvspec.errors import RecordsError
from kvspec.maps.columns import DTYPES, IdHasher, concatenate, names
from kvspec.maps.limits import MAX_DRAWS, MAX_EVENTS, MAX_ROWS
from kvspec.maps.model import OPS, Columns, FaultMap, Generator, Header
from kvspec.plan.events import shown_events
from kvspec.spec.model import TARGETS, Selector

BLOCK_ROWS = 1 << 22
"""Flips that a block holds, roughly."""


def shown_steps(where: Selector, steps: range) -> list[int]:
    """The read events that a selector shows, ascending. Raises KVS507 for a range that runs backwards."""
    if not isinstance(where.steps, str):
        for start, stop in where.steps:
            if stop is not None and start > stop:
                raise RecordsError.one(
                    "KVS507", f"steps {start}..{stop} run backwards", path="$.generator.selector.steps"
                )
    return shown_events(where, steps)


def sampler_of(header: Header) -> _native.Sampler:
    """The sampler of a generative header. Raises KVS507 if its numbers are no sampler."""
    assert header.generator is not None
    try:
        return header.generator.parameters(header.target).sampler(header.geometry.shape, header.geometry.bits)
    except (ValueError, OverflowError) as error:
        raise RecordsError.one("KVS507", f"the generator is not valid: {error}", path="$.generator") from error


def _selector(generator: Generator) -> _native.Selector:
    try:
        return generator.selector()
    except (ValueError, OverflowError) as error:
        raise RecordsError.one("KVS507", f"the selector is not valid: {error}", path="$.generator.selector") from error


def _events(header: Header) -> list[tuple[int | None, int]]:
    """(step, tokens) of each draw of the whole cache; step is `None` for writes."""
    assert header.generator is not None
    if header.site == "write":
        return [(None, header.coverage.tokens)]
    return [(step, step) for step in shown_steps(header.generator.where, header.coverage.steps)]


def check_cost(header: Header) -> float:
    """Expected flips of a header, selectors on sites not applied. Refuses (KVS513) what would not end soon."""
    sampler, geometry = sampler_of(header), header.geometry
    cells = {"token": 1}.get(sampler.level, geometry.planes * geometry.kv_heads)
    draws = {"dense": sampler.eligible_bits_per_row}.get(sampler.level, 1)
    if header.site == "read" and len(header.coverage.steps) > MAX_EVENTS:
        raise _too_much(f"{len(header.coverage.steps)} read events", f"at most {MAX_EVENTS} events")
    positions = sum(tokens for _, tokens in _events(header)) * geometry.layers
    flips = positions * geometry.planes * geometry.kv_heads * sampler.expected_flips_per_row
    if positions * cells * draws > MAX_DRAWS or flips > 2 * MAX_ROWS:
        raise _too_much(
            f"{positions:.3g} (layer, token) pairs, {flips:.3g} flips expected",
            f"at most {MAX_DRAWS} draws and {MAX_ROWS} flips",
        )
    return flips


def _too_much(what: str, expected: str) -> RecordsError:
    return RecordsError.one(
        "KVS513",
        f"the generator covers too much: {what}",
        path="$.coverage",
        expected=expected,
        hint="cover fewer tokens, or lower the rate",
    )


def blocks(header: Header) -> Iterator[Columns]:
    """The flips of a generative header, in canonical order, in blocks of bounded size.

    Raises `RecordsError`: KVS507 for numbers that are no sampler, KVS513 for more than can be enumerated.
    """
    flips = check_cost(header)
    generator = header.generator
    assert generator is not None
    sampler, selector = sampler_of(header), _selector(generator)
    request = int((header.trial or {}).get("request", 0))
    layers = header.geometry.layers
    events = _events(header)
    per_layer = flips / max(1, layers * len(events))
    at_once = max(1, min(layers, int(BLOCK_ROWS / max(per_layer, 1.0))))
    total = 0
    for step, tokens in events:
        key = generator.key if step is None else _native.read_key(generator.key, request, step)
        for start in range(0, layers, at_once):
            found: Columns = sampler.enumerate(
                key=key,
                request=request,
                layers=(start, min(layers, start + at_once)),
                tokens=(0, tokens),
                prompt_len=header.coverage.prompt_tokens,
                selector=selector,
            )
            rows = len(found["request"])
            total += rows
            if total > MAX_ROWS:
                raise _too_much(f"more than {MAX_ROWS} flips", f"at most {MAX_ROWS}")
            if rows:
                yield _completed(found, header, step, rows)


def _completed(found: Columns, header: Header, step: int | None, rows: int) -> Columns:
    columns = dict(found)
    if step is not None:
        columns["step"] = np.full(rows, step, np.uint32)
    if header.op is None:
        columns["op"] = np.full(rows, OPS.index("flip"), np.uint8)
    return {name: columns[name] for name in names(header.site, header.op)}


def count_and_id(header: Header) -> tuple[int, str]:
    """Flips and id of a generative header, in the memory of one block."""
    hasher = IdHasher(header)
    for block in blocks(header):
        hasher.push(block)
    return hasher.rows, hasher.finish()


def explicit(fault_map: FaultMap) -> FaultMap:
    """The same map with all its flips. Raises KVS511 if they do not give the id of the header."""
    if fault_map.columns is not None:
        return fault_map
    header = fault_map.header
    found = list(blocks(header))
    hasher = IdHasher(header)
    for block in found:
        hasher.push(block)
    if (hasher.rows, (identity := hasher.finish())) != (header.flips, header.id):
        raise RecordsError.one(
            "KVS511",
            f"the generator of `{header.name}` gives {hasher.rows} flips with the id `{identity}`, "
            f"the header says {header.flips} and `{header.id}`",
            path="$.id",
        )
    return FaultMap(replace(header, kind="explicit"), concatenate(found, header.site, header.op))


def events_of(maps: Sequence[FaultMap]) -> Columns:
    """All flips of the maps of a trial, with the columns that a map may lack: `step`, which is 0 for a write, `op`, and
    `target`, 1 where it is a scale.

    Raises like `explicit`.
    """
    parts = [_with_all_columns(explicit(fault_map)) for fault_map in maps]
    return {name: np.concatenate([part[name] for part in parts]) for name in (*DTYPES, "target")}


def _with_all_columns(whole: FaultMap) -> Columns:
    assert whole.columns is not None
    columns = dict(whole.columns)
    if whole.header.site == "write":
        columns["step"] = np.zeros(len(whole), DTYPES["step"])
    if whole.header.op is not None:
        columns["op"] = np.full(len(whole), OPS.index(whole.header.op), DTYPES["op"])
    columns["target"] = np.full(len(whole), TARGETS.index(whole.header.target), np.uint8)
    return columns
