"""What the plan's keys say of the flips of a cell's trials: the sampler and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvspec import _native
from kvspec.plan.dose import sampler_parameters
from kvspec.spec.model import Fault, Range, Rate, Selector

END = 2**32


@dataclass(frozen=True, slots=True)
class CellDraws:
    """What enumerates the flips of the trials of one cell."""

    sampler: _native.Sampler
    seed: int
    experiment: int
    fault: Fault
    layers: int
    """Of the model."""

    @classmethod
    def of(cls, plan: Mapping[str, Any], fault: Mapping[str, Any], cell: int, geometry: Any) -> CellDraws | None:
        """From `plan.json`, the concrete fault of a cell as plain data and the model's `kvspec.models.Geometry`.

        `None` for a plan of another version.
        """
        try:
            storage = str(plan["spec"]["model"]["kv_cache_dtype"])
            storage = "bf16" if storage == "auto" else storage
            concrete = _fault(fault)
            sampler = sampler_parameters(concrete, storage, geometry).sampler(geometry, _native.format_bits(storage))
            experiment = int(plan["cells"][cell]["experiment"], 16)
            return cls(sampler, int(plan["spec"]["seed"]), experiment, concrete, int(geometry.layers))
        except (KeyError, TypeError, ValueError):
            return None

    def of_trial(self, request: int, trial: int, prompt_tokens: int) -> dict[str, Any]:
        """The arguments of the sampler for a trial, its tokens apart."""
        return {
            "key": _native.derive_keys(self.seed, self.experiment, trial, self.fault.index, self.fault.target)[0],
            "request": request,
            "layers": (0, self.layers),
            "prompt_len": prompt_tokens,
            "selector": _selector(self.fault.where),
        }


def _fault(data: Mapping[str, Any]) -> Fault:
    where = data["where"]
    tokens = where["tokens"]
    return Fault(
        name=data["name"],
        index=data["index"],
        site=data["site"],
        model=data["model"],
        rate=Rate(**data["rate"]),
        burst_len=data["burst_len"],
        msb_policy=data["msb_policy"],
        bits=data["bits"] if isinstance(data["bits"], str) else tuple(data["bits"]),  # type: ignore[arg-type]
        page_tokens=data["page_tokens"],
        page_density=data["page_density"],
        where=Selector(
            layers=_pairs(where["layers"]),
            heads=_pairs(where["heads"]),
            cache=tuple(where["cache"]),
            tokens=tokens if isinstance(tokens, str) else (_pairs(tokens) or ()),  # type: ignore[arg-type]
        ),
        target=data.get("target", "values"),
    )


def _pairs(ranges: Sequence[Sequence[int | None]] | None) -> tuple[Range, ...] | None:
    return None if ranges is None else tuple((int(low or 0), high) for low, high in ranges)


def _selector(where: Selector) -> _native.Selector:
    def closed(ranges: tuple[Range, ...] | None) -> list[tuple[int, int]] | None:
        return None if ranges is None else [(low, END if high is None else high) for low, high in ranges]

    return _native.Selector(
        layers=closed(where.layers),
        heads=closed(where.heads),
        planes=("K" in where.cache, "V" in where.cache),
        phase=where.tokens if isinstance(where.tokens, str) else "all",
        tokens=None if isinstance(where.tokens, str) else closed(where.tokens),
    )
