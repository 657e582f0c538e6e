"""Where a single flip shows: the trials in which exactly one flip landed, by bit, layer and position.

Records count flips; where the one flip of a trial was follows from the keys of the plan (`kvspec.score.flips`), so a
campaign that draws its sites at random is also a map of them. Faults of `random` and `msb_biased` on writes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvspec.score.cells import CellPlan
from kvspec.score.draws import CellDraws
from kvspec.score.trials import TrialScores
from kvspec.stats.association import association, slope
from kvspec.stats.exact import ALPHA, Strata, holm
from kvspec.stats.intervals import Difference, Proportion

SINGLE_FLIP_MODELS = ("random", "msb_biased")
FEWEST = 300
"""Trials with a single flip below which there is no anatomy."""
PER_SQUARE = 10
"""Trials that a square of a map holds on average, or the map is left out."""
TENTHS = 10
AT_BIT = "K against V at bit "


@dataclass(frozen=True, slots=True)
class Square:
    """One square of a map."""

    row: str
    column: str
    visible: Proportion
    """Trials with a visible effect, sdc or due, of those whose flip was here."""


@dataclass(frozen=True, slots=True)
class SiteMap:
    """A heat map: what two coordinates of the one flip do."""

    name: str
    rows: str
    """What the rows are."""
    columns: str
    squares: tuple[Square, ...]
    """By row and column; those without a trial left out."""


@dataclass(frozen=True, slots=True)
class SiteTest:
    """Does it matter where? Within strata, so that no other coordinate is taken for this one."""

    name: str
    strata: str
    """What is equal inside a stratum."""
    statistic: str
    """chi2 with its degrees of freedom, z, or exact."""
    value: float | None
    """chi2 or z; `None` for the exact test."""
    difference: Difference | None
    """Of two groups: share of the first less that of the second (Mantel-Haenszel)."""
    p: float
    """Two-sided."""
    p_holm: float
    """Adjusted over the tests of the anatomy."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What a single flip does, by its place."""

    trials: int
    """Finished, scored trials with one flip whose place is known."""
    unlocated: int
    """Those whose place does not follow from the plan: in nothing here."""
    maps: tuple[SiteMap, ...]
    """Those with trials enough."""
    tests: tuple[SiteTest, ...]


@dataclass(frozen=True, slots=True)
class Sites:
    """Single flips. All arrays are `[N]`."""

    visible: NDArray[np.bool_]
    request: NDArray[np.int64]
    bit: NDArray[np.int64]
    value: NDArray[np.int64]
    """0 is K, 1 is V."""
    layer: NDArray[np.int64]
    tenth: NDArray[np.int64]
    """0 to 9: tenth of the tokens that the request wrote."""
    generated: NDArray[np.bool_]
    """The token was generated, not of the prompt."""


