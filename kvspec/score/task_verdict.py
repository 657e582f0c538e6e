"""What the tests of graded answers decide, in words. Every sentence follows from its numbers, and names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from kvspec.score.exposure import ALIKE, Exposure, Sides, doses, exposures_of, pooled_alike, tasks_alike
from kvspec.score.lengths import length_sentences
from kvspec.score.tasks import CleanTask, FaultedTask, TaskPair, TaskScores
from kvspec.score.zombie import zombie_states
from kvspec.stats.exact import ALPHA
from kvspec.stats.intervals import Proportion

Pairs = Sequence[tuple[TaskPair, Exposure]]


def sentences(tasks: TaskScores, names: Sequence[str], series: Sequence[str]) -> list[str]:
    """What the tests decide, then what the model can do without faults.

    `names` are those of the cells, `series` the names of the series that they belong to.
    """
    said: list[str] = []
    if tasks.pairs:
        said += _what_breaks_first(exposures_of(tasks), names, series)
        said += _over_all_cells(tasks)
        said += _zombie(tasks, names)
    elif {"retrieval", "reasoning"} <= {clean.kind for clean in tasks.clean}:
        said.append("Retrieval and reasoning were not compared: the clean model solves no item in both.")
    said += [
        _step(clean, tasks, names, series) for clean in tasks.clean if clean.kind == "reasoning" and clean.stated.n
    ]
    said += length_sentences(tasks.lengths)
    for clean in tasks.clean:
        right = f"{clean.right.k:,} of {clean.right.n:,} right"
        said.append(f"Clean {clean.task}{_at(clean)}: {right}{_chance(clean)}{_decided(clean)}.")
    return said


def _decided(clean: CleanTask) -> str:
    return "" if clean.decided_after is None else f", decided after {clean.decided_after:.3g} tokens on average"


def _chance(clean: CleanTask) -> str:
    if clean.chance is None:
        return ""
    low = clean.right.low
    guesses = (
        " and not shown to be above it, so what it keeps says little" if low is None or low <= clean.chance else ""
    )
    return f", chance {clean.chance:.0%}{guesses}"


def _what_breaks_first(pairs: Pairs, names: Sequence[str], series: Sequence[str]) -> Iterator[str]:
    """Reasoning against the retrieval of its own operands decides; against other retrieval it is told apart, and so are
    those exposed alike."""
    same = [one for one in pairs if one[0].same_operands]
    other = [one for one in pairs if not one[0].same_operands]
    deciding, retrieval = (same, "retrieval of the same operands") if same else (other, "retrieval")
    equal = [one for one in deciding if one[1].equal]
    if unequal := [one for one in deciding if not one[1].equal]:
        yield _compared(unequal, retrieval, _counts(unequal, len(deciding), names, series))
        yield from _unequal(unequal, retrieval)
    if equal:
        tasks = dict.fromkeys(f"{pair.reasoning} against {pair.retrieval}" for pair, _ in equal)
        yield (
            f"At equal exposure up to the token that decides ({', '.join(tasks)}; tokens and expected flips within "
            f"{ALIKE - 1:.0%} of each other): {_counts(equal, len(deciding), names, series)}."
        )
    if same and other:
        yield f"Against retrieval of other facts: {_counts(other, len(other), names, series)}."


def _over_all_cells(tasks: TaskScores) -> Iterator[str]:
    """How much more often one fails than the other, which no comparison under one fault has the trials for."""
    said = [
        f"{one.second} less {one.first}{how} {one} ({one.lost[1]:,} and {one.lost[0]:,} of {one.pairs:,}, "
        f"{one.detected[1]:,} and {one.detected[0]:,} of them detected errors)"
        for some, how in zip(pooled_alike(tasks), (" (exposed alike)", ""), strict=True)
        for one in some
    ]
    if said:
        yield f"Failures over all cells, with items as clusters: {_some(said, 8)}."


def _compared(pairs: Pairs, retrieval: str, counts: str) -> str:
    apart = [pair for pair, _ in pairs if pair.p_holm < ALPHA]
    reasoning = [pair for pair in apart if pair.only_reasoning > pair.only_retrieval]
    if not apart:
        head = f"This run cannot tell whether reasoning or {retrieval} breaks first"
    elif len(reasoning) == len(apart):
        head = f"Reasoning breaks before {retrieval} wherever the two can be told apart"
    elif not reasoning:
        head = f"{retrieval[0].upper()}{retrieval[1:]} breaks before reasoning wherever the two can be told apart"
    else:
        head = f"Neither reasoning nor {retrieval} breaks first throughout"
    return f"{head}: {counts}."


def _unequal(pairs: Pairs, retrieval: str) -> Iterator[str]:
    """By how much exposures differ; nothing where that is not known."""
    flips = [exposure.flips for _, exposure in pairs if exposure.flips]
    tokens = [exposure.tokens for _, exposure in pairs if exposure.tokens]
    if tokens and any(map(all, flips)):
        yield (
            f"Equal rates are not equal exposure here: up to the token that decides, reasoning has {_times(tokens)} "
            f"the tokens and {_times(flips)} the expected flips of {retrieval}{_spared(flips)}, so what fails more "
            "often may only be exposed for longer."
        )


def _counts(pairs: Pairs, family: int, names: Sequence[str], series: Sequence[str]) -> str:
    """Significant ones by direction; `family` is how many tests Holm's adjustment is over."""
    apart = sorted((pair for pair, _ in pairs if pair.p_holm < ALPHA), key=lambda pair: pair.p)
    reasoning = sum(pair.only_reasoning > pair.only_retrieval for pair in apart)
    over = f" over all {family}" if family > len(pairs) else ""
    kinds = _by_series([pair for pair, _ in pairs], series) if apart else ""
    said = (
        f"of {_count(len(pairs), 'comparison')} on common items at equal rates{_doses(pairs)} reasoning fails "
        f"more often in {reasoning}, retrieval in {len(apart) - reasoning}, undecided {len(pairs) - len(apart)} "
        f"(McNemar, Holm{over}{kinds})"
    )
    shown = [f"{p.reasoning} against {p.retrieval} under {names[p.cell]}, ratio {p.sensitivity}" for p in apart]
    return f"{said}: {_some(shown)}" if shown else said


