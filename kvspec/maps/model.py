"""A fault map: its header as immutable values, its columns as numpy arrays.

The header mirrors `schemas/faultmap.schema.json`. It comes from strangers, so `Header.from_json` is only called with
data that `kvspec.maps.header` has checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.models import Geometry
from kvspec.plan import canonical_json
from kvspec.plan.dose import SamplerParameters
from kvspec.plan.events import read_events
from kvspec.plan.model import SAMPLING_VERSION
from kvspec.spec.model import Range, Selector

MAP_VERSION = 1
Site = Literal["write", "read"]
Target = Literal["values", "scales"]
Op = Literal["flip", "set0", "set1"]
OPS: tuple[Op, ...] = ("flip", "set0", "set1")
"""Position = code in the column `op`."""

Columns = dict[str, NDArray[Any]]
"""Columns by name; see `kvspec.maps.columns`."""

_END = 2**32
_VARIABLE = ("id", "provenance", "kind")


@dataclass(frozen=True, slots=True)
class MapGeometry:
    """Where a flip can be. A map is applied to exactly this and to nothing else."""

    layers: int
    kv_heads: int
    """Global KV heads of a layer."""
    head_size: int
    """Elements of a row."""
    planes: int
    """2: K and V; 1: one latent row."""
    format: str
    """Storage format of an element: bf16, fp16, ..."""

    @classmethod
    def of(cls, geometry: Geometry, storage_format: str) -> Self:
        """The geometry of a model whose cache holds `storage_format`."""
        return cls(geometry.layers, geometry.kv_heads, geometry.head_size, geometry.planes, storage_format)

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return _native.format_bits(self.format)

    def elements(self, target: Target) -> tuple[int, int]:
        """(elements of a row, bits of each): the codes, or one scale."""
        if target == "values":
            return self.head_size, self.bits
        return 1, _native.format_bits(self.format, target)

    @property
    def shape(self) -> Geometry:
        """Without the storage format."""
        return Geometry(self.layers, self.kv_heads, self.head_size, self.planes)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was exposed: the positions over which the flips were drawn."""

    prompt_tokens: int
    tokens: int
    """Positions 0 .. tokens - 1 were written to the cache."""

    @property
    def steps(self) -> range:
        """The read events."""
        return read_events(self.prompt_tokens, self.tokens)


