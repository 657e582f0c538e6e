"""A plan -> the maps that its run would inject. No engine: only the geometry and the tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kvspec.errors import RecordsError
from kvspec.maps.model import FaultMap
from kvspec.maps.trial import maps_of_trial
from kvspec.models import describe, prompt_lengths
from kvspec.plan import Plan, Trial


def planned_maps(
    plan: Plan, cells: Collection[str], trials: Collection[str], *, withhold_prompt: bool = False
) -> tuple[int, Iterator[FaultMap]]:
    """How many trials were chosen, and their generative maps in plan order. Empty choices mean all.

    Raises `RecordsError` (KVS514): no such cell or trial, or a geometry or tokenizer that is not on this machine.
    """
    spec = plan.spec
    info = describe(spec.model)
    geometry = info.geometry
    if geometry is None:
        raise _refused(f"the geometry of `{info.id}` is not known on this machine", "its config.json in the hub cache")
    lengths, exact = prompt_lengths(spec.model, info, spec.prompts.texts)
    if not exact:
        # An estimated length would give a map that no run injects.
        raise _refused(f"the tokenizer of `{info.id}` is not on this machine", "its tokenizer.json beside config.json")
    chosen = choose(plan, cells, trials)

    def made() -> Iterator[FaultMap]:
        for trial in chosen:
            length = lengths[trial.request]
            yield from maps_of_trial(
                plan,
                trial,
                geometry,
                prompt_len=length,
                # The last generated token is never written.
                written=length + spec.generation.max_tokens - 1,
                withhold_prompt=withhold_prompt,
            )

    return len(chosen), made()


def choose(plan: Plan, cells: Collection[str], trials: Collection[str]) -> list[Trial]:
    """The fault trials of the named cells with the named ids. A swept entry is also meant by its bare name.

    Raises `RecordsError` (KVS514) for a name or id that the plan does not have there.
    """
    for name in cells:
        if not any(name in (cell.name, cell.fault.name) for cell in plan.cells):
            raise _refused(f"the plan has no cell `{name}`", ", ".join(cell.name for cell in plan.cells[:20]))
    wanted = {c.index for c in plan.cells if not cells or c.name in cells or c.fault.name in cells}
    found = [t for t in plan.trials() if t.kind == "fault" and t.cell in wanted]
    if trials:
        known = {trial.id for trial in found}
        if lost := [trial for trial in trials if trial not in known]:
            raise _refused(f"the plan has no fault trial `{lost[0]}`", "an id such as c0/p0/t0, in the cell asked for")
        found = [trial for trial in found if trial.id in trials]
    return found


def _refused(message: str, expected: str) -> RecordsError:
    return RecordsError.one("KVS514", message, expected=expected)