def _doses(pairs: Pairs) -> str:
    """Answers of reasoning tasks are longer, so that at equal rates more flips are expected in them."""
    flips, decided = doses([exposure for _, exposure in pairs])
    known = [sides for sides in flips if sides]
    if not any(map(all, known)):
        return ""
    up_to = ", up to the token that decides" if decided else ", over whole answers"
    times = _times(known)
    return f" ({'as many' if times == '1 times' else f'{times} the'} expected flips in reasoning{up_to})"


def _ratios(flips: Sequence[Sides]) -> Sides:
    """The least and the greatest of reasoning over retrieval, where both have any."""
    found = [reasoning / retrieval for retrieval, reasoning in flips if retrieval and reasoning]
    return min(found), max(found)


def _times(flips: Sequence[Sides]) -> str:
    ratios = _ratios(flips)
    low, high = (f"{ratio:.{2 if max(ratios) > ALIKE else 3}g}" for ratio in ratios)
    return f"{low} times" if low == high else f"{low} to {high} times"


def _spared(flips: Sequence[Sides]) -> str:
    """Faults that strike late spare an answer that is decided by then."""
    spared = sum(retrieval == 0 < reasoning for retrieval, reasoning in flips)
    return f" (which has none in {spared} of {len(flips)})" if spared else ""


def _by_series(pairs: Sequence[TaskPair], series: Sequence[str]) -> str:
    """In which kinds of faults the two are told apart; nothing where there is one kind."""
    counts = _by_kind([(series[p.cell], p.p_holm < ALPHA, p.only_reasoning > p.only_retrieval) for p in pairs])
    return f"; reasoning and retrieval by kind of fault: {counts}" if counts else ""


def _by_kind(tests: Sequence[tuple[str, bool, bool]]) -> str:
    """Tests as (kind, significant, in the first direction), counted by kind; nothing where there is one kind."""
    kinds: dict[str, list[tuple[bool, bool]]] = {}
    for kind, *test in tests:
        kinds.setdefault(kind, []).append((test[0], test[1]))
    counts = [
        f"{kind} {sum(apart and first for apart, first in mine)} and "
        f"{sum(apart and not first for apart, first in mine)} of {len(mine)}"
        for kind, mine in kinds.items()
    ]
    return _some(counts, 8) if len(kinds) > 1 else ""


