"""What a plan will do and cost on a given geometry: expected flips, tokens, cache memory, time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import exp, expm1, lgamma
from typing import Any

from kvspec import _native
from kvspec.errors import Diagnostic, KvspecError, PlanError
from kvspec.models import Geometry, ModelInfo
from kvspec.plan.compile import describe_selector
from kvspec.plan.dose import Dose, SamplerParameters, dose, sampler_parameters
from kvspec.plan.events import read_events, shown_events
from kvspec.plan.lengths import misfits
from kvspec.plan.model import Cell, Plan
from kvspec.spec.model import Range, Selector
from kvspec.spec.ranges import canonical
from kvspec.stats.design import detectable_drop
from kvspec.stats.exact import ALPHA, holm

SECONDS_PER_TOKEN_AND_WEIGHT = 2.5e-11
"""Measured: SmolLM2-135M in float32 on 2 AVX2 cores, about 300 tokens/s in a full batch."""
START_UP_SECONDS = 20.0
ENGINE_GIB = 1.2
"""Measured: resident memory of a process with vLLM for CPU and a tiny model, 1.13 GiB."""


@dataclass(frozen=True, slots=True)
class CellEstimate:
    """Expectations for one cell."""

    name: str
    trials: int
    dose: Dose
    expected_flips_per_trial: float
    """Mean over the prompts, the selector applied."""
    expected_flips: float
    """Of the whole cell."""
    hit: float
    """Expected share of trials with a flip, at most: 1 - exp(-flips) averaged over the prompts. No accuracy can fall
    by more, for a trial without a flip equals golden."""

    def to_json(self) -> dict[str, Any]:
        """Plain data. `per_element` and its like are expected flips here, and probabilities of a fault in a spec."""
        flips = {**asdict(self.dose), "per_trial": self.expected_flips_per_trial, "per_cell": self.expected_flips}
        return {"name": self.name, "trials": self.trials, "hit": self.hit, "expected_flips": flips}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expectations for a plan."""

    cells: tuple[CellEstimate, ...]
    warnings: tuple[Diagnostic, ...]
    requests: int
    prompt_tokens: int
    """Over all requests."""
    generated_tokens: int
    """Over all requests, if none stops early."""
    exact_lengths: bool
    """Whether prompts were counted with the model's tokenizer rather than estimated."""
    cache_gib: float
    """Cache contents of `max_num_seqs` requests of the longest prompt, in the declared storage format."""
    memory_gib: float | None
    """Rough peak on a CPU: weights and cache as float32, and the engine itself; `None` as for `cpu_seconds`."""
    controls: int
    """Golden repeats and null trials, over all prompts."""
    detectable_drop: float | None
    """The smallest fall of accuracy that one cell alone shows against these controls with 80 % power, if all of them
    equal golden (Fisher, Holm over all cells); `None` if it shows none."""
    cpu_seconds: float | None
    """Rough run time on two CPU cores; `None` if the size of the model is not known."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["warnings"] = [w.to_json() for w in self.warnings]
        data["cells"] = [cell.to_json() for cell in self.cells]
        return data


def shown(ranges: tuple[Range, ...] | None, length: int) -> int:
    """How many of `0 .. length - 1` a list of half-open ranges covers."""
    if ranges is None:
        return length
    cut = ((start, length if stop is None else min(stop, length)) for start, stop in canonical(ranges))
    return sum(max(0, stop - start) for start, stop in cut)


def shown_tokens(where: Selector, prompt: int, written: int) -> int:
    """Token positions of a request that the selector shows; `written` counts all positions in the cache."""
    match where.tokens:
        case "all":
            return written
        case "prompt":
            return min(prompt, written)
        case "decode":
            return max(0, written - prompt)
        case ranges:
            return shown(ranges, written)


def exposures(site: str, where: Selector, prompt: int, written: int) -> int:
    """How often a trial exposes a token position that its selector shows.

    A write exposes a token once. Every read exposes all tokens that the cache holds by then anew, so reads grow with
    the square of the length.
    """
    total = 0
    if site != "KV_READ":
        total += shown_tokens(where, prompt, written)
    if site != "KV_WRITE":
        total += sum(shown_tokens(where, prompt, step) for step in shown_events(where, read_events(prompt, written)))
    return total


def check_selector(cell: Cell, geometry: Geometry, prompts: list[int], max_tokens: int) -> list[Diagnostic]:
    """Selectors that name what the model does not have (KVS301)."""
    where, path = cell.fault.where, f"$.faults[{cell.fault.index}].where"
    found = []
    for name, ranges, length in (
        ("layers", where.layers, geometry.layers),
        ("heads", where.heads, geometry.kv_heads),
    ):
        for start, stop in ranges or ():
            if start >= length or (stop is not None and stop > length):
                wrong = start if start >= length else stop - 1 if stop is not None else start
                found.append(
                    Diagnostic(
                        "KVS301",
                        f"`{cell.fault.name}` selects {name.removesuffix('s')} `{wrong}`, which does not exist",
                        path=f"{path}.{name}",
                        expected=f"{name} 0 to {length - 1}",
                    )
                )
    longest = max(prompts)
    if cell.fault.site != "KV_WRITE" and not shown_events(where, read_events(longest, longest + max_tokens - 1)):
        found.append(
            Diagnostic(
                "KVS301",
                f"`{cell.fault.name}` selects no read of any request ({describe_selector(where)})",
                path=f"{path}.steps",
                expected=f"steps 0 to {max_tokens - 1}",
                hint="0 is the prefill, i the i-th decode step; the last generated token is never read",
            )
        )
    elif not any(exposures(cell.fault.site, where, p, p + max_tokens - 1) for p in prompts):
        found.append(
            Diagnostic(
                "KVS301",
                f"`{cell.fault.name}` selects no token of any request ({describe_selector(where)})",
                path=f"{path}.tokens",
                expected=f"positions below {longest + max_tokens - 1}",
                hint="the last generated token is never written to the cache",
            )
        )
    return found


def check_ranks(kv_heads: int, ranks: int) -> list[Diagnostic]:
    """KV heads that tensor parallelism would deal out unevenly to its ranks (KVS401)."""
    if kv_heads % ranks == 0 or ranks % kv_heads == 0:
        return []
    return [
        Diagnostic(
            "KVS401",
            f"{kv_heads} KV heads cannot be dealt out evenly to {ranks} GPUs",
            path="$.engine.tensor_parallel",
            expected=f"a divisor or a multiple of {kv_heads}",
        )
    ]


def expected_flips(
    cell: Cell, parameters: SamplerParameters, geometry: Geometry, bits: int, prompt: int, written: int
) -> float:
    """Expected flips of one trial that writes `written` tokens, `prompt` of them from the prompt.

    A site counts at every read that shows it, and a stuck-at whether or not it changes the bit.
    """
    where = cell.fault.where
    rows = shown(where.layers, geometry.layers) * shown(where.heads, geometry.kv_heads)
    rows *= len(where.cache) if geometry.planes == 2 else 1
    per_row = parameters.sampler(geometry, bits).expected_flips_per_row
    return per_row * rows * exposures(cell.fault.site, where, prompt, written)


def estimate(plan: Plan, info: ModelInfo, prompts: list[int], exact: bool) -> Estimate:
    """Expectations for a plan. `prompts` are token counts.

    Raises `PlanError`: KVS306 if the geometry is unknown, KVS301, KVS303 and KVS304 for cells that cannot be, KVS401
    for heads that cannot be dealt out to the GPUs; all of them at once.
    """
    geometry = info.geometry
    if geometry is None:
        raise PlanError.one(
            "KVS306",
            f"the geometry of `{info.id}` is not known on this machine",
            path="$.model.id",
            hint="`kvspec run` learns it from the model; planning needs its config.json in the hub cache",
        )
    spec = plan.spec
    storage = spec.model.storage_format
    bits = _native.format_bits(storage)
    max_tokens = spec.generation.max_tokens
    errors = check_ranks(geometry.kv_heads, spec.engine.tensor_parallel)
    warnings = misfits(spec, info, prompts, "warning")
    cells: list[CellEstimate] = []
    controls = len(prompts) * (spec.controls.golden_repeats + spec.controls.null_trials)
    for cell in plan.cells:
        try:
            parameters = sampler_parameters(cell.fault, storage, geometry)
        except KvspecError as error:
            errors += error.diagnostics
            continue
        if wrong := check_selector(cell, geometry, prompts, max_tokens):
            errors += wrong
            continue
        # thousands of prompts have tens of lengths, and a sampler is made for each
        of = {p: expected_flips(cell, parameters, geometry, bits, p, p + max_tokens - 1) for p in set(prompts)}
        per_trial = [of[p] for p in prompts]
        total = sum(per_trial) * spec.trials.per_prompt
        if total < 1.0:
            warnings.append(
                Diagnostic(
                    "KVS302",
                    f"cell `{cell.name}` expects {total:.2g} flips in all its {plan.trials_per_cell} trials",
                    path=f"$.faults[{cell.fault.index}]",
                    expected="at least one flip, or the cell only repeats the golden run",
                    hint="raise the rate or the number of trials",
                    severity="warning",
                )
            )
        mean = sum(per_trial) / len(per_trial)
        hit = sum(-expm1(-flips) for flips in per_trial) / len(per_trial)
        cells.append(CellEstimate(cell.name, plan.trials_per_cell, dose(parameters, geometry, bits), mean, total, hit))
    if errors:
        raise PlanError(spec.placed(errors))
    drop = detectable_drop(plan.trials_per_cell, (controls, controls), ALPHA / (len(cells) * _looks(plan)))
    warnings += _lost_in_floor(plan, cells, controls, drop)
    warnings += _nothing_to_compare(plan)
    repeats = len(plan) // len(prompts)
    prompt_tokens, generated = sum(prompts) * repeats, max_tokens * len(plan)
    seconds = memory = None
    if info.parameters is not None:
        work = (prompt_tokens / 4 + generated) * info.parameters * SECONDS_PER_TOKEN_AND_WEIGHT
        seconds = START_UP_SECONDS + work
        memory = ENGINE_GIB + info.parameters * 4 / 2**30
    longest = max(prompts) + max_tokens
    resident = min(spec.engine.max_num_seqs, len(plan)) * longest * geometry.bits_per_token(bits) / 8 / 2**30
    if memory is not None:
        memory += resident * 32 / bits  # a CPU keeps any format in float32
    return Estimate(
        cells=tuple(cells),
        warnings=tuple(spec.placed(warnings)),
        requests=len(plan),
        prompt_tokens=prompt_tokens,
        generated_tokens=generated,
        exact_lengths=exact,
        cache_gib=resident,
        memory_gib=memory,
        controls=controls,
        detectable_drop=drop,
        cpu_seconds=seconds,
    )


def _looks(plan: Plan) -> int:
    """How often a p-value is taken: once per look (Bonferroni)."""
    return len(plan.spec.trials.looks.rounds) if plan.spec.trials.looks else 1


def _lost_in_floor(plan: Plan, cells: list[CellEstimate], controls: int, drop: float | None) -> list[Diagnostic]:
    """Warn of cells whose largest possible effect the controls could not show (KVS307).

    At best every control equals golden and every trial that a flip hits does not. Fisher's exact test over the cell is
    then the most that the report's test can find, and Holm's adjustment of these p-values the least that it takes.
    """
    if not controls:
        return []
    n = plan.trials_per_cell
    best = []
    for cell in cells:
        lost = round(cell.hit * n)
        # Of n + controls trials, `lost` differ, and by lot none of them is a control.
        p = exp(lgamma(n + 1) - lgamma(n - lost + 1) + lgamma(n + controls - lost + 1) - lgamma(n + controls + 1))
        best.append(min(1.0, _looks(plan) * p))
    shown = "no fall" if drop is None else f"a fall of {drop:.1%}"
    over = "one cell" if len(cells) == 1 else f"one of {len(cells)} cells"
    return [
        Diagnostic(
            "KVS307",
            f"no effect of cell `{cell.name}` can be told from the floor: "
            f"a flip hits at most {cell.hit:.2g} of its trials",
            path=f"$.faults[{plan.cells[index].fault.index}]",
            expected=f"more: {controls} controls and {n} trials show {shown} of {over} (80 % power, Holm)",
            hint="raise the rate, `controls.golden_repeats` or `controls.null_trials`",
            severity="warning",
        )
        for index, (cell, p) in enumerate(zip(cells, holm(best), strict=True))
        if p >= ALPHA and cell.expected_flips >= 1.0  # less than a flip is KVS302
    ]


def _nothing_to_compare(plan: Plan) -> list[Diagnostic]:
    """Warn of a power design in which no two cells share their draws (KVS308)."""
    # The design itself is resolved to a number of trials; that it was one is seen from what was written.
    if "$.trials.power" not in plan.spec.marks:
        return []
    draws = {(cell.fault.index, cell.experiment) for cell in plan.cells}
    if len(draws) < len(plan.cells):
        return []
    return [
        Diagnostic(
            "KVS308",
            "`power` plans a paired comparison, but no two cells share their faults",
            path="$.trials.power",
            expected="an entry whose `where` lists selectors, such as `where: [{cache: [K]}, {cache: [V]}]`",
            hint="`controls` and the rate decide what shows against the floor; for an interval, use `target`",
            severity="warning",
        )
    ]
