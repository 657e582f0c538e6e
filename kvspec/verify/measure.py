"""From what was read back to counts and exact tests. Pure: arrays in, numbers out.

A draw is what a sampler draws at once: the writes of a trial, or one of its read events.

A binomial test needs independent units. They differ by model: bits of `random` per bit, elements per element, rows
per row; a burst flips several bits of a row, so rows are counted; a page is hit as a whole, so pages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from kvspec.models import Geometry
from kvspec.plan.dose import SamplerParameters

ALPHA = 1e-5
"""Level of each test. The seed is fixed, so a sound injector always gives the same figures."""

Changes = dict[str, NDArray[np.int64]]
"""Elements that were found changed, as `engine.vllm.readback.CHANGES` names the columns."""


@dataclass(frozen=True)
class Draw:
    """One draw as it was read back."""

    changes: Changes
    tokens: int
    """Token positions that it covers."""


@dataclass(frozen=True)
class Rate:
    """Expected against measured, in the units that are independent."""

    unit: str
    exposed: int
    expected: float
    measured: int
    p_value: float

    @property
    def passed(self) -> bool:
        """Whether the measured count is plausible."""
        return self.p_value >= ALPHA


def flips(draws: Sequence[Draw]) -> int:
    """Bits that changed."""
    return sum(_popcount(_masks(d.changes)) for d in draws)


def stray_bits(draws: Sequence[Draw], mask: int) -> int:
    """Changed bits that the mask does not allow."""
    return sum(_popcount(_masks(d.changes) & ~mask) for d in draws)


def rate(draws: Sequence[Draw], fault: SamplerParameters, geometry: Geometry) -> Rate:
    """Compare the number of units that were hit with the binomial distribution that the fault declares."""
    rows = geometry.layers * geometry.planes * geometry.kv_heads
    elements, _ = fault.elements(geometry, 0)
    bits = fault.mask.bit_count()
    positions = sum(d.tokens for d in draws)
    if fault.page_tokens:
        per_page = geometry.kv_heads * elements * bits * fault.page_tokens
        pages = sum(d.tokens // fault.page_tokens for d in draws) * geometry.layers * geometry.planes
        hit = sum(_pages_hit(d, fault.page_tokens) for d in draws)
        return _rate("pages", pages, fault.page_rate * -np.expm1(per_page * np.log1p(-fault.rate)), hit)
    if fault.burst_len > 1:
        units = {"bit": elements * bits, "element": elements, "row": 1}[fault.per]
        return _rate("rows", positions * rows, -np.expm1(units * np.log1p(-fault.rate)), _distinct(draws, ROW))
    if fault.per == "bit":
        return _rate("bits", positions * rows * elements * bits, fault.rate, flips(draws))
    if fault.per == "element":
        return _rate("elements", positions * rows * elements, fault.rate, _distinct(draws, ELEMENT))
    return _rate("rows", positions * rows, fault.rate, _distinct(draws, ROW))


ROW = ("layer", "kv", "head", "token")
ELEMENT = (*ROW, "elem")
PLACE = ("step", *ELEMENT)


def coincidences(draws: Sequence[Draw], along: str, probability: float, sites: int) -> Rate:
    """Bits that flipped at two neighbouring tokens, layers, or steps (read events). Independent draws coincide in
    `probability` squared of `sites` pairs; an injector that repeats its bits coincides in all of them."""
    names = [n for n in PLACE if n != along]
    found = 0
    for draw in draws:
        bits = _bits(draw.changes)
        here = {tuple(row) for row in np.stack([bits[along], *(bits[n] for n in names), bits["bit"]], 1).tolist()}
        found += sum((row[0] + 1, *row[1:]) in here for row in here)
    expected = probability**2
    return Rate(f"pairs of {along}s", sites, sites * expected, found, float(binom.sf(found - 1, sites, expected)))


def _rate(unit: str, exposed: int, probability: float, hit: int) -> Rate:
    p = float(binomtest(min(hit, exposed), exposed, probability).pvalue) if exposed else 1.0
    return Rate(unit, exposed, exposed * probability, hit, p)


def _masks(changes: Changes) -> NDArray[np.int64]:
    return changes["before"] ^ changes["after"]


def _popcount(masks: NDArray[np.int64]) -> int:
    return int((masks[:, None] >> np.arange(32) & 1).sum())


def _bits(changes: Changes) -> Changes:
    """One row per changed bit."""
    masks = _masks(changes)
    row, bit = np.nonzero(masks[:, None] >> np.arange(32) & 1)
    return {name: changes[name][row] for name in PLACE} | {"bit": bit}


def _distinct(draws: Sequence[Draw], names: Sequence[str]) -> int:
    return sum(len(np.unique(np.stack([d.changes[n] for n in names], 1), axis=0)) for d in draws)


def _pages_hit(draw: Draw, page_tokens: int) -> int:
    """Whole pages with a flip."""
    page = draw.changes["token"] // page_tokens
    whole = page < draw.tokens // page_tokens
    found = np.stack([draw.changes["layer"][whole], draw.changes["kv"][whole], page[whole]], 1)
    return len(np.unique(found, axis=0))