def _step(clean: CleanTask, tasks: TaskScores, names: Sequence[str], series: Sequence[str]) -> str:
    """P(right | operands stated), clean and under faults, and whether it falls; and whether it falls as much for an
    answer that is as long and takes no step."""
    faulted = tasks.faulted
    task = f"{clean.task}{_at(clean)}"
    tested = [f for f in faulted if (f.task, f.context) == (clean.task, clean.context) and f.p_holm is not None]
    if not tested:
        return (
            f"Whether faults hurt the step from operands to result of {task} was not measured: no answer states both."
        )
    apart = [found for found in tested if (found.p_holm or 0.0) < ALPHA]
    worse = [found for found in apart if _change(found) < 0]
    if not apart:
        head = f"No fault is shown to change the step from stated operands to the result of {task}"
    elif len(worse) == len(apart):
        head = f"Faults hurt the step from stated operands to the result of {task} wherever a change is shown"
    elif not worse:
        head = f"Under faults the step from stated operands to the result of {task} is right more often"
    else:
        head = f"Faults change the step from stated operands to the result of {task} both ways"
    shown = sorted(apart or tested, key=lambda found: (found.p or 0.0, _change(found)))
    cells = [f"{_share(f.right_given_stated)} under {names[f.cell]} (p = {f.p_holm:.2g})" for f in shown]
    kinds = _by_kind([(series[f.cell], (f.p_holm or 0.0) < ALPHA, _change(f) < 0) for f in tested]) if apart else ""
    by_kind = f"; lower and higher by kind of fault: {kinds}" if kinds else ""
    return (
        f"{head}: P(right | operands stated) is {_share(clean.right_given_stated)} clean, lower in {len(worse)} of "
        f"{_count(len(tested), 'cell')}, higher in {len(apart) - len(worse)}, undecided {len(tested) - len(apart)} "
        f"(exact test within prompts against clean, Holm{by_kind})"
        f"{': ' if apart else '; the nearest to a difference: '}{_some(cells, 4 if apart else 1, rest=bool(apart))}"
        f"{_without_step(clean, tasks)}."
    )


def _without_step(clean: CleanTask, tasks: TaskScores) -> str:
    """The same share of retrieval tasks that are exposed alike: what only the length of an answer costs."""
    names = [
        recall for context, recall, step in sorted(tasks_alike(tasks)) if (context, step) == (clean.context, clean.task)
    ]
    if not names:
        return ""
    ends = []
    for name in (clean.task, *names):
        golden = next(one for one in tasks.clean if (one.task, one.context) == (name, clean.context))
        mine = [one for one in tasks.faulted if (one.task, one.context) == (name, clean.context)]
        kept = mean(one.right_given_stated.rate or 0.0 for one in mine)
        ends.append(f"from {golden.right_given_stated.rate or 0.0:.1%} to {kept:.1%}")
    others = [f"{name}, exposed alike and without a step, {end}" for name, end in zip(names, ends[1:], strict=True)]
    return f"; from clean to the mean of the cells it goes {ends[0]}, and that of {', of '.join(others)}"


def _change(found: FaultedTask) -> float:
    return found.step_change.value if found.step_change is not None else 0.0


def _zombie(tasks: TaskScores, names: Sequence[str]) -> Iterator[str]:
    """Whether some cell recalls and does not reason, by its answers and silently."""
    for silent in (False, True):
        states = zombie_states(tasks, silent=silent)
        if not states:
            yield "Whether the model has a zombie state was not measured."
            return
        closest = min(states, key=lambda state: state.order)
        pairs = f"{_count(len(states), 'pair')} of a retrieval and a reasoning task"
        where = f"{closest} under {names[closest.cell]}, of {pairs}"
        if closest.distance > 0:
            yield f"No cell is in the {closest.name}; the closest: {where}."
        elif closest.shown:
            yield f"{closest.name[0].upper()}{closest.name[1:]}, shown by both intervals (95 % each): {where}."
        else:
            yield f"A {closest.name} is possible, but the intervals do not show it: {where}."


def _at(clean: CleanTask) -> str:
    return f" at {clean.context:,} tokens" if clean.context else ""


def _share(found: Proportion) -> str:
    if found.rate is None or found.low is None or found.high is None:
        return "-"
    return f"{found.rate:.1%} [{found.low:.1%}, {found.high:.1%}] (n = {found.n:,})"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(words: Sequence[str], limit: int = 4, *, rest: bool = True) -> str:
    left = len(words) - limit
    return "; ".join(words[:limit]) + (f"; and {left} more" if left > 0 and rest else "")
