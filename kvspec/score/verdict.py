"""Sentences that follow from the numbers. Every claim names the counts it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from kvspec.score.anatomy import anatomy_sentences
from kvspec.score.model import CellScore, DoseResponse, Floor, PairTest, Scores, Trend, Vulnerability
from kvspec.score.task_verdict import sentences
from kvspec.score.trend import series_label
from kvspec.stats.exact import ALPHA

FEW_PROMPTS = 10
"""With fewer of them, how much prompts differ is hardly known."""
LARGE_DESIGN_EFFECT = 1.5


def verdict(scores: Scores) -> tuple[str, ...]:
    """What the run shows, the most important first."""
    floor, cells = scores.floor, scores.cells
    halves = {found.cells: found for found in scores.dose_responses if found.dose == "rate"}
    flips = {found.cells: found for found in scores.dose_responses if found.dose == "expected"}
    doses = []
    for trend in scores.trends:
        doses.append(_dose(trend, cells))
        if half := halves.get(trend.cells):
            doses.append(_half(half, flips.get(trend.cells), cells))
    return (
        *_soundness(floor, cells),
        _floor(floor),
        *_effects(cells),
        *_outcomes(cells),
        *sentences(scores.tasks, [cell.plan.name for cell in cells], [series_label([cell]) for cell in cells]),
        *doses,
        *_pairs(scores.pairs, cells),
        *anatomy_sentences(scores.anatomy),
        *_vulnerabilities(scores.vulnerabilities, cells),
    )


def warnings(scores: Scores) -> tuple[str, ...]:
    """What limits the verdict."""
    run, floor, cells = scores.run, scores.floor, scores.cells
    found: list[str] = []
    if run.recorded < run.planned:
        what = f"{run.recorded:,} of {run.planned:,} trials"
        if run.lost:
            found.append(f"records are missing: {what} are left of a run that was complete")
        else:
            found.append(f"the run is partial: {what} ({run.status})")
    if run.error:
        found.append(f"the run ended with an error: {run.error.splitlines()[0]}")
    if floor.unusable_golden:
        found.append(
            f"golden failed for request {_list(str(r) for r in floor.unusable_golden)}: its trials are unscored"
        )
    if floor.missing_golden:
        found.append(f"{floor.missing_golden:,} of {run.requests:,} requests have no golden trial yet")
    prompts = max((cell.effect.prompts for cell in cells), default=0)
    if scores.design_effect > LARGE_DESIGN_EFFECT:
        few = f", as far as {_count(prompts, 'prompt')} can tell" if prompts < FEW_PROMPTS else ""
        found.append(
            f"trials of one prompt are alike: the variance is {scores.design_effect:.1f} times that of independent "
            f"trials{few}; Wilson intervals are too narrow for other prompts than these (clustered ones: JSON)"
        )
    if blurred := [cell for cell in cells if cell.logprobs.unusable]:
        count = _count(sum(cell.logprobs.unusable for cell in blurred), "trial")
        names = _list(cell.plan.name for cell in blurred)
        found.append(f"logprobs of {count} do not compare (not finite, or not k per token) and are in no mean: {names}")
    for cell in cells:
        found += _cell_warnings(cell, run.trials_per_cell)
    return tuple(found)


def _cell_warnings(cell: CellScore, trials: int) -> list[str]:
    name, found = cell.plan.name, []
    expected = cell.plan.expected_per_trial
    if expected is not None and expected * trials < 1:
        found.append(f"{name} expects {expected * trials:.2g} flips in its {trials:,} trials, less than one")
    elif cell.recorded and not cell.flips.trials:
        found.append(f"{name}: none of its {cell.recorded:,} trials finished, so it has no drift and no count of flips")
    elif cell.recorded and cell.flips.planned == 0:
        found.append(f"{name}: no flip was planned in {cell.recorded:,} trials, so it shows the floor, not a fault")
    if cell.unscored:
        found.append(f"{name}: {cell.unscored:,} trials have no usable golden answer and are in no proportion")
    if cell.preempted:
        found.append(f"{name}: {cell.preempted:,} trials lost their cache to the scheduler and were recomputed")
    return found


def _soundness(floor: Floor, cells: Sequence[CellScore]) -> list[str]:
    said = []
    bad = [cell for cell in cells if cell.invalid]
    if bad:
        total = sum(cell.invalid for cell in bad)
        names = _list(f"{cell.plan.name} ({cell.invalid:,})" for cell in bad)
        said.append(
            f"INVALID: in {_count(total, 'trial')} other flips landed than were planned: {names}. "
            "They are in no proportion; do not rely on this run."
        )
    if floor.invalid:
        said.append(f"INVALID: {_count(floor.invalid, 'trial')} without faults held flips; do not rely on this run.")
    return said


def _floor(floor: Floor) -> str:
    parts = [
        f"{p.k:,} of {p.n:,} {name}"
        for p, name in ((floor.golden_repeats, "golden repeats"), (floor.null_trials, "null trials"))
        if p.n
    ]
    if not parts:
        return "The floor was not measured: no golden repeat and no null trial is recorded."
    state = "clean" if floor.clean else "NOT clean"
    return f"The floor is {state}: {' and '.join(parts)} equal golden."


def _effects(cells: Sequence[CellScore]) -> list[str]:
    measured = [cell for cell in cells if cell.below_floor is not None]
    if not measured:
        return ["No cell can be compared with the floor."] if cells else ["The plan has no fault."]
    below = [cell.plan.name for cell in measured if cell.below_floor]
    above = [cell for cell in measured if not cell.below_floor and cell.effect.above]
    within = [cell for cell in measured if not cell.below_floor and not cell.effect.above]
    said = []
    if below:
        said.append(f"Accuracy lies below the floor (exact test within prompts, Holm) in {_of(below, measured)}.")
    if within:
        names = [cell.plan.name for cell in within]
        said.append(f"Not distinguishable from the floor: {_of(names, measured)}; {_could_have_shown(within)}.")
    if above:
        names = [f"{cell.plan.name} ({cell.effect.difference.value:+.1%})" for cell in above if cell.effect.difference]
        said.append(
            "Not below the floor, and more often equal to golden than the controls (not tested, for no fault explains "
            f"that), in {_of(names, measured)}; {_could_have_shown(above)}."
        )
    return said


def _could_have_shown(cells: Sequence[CellScore]) -> str:
    """What an effect would have had to be."""
    drops = [cell.effect.detectable_drop for cell in cells]
    known = sorted(drop for drop in drops if drop is not None)
    if not known:
        return "so few trials and controls could have shown no fall at all"
    span = f"{known[0]:.1%}" if known[-1] - known[0] < 5e-4 else f"{known[0]:.1%} to {known[-1]:.1%}, by cell,"
    blind = f", and none in {_count(len(drops) - len(known), 'cell')}" if len(known) < len(drops) else ""
    return f"a fall of {span} or more would have shown with 80 % power{blind}"


def _outcomes(cells: Sequence[CellScore]) -> list[str]:
    """How many trials ended in a way that is seen, and why; nothing where all went on in silence."""
    n, due = sum(cell.exact_match.n for cell in cells), sum(cell.outcome["due"] for cell in cells)
    if not due:
        return []
    words = {"nonfinite": "with logits that were not finite", "error": "with an error", "unfinished": "unfinished"}
    sums = {reason: sum(cell.due_reasons[reason] for cell in cells) for reason in words}
    why = ", ".join(f"{count:,} {words[reason]}" for reason, count in sums.items() if count)
    said = f"{due:,} of {n:,} trials with faults are detected errors (due): {why}"
    whole = [cell.plan.name for cell in cells if cell.exact_match.n and cell.outcome["due"] == cell.exact_match.n]
    return [f"{said}{f'; all trials of {_list(iter(whole))}' if whole else ''}."]


def _dose(trend: Trend, cells: Sequence[CellScore]) -> str:
    rates = [cells[c].exact_match.rate or 0.0 for c in trend.cells]
    span = f"{rates[0]:.1%} to {rates[-1]:.1%} over {len(rates)} rates"
    if trend.rises:
        pairs = _list(f"{cells[a].plan.name} to {cells[b].plan.name} ({_p(p)})" for a, b, p in trend.rises)
        return f"{trend.label}: accuracy RISES with the rate from {pairs} (Fisher, Holm): suspect the injection."
    if trend.z is None or trend.p_falls is None:
        return f"{trend.label}: no difference between the rates is seen ({span})."
    test = f"Cochran-Armitage, Holm, z = {trend.z:.1f}, {_p(trend.p_falls)}"
    if trend.p_falls < 0.05:
        return (
            f"{trend.label}: accuracy falls with the rate, {span} ({test}); no step rises significantly (Fisher, Holm)."
        )
    return f"{trend.label}: no fall with the rate is shown, {span} ({test})."


def _half(rate: DoseResponse, flips: DoseResponse | None, cells: Sequence[CellScore]) -> str:
    unit = str(cells[rate.cells[0]].plan.fault["rate"]["unit"]).removeprefix("per_")
    unit = " FIT/Mbit" if unit == "fit" else f"/{unit}"
    fit = rate.fit
    if fit.step:
        if fit.low is not None and fit.high is not None:
            where = f"between {fit.low:.2g} and {fit.high:.2g}{unit}"
        elif fit.low is not None:
            where = f"above {fit.low:.2g}{unit}"
        else:
            where = "at an unknown rate" if fit.high is None else f"below {fit.high:.2g}{unit}"
        return (
            f"{rate.label}: half of the effect (EC50) lies {where}: a step fits these rates as well as any slope, so "
            "there is no value and no curve."
        )
    if fit.ec50 is None:
        ends = [f"above {fit.low:.2g}{unit}"] if fit.low is not None else []
        ends += [f"below {fit.high:.2g}{unit}"] if fit.high is not None else []
        where = " and ".join(ends) or "not bounded by them"
        return f"{rate.label}: half of the effect (EC50) lies outside the rates measured: {where}."
    span = f"{_end(fit.low)} to {_end(fit.high)}"
    text = f"{rate.label}: half of the effect at {fit.ec50:.2g}{unit} (EC50, 95 % interval {span})"
    if flips is not None and flips.fit.ec50 is not None:
        text += f", {flips.fit.ec50:.2g} expected flips a request"
    if fit.p_fit is not None and fit.p_fit < ALPHA:
        text += f"; the curve fits badly ({_p(fit.p_fit)})"
    return f"{text}."


def _end(value: float | None) -> str:
    return "open" if value is None else f"{value:.2g}"


def _pairs(pairs: Sequence[PairTest], cells: Sequence[CellScore]) -> list[str]:
    if not pairs:
        return []
    apart = [pair for pair in pairs if pair.p_holm < ALPHA]
    if not apart:
        largest = max(pairs, key=lambda pair: abs(pair.difference.value))
        none = f"none of {_count(len(pairs), 'pair')} of cells differs (McNemar, Holm)"
        return [f"Same faults, other sites: {none}; the largest difference: {_pair(largest, cells)}."]
    said = _list(_pair(pair, cells) for pair in sorted(apart, key=lambda pair: pair.p))
    return [f"Same faults, other sites: {len(apart)} of {_count(len(pairs), 'pair')} differ (McNemar, Holm): {said}."]


def _pair(pair: PairTest, cells: Sequence[CellScore]) -> str:
    by = pair.difference
    size = f"{by.value:+.1%} [{by.low:+.1%}, {by.high:+.1%}]"
    return f"{cells[pair.second].plan.name} {size} against {cells[pair.first].plan.name}"


def _vulnerabilities(found: Sequence[Vulnerability], cells: Sequence[CellScore], limit: int = 4) -> list[str]:
    """A sentence per series, the most vulnerable first where there are many."""
    shown = found if len(found) <= limit else sorted(found, key=lambda one: -(one.avf.rate or 0.0))[:limit]
    said = [_vulnerable(one, cells) for one in shown]
    if len(found) > limit:
        said.append(f"These are the {limit} with the highest AVF of {len(found):,} series; the JSON report has all.")
    return said


def _vulnerable(found: Vulnerability, cells: Sequence[CellScore]) -> str:
    avf = found.avf
    assert avf.low is not None
    assert avf.high is not None
    name = series_label([cells[found.cells[0]]])
    text = (
        f"{name}: of {_count(avf.n, 'trial')} with a single flip, {avf.rate or 0:.2%} show it "
        f"(AVF, {avf.low:.2%} to {avf.high:.2%})"
    )
    if found.fit:
        low, high = found.fit[0], found.fit[-1]
        span = f"{low.value:.3g}" if low == high else f"{low.value:.3g} to {high.value:.3g}"
        text += f"; {span} FIT for the cache of one request"
    return f"{text}."


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"


def _of(names: list[str], measured: Sequence[CellScore]) -> str:
    return f"{len(names)} of {_count(len(measured), 'cell')}: {_list(iter(names))}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _list(words: object, limit: int = 8) -> str:
    found = list(words)  # type: ignore[call-overload]
    shown = ", ".join(found[:limit])
    return shown if len(found) <= limit else f"{shown} and {len(found) - limit} more"
