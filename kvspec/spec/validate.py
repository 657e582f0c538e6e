"""A `Node` tree -> all of its errors at once: first its structure, then what a schema cannot say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from kvspec import _native
from kvspec.errors import Mark
from kvspec.spec.model import LOGPROB_METRICS, STORAGE_FORMATS, PromptSpec
from kvspec.spec.prompts import read_prompts
from kvspec.spec.ranges import parse_range
from kvspec.spec.tree import Findings, Node, show

VERSION = 1

_LIMITS = {"layers": 1 << 16, "heads": (1 << 15) - 1, "tokens": 1 << 32, "steps": 1 << 32}
"""First number beyond each kind of range, from section 1 of the sampling specification."""

_STORAGE_BITS = {"auto": 16, **{name: _native.format_bits(name) for name in STORAGE_FORMATS}}
_SCALED = [name for name in STORAGE_FORMATS if _native.format_scaled(name)]
SCALE_BITS = _native.format_bits(_SCALED[0], "scales")


def check_tree(root: Node) -> PromptSpec:
    """Check a spec and return its prompts, which checking has read.

    Raises `SpecError` with every error in file order. An entry with structural errors is not checked for meaning.
    """
    findings = Findings()
    _check_version(root, findings)
    findings.raise_if_any()  # Another version has other keys: naming them all would not help.
    _check_structure(root, findings)
    malformed = findings.touched()
    faults = root.get("faults")
    if faults is not None and isinstance(faults.value, list):
        for index, fault in enumerate(faults.items):
            if f"$.faults[{index}]" not in malformed:
                _check_fault(root, fault, f"$.faults[{index}]", findings)
        _check_names(faults, findings)
    if "$.trials" not in malformed:
        _check_power(root, findings)
    if not {"$.metrics", "$.generation"} & malformed:
        _check_metrics(root, findings)
    prompts = root.get("prompts")
    checked = (
        read_prompts(prompts, findings) if prompts is not None and "$.prompts" not in malformed else PromptSpec(())
    )
    if "$.generation" not in malformed:
        _check_choices(root, checked, findings)
    findings.raise_if_any()
    return checked


def _check_choices(root: Node, prompts: PromptSpec, findings: Findings) -> None:
    """An answer that is chosen is one token, the likeliest; a task that compares likelihoods says among which."""
    choices, most = root.get("generation", "choices"), root.get("generation", "max_tokens")
    if choices is not None and (most is None or most.plain() != 1):
        findings.add(
            "KVS206",
            f"`choices` are of one token, and `max_tokens` is {show(most) if most is not None else 50}",
            choices.mark,
            "$.generation.choices",
            expected="`max_tokens: 1` beside it",
        )
    heat = root.get("generation", "temperature")
    if choices is not None and heat is not None and heat.plain() != 0:
        findings.add(
            "KVS206",
            f"`choices` ask for the likeliest, and `temperature` is {show(heat)}",
            choices.mark,
            "$.generation.choices",
            expected="`temperature: 0`",
            hint="remove `temperature`: 0 is its default",
        )
    asked = {task.grader.choices for task in prompts.tasks if task and task.grader.kind == "lm_eval"} - {()}
    if wrong := [texts for texts in sorted(asked) if choices is None or set(texts) != set(choices.plain())]:
        listed = json.dumps(list(wrong[0]), ensure_ascii=False)
        task = root.get("prompts", "lm_eval") or root
        findings.add(
            "KVS206",
            f"{show(task)} takes the likeliest of {len(wrong[0])} choices, and `generation.choices` is "
            f"{'missing' if choices is None else 'another list'}",
            task.mark if choices is None else choices.mark,
            "$.prompts.lm_eval" if choices is None else "$.generation.choices",
            expected=f"`generation: {{max_tokens: 1, choices: {listed}}}`",
        )


def _check_metrics(root: Node, findings: Findings) -> None:
    metrics = root.get("metrics")
    if metrics is None or root.get("generation", "logprobs") is not None:
        return
    for index, item in enumerate(metrics.items):
        if item.value in LOGPROB_METRICS:
            findings.add(
                "KVS206",
                f"{show(item)} needs logprobs, and none are recorded",
                item.mark,
                f"$.metrics[{index}]",
                expected="`logprobs` in `generation`",
                hint="write `generation: {logprobs: 5}`",
            )


def _check_power(root: Node, findings: Findings) -> None:
    first, second = root.get("trials", "power", "from"), root.get("trials", "power", "to")
    if first is not None and second is not None and first.plain() == second.plain():
        findings.add(
            "KVS205",
            f"{show(second)} is no difference from `from`, which no number of trials can show",
            second.mark,
            "$.trials.power.to",
            expected="another accuracy than `from`",
        )


def _check_structure(root: Node, findings: Findings) -> None:
    from kvspec.spec import schema  # jsonschema takes long to import, and only who reads a spec needs it.

    schema.check(root, findings)


def _check_version(root: Node, findings: Findings) -> None:
    version = root.get("kvspec")
    if isinstance(root.value, dict) and version is not None and version.value is not True and version.value != VERSION:
        findings.add(
            "KVS208",
            f"spec version {show(version)} is not supported",
            version.mark,
            "$.kvspec",
            expected=f"`kvspec: {VERSION}`",
            hint="the number is the version of the format, not of your spec" if version.value in (0, None) else None,
        )


def _check_names(faults: Node, findings: Findings) -> None:
    first: dict[str, Mark] = {}
    for index, fault in enumerate(faults.items):
        name = fault.get("name")
        if name is None or not isinstance(name.value, str):
            continue
        if name.value in first:
            findings.add(
                "KVS209",
                f"the name {show(name)} is taken",
                name.mark,
                f"$.faults[{index}].name",
                expected="a name of its own for every entry",
                hint=f"the other entry stands at {first[name.value]}; to sweep a dose, write one entry with a list",
            )
        first.setdefault(name.value, name.mark)


def _check_fault(root: Node, fault: Node, path: str, findings: Findings) -> None:
    _check_target(root, fault, path, findings)
    _check_bits(root, fault, path, findings)
    _check_page_rate(fault, path, findings)
    site = fault.get("site")
    writes = site is not None and any(item.value == "KV_WRITE" for item in site.items)
    for where, place in _selectors(fault, path):
        for key, limit in _LIMITS.items():
            if (selected := where.get(key)) is not None:
                _check_ranges(selected, f"{place}.{key}", limit, findings)
        steps = where.get("steps")
        if writes and steps is not None and steps.value != "all":
            findings.add(
                "KVS206",
                "`steps` selects reads, and `site: KV_WRITE` has none",
                where.keys.get("steps", steps.mark),
                f"{place}.steps",
                expected="`steps` only with `site: KV_READ` or `site: BOTH`",
                hint="the writes of the prompt or of decoding are `tokens: prompt` and `tokens: decode`",
            )


def _selectors(fault: Node, path: str) -> Iterator[tuple[Node, str]]:
    where = fault.get("where")
    if where is None:
        return
    for index, selector in enumerate(where.items):
        yield selector, f"{path}.where[{index}]" if isinstance(where.value, list) else f"{path}.where"


def _check_ranges(selected: Node, path: str, limit: int, findings: Findings) -> None:
    if not isinstance(selected.value, list):
        return
    for index, item in enumerate(selected.items):
        start, stop = parse_range(item.plain())
        place = f"{path}[{index}]"
        if stop is not None and stop <= start:
            problem, hint = f"the range {show(item)} is empty", f"write `{stop - 1}-{start}`"
            findings.add("KVS205", problem, item.mark, place, expected="first-last", hint=hint)
        elif max(start, (stop or 1) - 1) >= limit:
            findings.add("KVS205", f"{show(item)} is out of range", item.mark, place, expected=f"numbers below {limit}")


def _targets(fault: Node) -> set[object]:
    target = fault.get("target")
    return {"values"} if target is None else {item.value for item in target.items}


def _storage(root: Node) -> str:
    dtype = root.get("model", "kv_cache_dtype")
    return dtype.value if dtype is not None and isinstance(dtype.value, str) else "auto"


def _check_target(root: Node, fault: Node, path: str, findings: Findings) -> None:
    target, storage = fault.get("target"), _storage(root)
    if target is None or "scales" not in _targets(fault) or storage in _SCALED or storage not in _STORAGE_BITS:
        return
    findings.add(
        "KVS206",
        f"`target: scales` strikes scales in the cache, and `kv_cache_dtype: {storage}` has none there",
        target.mark,
        f"{path}.target",
        expected=f"a cache of {' or '.join(_SCALED)}",
        hint="fp8 has one scale per layer, which lies outside of the cache" if storage.startswith("fp8") else None,
    )


def _check_bits(root: Node, fault: Node, path: str, findings: Findings) -> None:
    bits, name = fault.get("bits"), _storage(root)
    width, what = _STORAGE_BITS.get(name), f"an element of `kv_cache_dtype: {name}`"
    if "values" not in _targets(fault):
        width, what = SCALE_BITS, "a scale, which is a float32"
    if bits is None or not isinstance(bits.value, list) or width is None:
        return
    for index, bit in enumerate(bits.items):
        if bit.plain() >= width:
            findings.add(
                "KVS205",
                f"there is no bit {show(bit)} in {what}",
                bit.mark,
                f"{path}.bits[{index}]",
                expected=f"bits from 0 to {width - 1}",
            )


def _check_page_rate(fault: Node, path: str, findings: Findings) -> None:
    """A page is hit with probability rate / page_density. Units that need the geometry are left to the plan."""
    density = fault.get("page_density")
    per_page_bit = density.plain() if density is not None else 1e-3
    model, unit = fault.get("model"), fault.get("rate", "per_bit")
    place, hours = f"{path}.rate.per_bit", 0.0
    if unit is None and (unit := fault.get("rate", "fit", "raw_fit_per_mbit")) is not None:
        place = f"{path}.rate.fit.raw_fit_per_mbit"
        hours = fault.get("rate", "fit", "residency_hours").plain()  # type: ignore[union-attr]
    if model is None or model.value != "page_local" or unit is None:
        return
    for index, item in enumerate(unit.items):
        rate = item.plain()
        if hours:
            rate = -math.expm1(-rate * hours / (1e9 * 2**20))
        if rate > per_page_bit:
            findings.add(
                "KVS205",
                f"the rate {show(item)} is above the density of a hit page, so more than every page would be hit",
                item.mark,
                f"{place}[{index}]" if isinstance(unit.value, list) else place,
                expected=f"at most `page_density`, {per_page_bit:g} per bit",
                hint="raise `page_density`, or state the dose as `per_page`",
            )