@dataclass(frozen=True, slots=True)
class Generator:
    """The few numbers from which sampling.md gives all flips."""

    per: str
    rate: float
    mask: int
    burst_len: int
    page_tokens: int
    page_rate: float
    key: tuple[int, int]
    """Write key, or read master of a map of reads."""
    where: Selector = field(default_factory=Selector)

    def parameters(self, target: Target) -> SamplerParameters:
        """In the words of the plan."""
        drawn = (self.per, self.rate, self.mask, self.burst_len, self.page_tokens, self.page_rate)
        return SamplerParameters(*drawn, target)

    def to_json(self) -> dict[str, Any]:
        """Plain data; floats as exact hexadecimal text, the key as 16 digits."""
        where = asdict(self.where)
        return {
            "per": self.per,
            "rate": float(self.rate).hex(),
            "mask": f"{self.mask:x}",
            "burst_len": self.burst_len,
            "page_tokens": self.page_tokens,
            "page_rate": float(self.page_rate).hex(),
            "key": f"{self.key[0]:08x}{self.key[1]:08x}",
            "selector": {name: _plain(value) for name, value in where.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse."""
        where = data["selector"]
        ranges: dict[str, Any] = {
            name: where[name] if isinstance(where[name], str) else _ranges(where[name])
            for name in ("layers", "heads", "tokens", "steps")
        }
        return cls(
            per=data["per"],
            rate=float.fromhex(data["rate"]),
            mask=int(data["mask"], 16),
            burst_len=data["burst_len"],
            page_tokens=data["page_tokens"],
            page_rate=float.fromhex(data["page_rate"]),
            key=(int(data["key"][:8], 16), int(data["key"][8:], 16)),
            where=Selector(cache=tuple(where["cache"]), **ranges),
        )

    def selector(self) -> _native.Selector:
        """In the words of the Rust core; steps are chosen by whoever enumerates."""
        where = self.where
        named = isinstance(where.tokens, str)
        return _native.Selector(
            layers=_closed(where.layers),
            heads=_closed(where.heads),
            planes=("K" in where.cache, "V" in where.cache),
            phase=where.tokens if named else "all",  # type: ignore[arg-type]
            tokens=None if named else _closed(where.tokens),  # type: ignore[arg-type]
        )


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _ranges(value: Any) -> tuple[Range, ...] | None:
    return None if value is None else tuple((start, stop) for start, stop in value)


def _closed(ranges: tuple[Range, ...] | None) -> list[tuple[int, int]] | None:
    return None if ranges is None else [(start, _END if stop is None else stop) for start, stop in ranges]


@dataclass(frozen=True)
class Header:
    """Everything about a map except its flips."""

    geometry: MapGeometry
    coverage: Coverage
    site: Site = "write"
    target: Target = "values"
    """What every row strikes: an element, or the scale of a row, which is then element 0."""
    op: Op | None = "flip"
    """Of all flips; `None` if the column `op` tells it row by row."""
    flips: int = 0
    id: str = ""
    """sha256 of the canonical content: geometry, site, target and flips (docs/faultmap.md)."""
    kind: Literal["generative", "explicit"] = "generative"
    generator: Generator | None = None
    """`None` where no sampler made the map, say after shrinking."""
    plan: str | None = None
    """Digest of the plan."""
    trial: Mapping[str, Any] | None = None
    """spec, cell, cell_index, request, trial, id, seed, experiment (16 hexadecimal digits), fault."""
    model: Mapping[str, Any] | None = None
    """id, revision, dtype."""
    generation: Mapping[str, Any] | None = None
    """Settings of the request, as in a spec, with the seed that it really used."""
    prompt: Mapping[str, Any] | None = None
    """`text` or `sha256`, and `tokens`."""
    record: Mapping[str, Any] | None = None
    """What the trial did: token_ids, golden_token_ids, finish_reason, flips_landed, environment."""
    derived_from: str | None = None
    """Id of the map of which this is a part."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys that begin with `x-`."""
    sampling: int = SAMPLING_VERSION

    def identity(self) -> dict[str, Any]:
        """The facts that its provenance hash covers: all but id, kind and that hash."""
        data: dict[str, Any] = {"kvspec_faultmap": MAP_VERSION}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in _VARIABLE or item.name == "notes" or value is None:
                continue
            if item.name == "target" and value == "values":
                continue  # said only where it is not so, as in maps from before there were others
            if isinstance(value, (MapGeometry, Coverage)):
                value = asdict(value)
            elif isinstance(value, Generator):
                value = value.to_json()
            data[item.name] = value
        return data | dict(self.notes)

    @property
    def provenance(self) -> str:
        """sha256 of the canonical JSON of `identity`. Equal for a generative map and its enumeration."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the schema describes it."""
        first = {"kvspec_faultmap": MAP_VERSION, "id": self.id, "kind": self.kind, "provenance": self.provenance}
        return first | self.identity()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From data that fits the schema."""
        values = {item.name: data[item.name] for item in fields(cls) if item.name in data and item.name != "notes"}
        values["geometry"] = MapGeometry(**values["geometry"])
        values["coverage"] = Coverage(**values["coverage"])
        values["op"] = data.get("op")
        if "generator" in values:
            values["generator"] = Generator.from_json(values["generator"])
        return cls(**values, notes={key: value for key, value in data.items() if key.startswith("x-")})

    @property
    def name(self) -> str:
        """The trial's id, or the first digits of the map's."""
        return str((self.trial or {}).get("id") or self.id[:12])


@dataclass(frozen=True)
class FaultMap:
    """A header and, unless the map is generative, its flips."""

    header: Header
    columns: Columns | None = None
    """Contiguous arrays of equal length in canonical order; `None` for a generative map."""

    def __len__(self) -> int:
        return self.header.flips

    @property
    def id(self) -> str:
        """sha256 of the canonical content."""
        return self.header.id

    def steps(self) -> NDArray[np.uint32]:
        """The read events that hold flips, ascending. Explicit maps of reads only."""
        assert self.columns is not None
        return np.unique(self.columns["step"])

    def event(self, step: int) -> Columns:
        """The flips of one read event, as views without the column `step`. Explicit maps of reads only."""
        assert self.columns is not None
        # Canonical order is by request first; a map holds one request, so steps ascend.
        start, stop = np.searchsorted(self.columns["step"], [step, step + 1])
        return {name: column[start:stop] for name, column in self.columns.items() if name != "step"}
