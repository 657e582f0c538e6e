"""From map files to the trials that they describe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvspec.errors import RecordsError
from kvspec.maps import FaultMap, Header, read_map
from kvspec.spec.model import GenerationSpec, ModelSpec

SUFFIXES = (".parquet", ".json")


@dataclass(frozen=True)
class Recorded:
    """What a trial answered where it was recorded."""

    token_ids: list[int] | None
    """`None`: nothing is recorded, so there is nothing to compare with."""
    golden: list[int] | None = None
    finish_reason: str | None = None
    environment: dict[str, str] | None = None
    """Packages and device, flat."""
    where: str = "the map"


@dataclass(frozen=True)
class Case:
    """One trial: its request, its maps, and what it once answered."""

    name: str
    files: tuple[str, ...]
    maps: tuple[FaultMap, ...]
    """One, or the map of writes and the map of reads of a trial at BOTH."""
    model: ModelSpec
    text: str
    """The prompt."""
    generation: GenerationSpec
    seed: int
    recorded: Recorded

    @property
    def header(self) -> Header:
        """Of the first map; what the maps of one trial share is read from it."""
        return self.maps[0].header

    @property
    def flips(self) -> int:
        """Listed or generated flips of all maps."""
        return sum(len(m) for m in self.maps)


def find_maps(paths: Iterable[Path]) -> list[Path]:
    """Map files: those named, and all in the folders named. Raises KVS515 for a folder without any."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name != "replay.json")
        if not inside:
            raise refused(f"the folder `{path}` holds no fault maps", "files that end in .parquet or .json")
        found += inside
    return found


def load_cases(paths: Iterable[Path], texts: Sequence[str] = ()) -> list[Case]:
    """Read maps and make trials of them, in the order of the files.

    `texts` are the prompts of a run, for maps that withhold theirs. Raises `RecordsError`: what `read_map` raises,
    and KVS515 for a map that does not say enough to be run.
    """
    cases: list[Case] = []
    halves: dict[tuple[Any, ...], int] = {}
    for path in find_maps(paths):
        fault_map = read_map(path)
        case = _case(fault_map, path, texts)
        header = case.header
        # The two maps of a trial at BOTH: everything but the site is the same.
        trial = (header.plan, repr(header.trial), repr(header.prompt), repr(header.generation), repr(header.record))
        other = (*trial, "read" if header.site == "write" else "write")
        if header.trial is not None and other in halves:
            index = halves.pop(other)
            first = cases[index]
            both = sorted((*first.maps, fault_map), key=lambda m: m.header.site != "write")
            cases[index] = replace(first, maps=tuple(both), files=(*first.files, str(path)))
        else:
            halves[(*trial, header.site)] = len(cases)
            cases.append(case)
    return cases


def _case(fault_map: FaultMap, path: Path, texts: Sequence[str]) -> Case:
    header = fault_map.header
    for name in ("model", "prompt", "generation"):
        if getattr(header, name) is None:
            raise refused(
                f"`{path}` does not say its `{name}`",
                "a map exported by `kvspec map export` or made by `kvspec map enumerate`",
                f"$.{name}",
            )
    assert header.model is not None
    assert header.generation is not None
    record = header.record or {}
    settings = dict(header.generation)
    seed = int(settings.pop("seed"))
    return Case(
        name=header.name,
        files=(str(path),),
        maps=(fault_map,),
        model=ModelSpec(
            id=header.model["id"],
            revision=header.model.get("revision"),
            dtype=header.model.get("dtype", "auto"),
            kv_cache_dtype=header.geometry.format,
        ),
        text=_prompt(header, path, texts),
        generation=GenerationSpec(**settings | {key: tuple(settings.get(key, ())) for key in ("stop", "choices")}),
        seed=seed,
        recorded=Recorded(
            token_ids=record.get("token_ids"),
            golden=record.get("golden_token_ids"),
            finish_reason=record.get("finish_reason"),
            environment=dict(record["environment"]) if "environment" in record else None,
        ),
    )


def _prompt(header: Header, path: Path, texts: Sequence[str]) -> str:
    import hashlib

    assert header.prompt is not None
    if "text" in header.prompt:
        return str(header.prompt["text"])
    digest = header.prompt.get("sha256")
    for text in texts:
        if hashlib.sha256(text.encode()).hexdigest() == digest:
            return text
    raise RecordsError.one(
        "KVS515",
        f"`{path}` withholds its prompt",
        path="$.prompt",
        hint="name the run that it came from, which holds the prompt: --against RUN",
    )


def one_model(cases: Sequence[Case], model: str | None) -> ModelSpec:
    """The model that all cases name, or the one given instead. Raises KVS515 for maps of several."""
    named: Iterator[ModelSpec] = iter(replace(c.model, id=model, revision=None) if model else c.model for c in cases)
    first = next(named)
    for case, other in zip(cases[1:], named, strict=True):
        if other != first:
            raise refused(
                f"`{case.files[0]}` is for `{other.id}` with a {other.storage_format} cache, "
                f"`{cases[0].files[0]}` for `{first.id}` with {first.storage_format}",
                "maps of one model and storage format; replay others apart",
                "$.model",
            )
    return first


def refused(message: str, expected: str, path: str | None = None) -> RecordsError:
    """A map that cannot be run as asked (KVS515)."""
    return RecordsError.one("KVS515", message, path=path, expected=expected)
