"""Doses: from a declared rate to the sampler's parameters, and from there to every unit people think in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvspec import _native
from kvspec.errors import PlanError
from kvspec.models import Geometry
from kvspec.spec.model import Fault, Rate

MBIT = 2**20
SCALE_BITS = 32
"""A stored scale is a float32."""
FIT_HOURS = 1e9
"""FIT counts failures per 10^9 device-hours."""


@dataclass(frozen=True, slots=True)
class SamplerParameters:
    """A fault in the words of `_native.Sampler` (sampling.md, sections 4 to 6)."""

    per: str
    """Unit of the draw: bit, element or row."""
    rate: float
    """Probability per unit."""
    mask: int
    """Eligible bits of every element."""
    burst_len: int
    page_tokens: int
    """0: no page model."""
    page_rate: float
    target: str = "values"
    """values or scales."""

    def elements(self, geometry: Geometry, bits: int) -> tuple[int, int]:
        """(elements of a row, bits of each): D codes of `bits` bits, or one scale (sampling-scales.md)."""
        return (geometry.head_size, bits) if self.target == "values" else (1, SCALE_BITS)

    def sampler(self, geometry: Geometry, bits: int) -> _native.Sampler:
        """Bind to the geometry of a layer whose codes have `bits` bits."""
        head_size, width = self.elements(geometry, bits)
        return _native.Sampler(
            head_size=head_size,
            bits=width,
            heads=geometry.kv_heads,
            planes=geometry.planes,
            rate=self.rate,
            per=self.per,  # type: ignore[arg-type]
            mask=self.mask,
            burst_len=self.burst_len,
            page_tokens=self.page_tokens,
            page_rate=self.page_rate,
        )


def fit_probability(raw_fit_per_mbit: float, residency_hours: float) -> float:
    """Probability that one bit has flipped after resting for some hours: 1 - exp(-FIT/Mbit * h / (1e9 * 2^20))."""
    return -math.expm1(-raw_fit_per_mbit * residency_hours / (FIT_HOURS * MBIT))


def fit_rate(probability: float, residency_hours: float) -> float:
    """The raw FIT per Mbit at which one bit flips with that probability, below 1: what `fit_probability` undoes."""
    return -math.log1p(-probability) * FIT_HOURS * MBIT / residency_hours


def eligible_mask(fault: Fault, storage_format: str) -> int:
    """Bits of an element, a code or a scale, that the fault may touch. Raises `PlanError` (KVS304)."""
    try:
        width = _native.format_bits(storage_format, fault.target)
    except ValueError as error:
        raise PlanError.one("KVS304", str(error), path=f"$.faults[{fault.index}].target") from error
    if isinstance(fault.bits, tuple):
        if wrong := [bit for bit in fault.bits if bit >= width]:
            raise PlanError.one(
                "KVS304",
                f"bit `{wrong[0]}` does not exist in {fault.target} of {storage_format}",
                path=f"$.faults[{fault.index}].bits",
                expected=f"bits 0 to {width - 1}",
            )
        return sum(1 << bit for bit in set(fault.bits))
    word = fault.msb_policy or fault.bits
    try:
        return _native.format_mask(storage_format, word, fault.target)
    except ValueError as error:
        raise PlanError.one(
            "KVS304",
            f"`{word}` is not defined for {storage_format}: {error}",
            path=f"$.faults[{fault.index}]",
        ) from error


def sampler_parameters(fault: Fault, storage_format: str, geometry: Geometry) -> SamplerParameters:
    """Convert a declared fault for one geometry. Raises `PlanError` (KVS303, KVS304)."""
    mask = eligible_mask(fault, storage_format)
    per, probability = _drawn(fault, mask, geometry)
    if not 0.0 <= probability <= 1.0:
        raise PlanError.one(
            "KVS303",
            f"the rate `{fault.rate}` of `{fault.name}` gives a probability of {probability:g}",
            path=f"$.faults[{fault.index}].rate",
            expected="a probability between 0 and 1",
            hint="lower the rate, or raise page_density" if fault.model == "page_local" else "lower the rate",
        )
    if per == "page":
        page = (fault.page_tokens, probability)
        return SamplerParameters("bit", fault.page_density, mask, fault.burst_len, *page, fault.target)
    return SamplerParameters(per, probability, mask, fault.burst_len, 0, 1.0, fault.target)


def highest_rate(fault: Fault, storage_format: str, geometry: Geometry) -> float:
    """The highest value, in its unit, that the rate of `fault` may have in a cache of that format and geometry: what
    `sampler_parameters` takes and nothing above it, whatever its rate is now. Infinite where any rate has a
    probability, as of `fit`. Raises `PlanError` (KVS304)."""
    mask = eligible_mask(fault, storage_format)

    def probability(value: float) -> float:
        return _drawn(replace(fault, rate=replace(fault.rate, value=value)), mask, geometry)[1]

    if fault.rate.unit != "fit":
        highest = 1.0 / probability(1.0)  # all other units are in proportion to the probability
    elif fault.model != "page_local" or fault.page_density >= 1.0:
        return math.inf
    else:
        assert fault.rate.residency_hours is not None
        highest = fit_rate(fault.page_density, fault.rate.residency_hours)
    while probability(highest) > 1.0:  # by the last bits of the division
        highest = math.nextafter(highest, 0.0)
    return highest


def _drawn(fault: Fault, mask: int, geometry: Geometry) -> tuple[str, float]:
    """What is drawn (bit, element, row or page) and its probability, which is none if the rate is too high."""
    if fault.model == "page_local":
        return "page", _page_rate(fault, mask, geometry)
    return _unit_and_probability(fault.rate, geometry)


def _unit_and_probability(rate: Rate, geometry: Geometry) -> tuple[str, float]:
    match rate.unit:
        case "per_bit" | "per_element" | "per_row":
            return rate.unit.removeprefix("per_"), rate.value
        case "per_token":
            # Expected faults per token and layer, spread evenly over its (K|V, head) rows.
            return "row", rate.value / geometry.rows_per_token
        case "fit":
            assert rate.residency_hours is not None
            return "bit", fit_probability(rate.value, rate.residency_hours)
    raise AssertionError(f"unit {rate.unit} has no probability per unit")  # per_page is handled by the page model


def _page_rate(fault: Fault, mask: int, geometry: Geometry) -> float:
    """Probability that a page is hit: given directly, or so that the overall rate per bit is the declared one."""
    if fault.rate.unit == "per_page":
        return fault.rate.value
    per, rate = _unit_and_probability(fault.rate, geometry)
    head_size = geometry.head_size if fault.target == "values" else 1
    eligible_bits = mask.bit_count() * {"bit": 0, "element": 1, "row": head_size}[per] or 1
    return rate / eligible_bits / fault.page_density


@dataclass(frozen=True, slots=True)
class Dose:
    """Expected flips of one fault in every unit, selectors not applied. All figures are expectations. Elements, bits
    and bytes are those of what the fault strikes: values or scales."""

    per_eligible_bit: float
    per_element: float
    per_row: float
    """Per (token, layer, K|V, head) row."""
    per_token_layer: float
    per_token: float
    """Per token, over all layers."""
    per_gib: float
    """Per GiB of the values, or of the scales, in the cache."""


def dose(parameters: SamplerParameters, geometry: Geometry, bits: int) -> Dose:
    """Convert a fault into all units. The flips of a row come from the sampler, which knows bursts and pages."""
    per_row = parameters.sampler(geometry, bits).expected_flips_per_row
    head_size, width = parameters.elements(geometry, bits)
    row_bits = head_size * width
    per_layer = per_row * geometry.rows_per_token
    return Dose(
        per_eligible_bit=per_row / (head_size * parameters.mask.bit_count()),
        per_element=per_row / head_size,
        per_row=per_row,
        per_token_layer=per_layer,
        per_token=per_layer * geometry.layers,
        per_gib=per_row / row_bits * 2**33,
    )
