"""A run folder -> the maps of its trials. Needs no engine: keys, positions and texts are all on record."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kvspec.errors import RecordsError
from kvspec.maps.model import FaultMap
from kvspec.maps.planned import choose
from kvspec.maps.trial import maps_of_trial
from kvspec.models import Geometry, describe
from kvspec.plan import Plan, Trial, compile_plan
from kvspec.records import RunStore
from kvspec.spec.model import Spec
from kvspec.stats.design import Looks

_RECORD = ("trial_id", "kind", "cell", "request", "trial", "prompt_tokens", "token_ids", "finish_reason")
_COUNTS = ("tokens_written", "flips_planned", "flips_landed")


class Run:
    """A run as a source of maps."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `RecordsError` (KVS502, KVS505) if it is no run or not whole."""
        self.store = RunStore.open(path)
        self.plan = _plan(self.store)
        self.environment = _environment(self.store.read_json("environment.json") or {})

    def geometry(self) -> Geometry:
        """Shape of the cache that it ran on. Raises KVS514 if this machine cannot know it."""
        found = describe(self.plan.spec.model).geometry
        if found is None:
            raise RecordsError.one(
                "KVS514",
                f"the geometry of `{self.plan.spec.model.id}` is not known on this machine",
                path="$.model.id",
                hint="export where the model, or its config.json, is",
            )
        return found

    def choose(self, cells: Collection[str], trials: Collection[str]) -> set[str]:
        """Ids of the recorded fault trials that are asked for; empty choices mean all. Raises KVS506, KVS514."""
        wanted = {trial.id for trial in choose(self.plan, cells, trials)}
        recorded = self.store.done()
        if not recorded:
            raise RecordsError.one("KVS506", f"`{self.store.path}` holds no trial (status {self.store.status})")
        if trials and (lost := sorted(wanted - recorded)):
            raise RecordsError.one("KVS514", f"the run has no record of trial `{lost[0]}` yet")
        return wanted & recorded

    def maps(self, chosen: Collection[str], *, withhold_prompt: bool = False) -> Iterator[FaultMap]:
        """The generative maps of the chosen trials, with their records, in the order they were written.

        Raises KVS511 where a map does not give the flips that were planned when the trial ran.
        """
        geometry, golden = self.geometry(), self._golden()
        for batch in self.store.iter_batches([*_RECORD, *_COUNTS]):
            for row in batch.to_pylist():
                if row["trial_id"] not in chosen:
                    continue
                made = maps_of_trial(
                    self.plan,
                    Trial(row["kind"], row["cell"], row["request"], row["trial"]),
                    geometry,
                    prompt_len=row["prompt_tokens"],
                    written=row["tokens_written"],
                    record=self._record(row, golden),
                    withhold_prompt=withhold_prompt,
                )
                if (flips := sum(map(len, made))) != row["flips_planned"]:
                    raise RecordsError.one(
                        "KVS511",
                        f"trial `{row['trial_id']}` was planned with {row['flips_planned']} flips, "
                        f"its map gives {flips}",
                        hint="the run was made by another version of kvspec, or its records were changed",
                    )
                yield from made

    def _golden(self) -> dict[int, list[int]]:
        golden: dict[int, list[int]] = {}
        for batch in self.store.iter_batches(["kind", "request", "token_ids"]):
            for row in batch.to_pylist():
                if row["kind"] == "golden":
                    golden[row["request"]] = row["token_ids"]
        return golden

    def _record(self, row: dict[str, Any], golden: dict[int, list[int]]) -> dict[str, Any]:
        known = {"golden_token_ids": golden[row["request"]]} if row["request"] in golden else {}
        return {
            "token_ids": row["token_ids"],
            **known,
            "finish_reason": row["finish_reason"],
            "flips_landed": row["flips_landed"],
            "environment": self.environment,
        }


def file_name(fault_map: FaultMap) -> str:
    """Name of a map's file in a folder of maps: `c0-p0-t3.write.parquet`."""
    return f"{fault_map.header.name.replace('/', '-')}.{fault_map.header.site}.parquet"


def _plan(store: RunStore) -> Plan:
    data = store.spec()
    try:
        plan = compile_plan(_build(Spec, data))
        digest = plan.digest
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise RecordsError.one("KVS505", f"`{store.path / 'spec.json'}` is damaged: {error}") from error
    if digest != store.digest:
        raise RecordsError.one(
            "KVS505",
            f"`{store.path / 'spec.json'}` gives plan `{digest[:12]}`, the run is of plan `{store.digest[:12]}`",
            hint="the run was made by another version of kvspec, or its spec was changed",
        )
    return plan


def _build(kind: Any, value: Any) -> Any:
    """A dataclass of the spec from its plain data. The digest of the plan proves that nothing was lost."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        # The spec names this class only for type checkers: it takes a while to import.
        hints = typing.get_type_hints(kind, localns={"Looks": Looks})
        return typing.cast("type[Any]", kind)(**{name: _build(hints[name], inner) for name, inner in value.items()})
    if isinstance(value, list):
        items = [a for a in typing.get_args(kind) if dataclasses.is_dataclass(a)]
        return tuple(_build(items[0] if items else None, inner) for inner in value)
    return value


def _environment(data: dict[str, Any]) -> dict[str, str]:
    packages = data.get("packages")
    device = data.get("device")
    found = {str(k)[:100]: str(v)[:1000] for k, v in packages.items()} if isinstance(packages, dict) else {}
    if isinstance(device, dict):
        found |= {f"device.{str(k)[:90]}": str(v)[:1000] for k, v in device.items()}
    return found