class Singles:
    """Collects the trials with one flip while batches stream by."""

    def __init__(self, cells: Sequence[CellPlan]) -> None:
        """Start with none."""
        self._cells = cells
        kept = [
            c.fault["model"] in SINGLE_FLIP_MODELS
            and c.fault["site"] == "KV_WRITE"
            and c.fault.get("op", "flip") == "flip"
            and c.fault.get("target", "values") == "values"
            for c in cells
        ]
        self._kept = np.array(kept, bool)
        self._found: list[NDArray[np.int64]] = []

    def add(self, batch: TrialScores, single: NDArray[np.bool_], visible: NDArray[np.bool_]) -> None:
        """Take in the fault trials `single` of a batch, which are in the plan."""
        rows = np.flatnonzero(single)
        rows = rows[self._kept[batch.cell[rows]]]
        columns = [
            batch.batch.column(name).to_numpy(zero_copy_only=False)[rows]
            for name in ("trial", "prompt_tokens", "tokens_written")
        ]
        every = batch.cell[rows], batch.request[rows], *columns, visible[rows]
        self._found.append(np.stack([np.asarray(column, np.int64) for column in every], axis=1))

    @property
    def enough(self) -> bool:
        """Whether there may be an anatomy."""
        return sum(map(len, self._found)) >= FEWEST

    def finish(self, plan: Mapping[str, Any], geometry: Any) -> Anatomy | None:
        """The anatomy; `None` with too few single flips, or a model whose shape is not known on this machine.

        Args:
            plan: content of `plan.json`.
            geometry: the model's `kvspec.models.Geometry`, or `None`.
        """
        found = np.concatenate(self._found) if self._found else np.zeros((0, 6), np.int64)
        if geometry is None or len(found) < FEWEST:
            return None
        # The run's own order depends on what ended first.
        found = found[np.lexsort(found.T[::-1])]
        places, kept = self._locate(found, plan, geometry)
        located = found[kept]
        if len(located) < FEWEST:
            return None
        layer, value, bit, token = places[kept].T
        written = np.maximum(located[:, 4], 1)
        sites = Sites(
            visible=located[:, 5].astype(bool),
            request=located[:, 1],
            bit=bit,
            value=value,
            layer=layer,
            tenth=np.minimum(TENTHS * token // written, TENTHS - 1),
            generated=token >= located[:, 3],
        )
        return Anatomy(len(located), len(found) - len(located), site_maps(sites), site_tests(sites))

    def _locate(
        self, found: NDArray[np.int64], plan: Mapping[str, Any], geometry: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(layer, K or V, bit, token) of each trial, and whether they are known."""
        places, kept = np.zeros((len(found), 4), np.int64), np.zeros(len(found), bool)
        draws = {c: CellDraws.of(plan, self._cells[c].fault, c, geometry) for c in np.unique(found[:, 0]).tolist()}
        for row, (cell, request, trial, prompt, written, _) in enumerate(found.tolist()):
            if (mine := draws[cell]) is None:
                continue
            flips = mine.sampler.enumerate(tokens=(0, written), **mine.of_trial(request, trial, prompt))
            if len(flips["layer"]) == 1:
                kept[row] = True
                places[row] = [int(flips[name][0]) for name in ("layer", "kv", "bit", "token")]
        return places, kept


def site_maps(sites: Sites) -> tuple[SiteMap, ...]:
    """Bit by K or V, layer by K or V, position by phase, bit by layer: those whose squares hold trials enough."""
    planes, phases = ("K", "V"), ("prompt", "generated")
    bits = [f"{bit}" for bit in range(int(sites.bit.max()) + 1)]
    layers = [f"{layer}" for layer in range(int(sites.layer.max()) + 1)]
    tenths = [f"{10 * tenth}-{10 * tenth + 10} %" for tenth in range(TENTHS)]
    phase = sites.generated.astype(np.int64)
    maps = (
        _map(sites, "bit", ("Bit", sites.bit, bits), ("K or V", sites.value, planes), downwards=True),
        _map(sites, "layer", ("Layer", sites.layer, layers), ("K or V", sites.value, planes)),
        _map(sites, "position", ("Position", sites.tenth, tenths), ("phase", phase, phases)),
        _map(sites, "bit-layer", ("Bit", sites.bit, bits), ("layer", sites.layer, layers), downwards=True),
    )
    return tuple(one for one in maps if len(sites.bit) >= PER_SQUARE * len(one.squares))


Axis = tuple[str, NDArray[np.int64], Sequence[str]]


def _map(sites: Sites, name: str, rows: Axis, columns: Axis, *, downwards: bool = False) -> SiteMap:
    shape = len(rows[2]), len(columns[2])
    every, seen = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(every, (rows[1], columns[1]), 1)
    np.add.at(seen, (rows[1][sites.visible], columns[1][sites.visible]), 1)
    order = range(shape[0])
    squares = tuple(
        Square(rows[2][r], columns[2][c], Proportion.of(int(seen[r, c]), int(every[r, c])))
        for r in (reversed(order) if downwards else order)
        for c in range(shape[1])
        if every[r, c]
    )
    return SiteMap(name, rows[0], columns[0], squares)


def site_tests(sites: Sites) -> tuple[SiteTest, ...]:
    """Bits, K against V, that at each bit, layers, depth, position, phase; Holm over all of them."""
    prompt, bit, value, layer = sites.request, sites.bit, sites.value, sites.layer
    place, everywhere = _joined(prompt, bit, value), np.ones(len(bit), bool)
    found: list[tuple[str, str, str, float | None, Difference | None, float]] = []

    def general(name: str, strata: str, group: NDArray[np.int64], stratum: NDArray[np.int64]) -> None:
        if (test := association(sites.visible, group, stratum)) is not None:
            found.append((name, strata, f"chi2, {test.freedom} degrees of freedom", test.chi2, None, test.p))

    def ordered(name: str, strata: str, score: NDArray[np.int64], stratum: NDArray[np.int64]) -> None:
        if (test := slope(sites.visible, score, stratum)) is not None:
            found.append((name, strata, "z", test.z, None, test.p))

    def two(
        name: str, strata: str, first: NDArray[np.bool_], stratum: NDArray[np.int64], of: NDArray[np.bool_] = everywhere
    ) -> None:
        counts = [
            np.bincount(stratum[rows & of], minlength=int(stratum.max()) + 1)
            for rows in (first & sites.visible, first, ~first & sites.visible, ~first)
        ]
        both = Strata.of(*counts)
        if len(both.k1):
            found.append((name, strata, "exact", None, both.difference(), both.different()))

    general("bits", "prompt, K or V", bit, _joined(prompt, value))
    two("K against V", "prompt, bit", value == 0, _joined(prompt, bit))
    for one in np.unique(bit)[::-1].tolist():
        two(f"{AT_BIT}{one}", "prompt", value == 0, _joined(prompt), bit == one)
    general("layers", "prompt, bit, K or V", layer, place)
    ordered("depth", "prompt, bit, K or V", layer, place)
    two("prompt against generated tokens", "prompt, bit, K or V", ~sites.generated, place)
    ordered("position", "prompt, bit, K or V", sites.tenth, place)
    adjusted = holm([test[-1] for test in found])
    return tuple(SiteTest(*test, p_holm=p) for test, p in zip(found, adjusted, strict=True))


def _joined(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number per combination of values, from 0 on."""
    joined = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1]
    numbers: NDArray[np.int64] = joined.reshape(-1).astype(np.int64)
    return numbers


def anatomy_sentences(anatomy: Anatomy | None) -> list[str]:
    """What the maps and tests show; nothing without an anatomy."""
    if anatomy is None:
        return []
    tests = {test.name: test for test in anatomy.tests}
    maps = {one.name: one for one in anatomy.maps}
    lost = f"; {anatomy.unlocated:,} more are not located" if anatomy.unlocated else ""
    said = [f"Places of {anatomy.trials:,} single flips are known from the plan's keys{lost}. Tests: Holm over all."]
    if test := tests.get("bits"):
        ranked = _ranked(maps.get("bit"))
        ends = f"; most: {_squares(ranked[:4], 'bit ')}; least: {_squares(ranked[:-3:-1], 'bit ')}" if ranked else ""
        # Of squares that are not told apart the extremes are those of chance.
        said.append(f"Bits: {_whether(test, 'they differ', 'no difference is shown')}{ends * _shown(test)}.")
    if test := tests.get("K against V"):
        more = "a flip in K shows more often" if _above(test) else "a flip in V shows more often"
        text = f"K against V: {_whether(test, more, 'no difference is shown over all bits')}"
        apart = [one for one in anatomy.tests if one.name.startswith(AT_BIT) and one.p_holm < ALPHA]
        for one in apart:
            more = f"{one.name.removeprefix('K against V ')} {'K' if _above(one) else 'V'} shows more often"
            text += f"; {_whether(one, more, '')}"
        said.append(f"{text}.")
    if test := tests.get("layers"):
        text = f"Layers: {_whether(test, 'they differ', 'no difference is shown')}"
        if (depth := tests.get("depth")) is not None:
            way = f"with depth a flip shows {'more' if (depth.value or 0.0) > 0 else 'less'} often"
            text += f"; {_whether(depth, way, 'no trend with depth is shown')}"
        ranked = _ranked(maps.get("layer"))
        most = f"; most: {_squares(ranked[:3], 'layer ')}" if ranked else ""
        said.append(f"{text}{most * _shown(test)}.")
    if test := tests.get("position"):
        way = f"later in the context a flip shows {'more' if (test.value or 0.0) > 0 else 'less'} often"
        text = f"Position: {_whether(test, way, 'no trend along the context is shown')}"
        if (phase := tests.get("prompt against generated tokens")) is not None:
            more = f"{'prompt' if _above(phase) else 'generated'} tokens show it more often"
            text += f"; {_whether(phase, more, 'prompt against generated tokens: no difference is shown')}"
        said.append(f"{text}.")
    return said


def _whether(test: SiteTest, shown: str, otherwise: str) -> str:
    difference = test.difference
    size = "" if difference is None else f"{difference.value:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}], "
    p = f"p = {test.p_holm:.2g}" if test.p_holm >= 1e-15 else "p < 1e-15"
    what = "exact" if test.value is None else f"{test.statistic.split(',')[0]} = {test.value:.1f}"
    return f"{shown if _shown(test) else otherwise} ({size}{what}, {p})"


def _shown(test: SiteTest) -> bool:
    return test.p_holm < ALPHA


def _above(test: SiteTest) -> bool:
    return test.difference is not None and test.difference.value > 0


def _ranked(found: SiteMap | None) -> list[Square]:
    """The squares of a map, the most visible first; nothing without it."""
    return [] if found is None else sorted(found.squares, key=lambda square: -(square.visible.rate or 0.0))


def _squares(squares: Sequence[Square], prefix: str) -> str:
    return ", ".join(
        f"{prefix}{one.row} in {one.column} {one.visible.rate or 0.0:.1%} [{one.visible.low or 0.0:.1%}, "
        f"{one.visible.high or 0.0:.1%}]"
        for one in squares
    )
