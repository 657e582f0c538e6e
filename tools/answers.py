"""The answer to a spec's question in a sentence, with the figure that decides it.

A spec says which test decides (`x-answer: {test: ...}`) and what each of its outcomes means in words
(`higher`, `lower`, `neither`; or `shown`, `neither`). The test chooses among them, and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from kvspec.score import CellScore, Scores
from kvspec.score.exposure import exposures_of, pooled_alike
from kvspec.score.tasks import TaskPair
from kvspec.score.trend import series_label
from kvspec.score.verdict import LARGE_DESIGN_EFFECT
from kvspec.stats.exact import ALPHA
from kvspec.stats.intervals import Difference
from tools import formats
from tools.findings import Data, adjusted, ends, joined, order, p_value, share, size


@dataclass(frozen=True)
class Answer:
    """What a row of the index says."""

    text: str
    figure: str
    """The figure that decides, with interval and n."""
    apart: str = ""
    """What answers the question less directly, for the page."""


TOKENS = {"prompt": "prompt tokens", "decode": "generated tokens"}
NOTHING = Answer("Not measured: the run has no two samples to compare.", "-")


@dataclass(frozen=True)
class Measured:
    """One run of a page: its scores, and what was measured beyond them."""

    scores: Scores
    beyond: Data

    @property
    def clustered(self) -> bool:
        """Whether intervals for other prompts than those asked are much wider."""
        return self.scores.design_effect > LARGE_DESIGN_EFFECT

    def cell(self, name: str) -> CellScore:
        """Raises `KeyError` for one that the run does not have."""
        return {cell.plan.name: cell for cell in self.scores.cells}[name]


def answer(declared: Mapping[str, Any], runs: Sequence[Measured], beyond: Data, labels: Sequence[str] = ()) -> Answer:
    """By the test that the spec declares; without one, how many cells lie below the floor. `beyond` is of all runs.

    Labels tell the runs apart, by default the formats of their caches.

    Raises `KeyError` or `ValueError` for a test, cell, contrast or series that does not exist.
    """
    test = declared.get("test", "floor of all")
    if test == "formats":
        return _formats(labels or [run.scores.run.storage_format for run in runs], runs, beyond)
    if test == "search":
        return _search(beyond["searches"])
    found = [TESTS[test](run, declared) for run in runs]
    texts = list(dict.fromkeys(declared.get(one.text, one.text) for one in found))
    if len(found) == 1:
        return Answer(texts[0], found[0].figure)
    names = [run.scores.run.storage_format for run in runs]
    figures = [f"{name}: {one.figure}" for name, one in zip(names, found, strict=True)]
    words = [f"{name}: {declared.get(one.text, one.text)}" for name, one in zip(names, found, strict=True)]
    return Answer(texts[0] if len(texts) == 1 else " ".join(words), "; ".join(figures))


def _contrast(run: Measured, declared: Mapping[str, Any]) -> Answer:
    names = list(declared["cells"])
    tests = run.beyond["contrasts"]
    at = [one["cells"] for one in tests].index(names)
    one, p = tests[at], adjusted(tests)[at]
    shares = [f"{name} {run.cell(name).exact_match.rate or 0:.1%}" for name in (names[0], names[-1])]
    n = " and ".join(dict.fromkeys(f"{run.cell(name).exact_match.n:,}" for name in names))
    if one["test"] == "trend":
        z = one["z"] or 0.0
        return Answer(_way(z, p), f"{' to '.join(shares)} (z = {z:.1f}, {p_value(p)}), n = {n} a cell")
    value = one["difference"]["value"] if one["difference"] else 0.0
    wide = f"; for other prompts {ends(*one['clustered'])}" if one["clustered"] and run.clustered else ""
    return Answer(_way(value, p), f"{', '.join(shares)}: {size(one) or 'no difference'} ({p_value(p)}){wide}, n = {n}")


def _equal_flips(run: Measured, declared: Mapping[str, Any]) -> Answer:
    tests = run.beyond["equal_flips"]
    at = [one["series"] for one in tests].index(list(declared["series"]))
    one, p = tests[at], adjusted(tests)[at]
    value = one["difference"]["value"] if one["difference"] else 0.0
    n = " and ".join(f"{counts['n']:,}" for counts in one["counts"])
    names = " against ".join(one["series"])
    return Answer(_way(value, p), f"{names} {size(one) or 'alike'} at equal flips ({p_value(p)}), n = {n}")


def _way(value: float, p: float) -> str:
    if p >= ALPHA:
        return "neither"
    return "higher" if value > 0 else "lower"


def _pairs(run: Measured, _: Mapping[str, Any]) -> Answer:
    pairs = run.scores.pairs
    if not pairs:
        return NOTHING
    apart = [pair for pair in pairs if pair.p_holm < ALPHA]
    most = max(apart or pairs, key=lambda pair: abs(pair.difference.value))
    names = [run.scores.cells[index].plan.name for index in (most.second, most.first)]
    figure = f"{' against '.join(names)} {_signed(most.difference)} ({p_value(most.p_holm)}), n = {most.pairs:,} pairs"
    return Answer("shown" if apart else "neither", f"{len(apart)} of {len(pairs)} differ; {figure}")


def _lengths(run: Measured, _: Mapping[str, Any]) -> Answer:
    effects = [effect for effect in run.scores.tasks.lengths if effect.trials[0]]
    if not effects:
        return NOTHING
    apart = [effect for effect in effects if effect.p_holm < ALPHA]
    ways = {_way(effect.at_equal_flips.value if effect.at_equal_flips else 0.0, 0.0) for effect in apart}
    most = max(apart or effects, key=lambda effect: effect.longer / effect.shorter)
    differs = "alike" if most.at_equal_flips is None else _signed(most.at_equal_flips)
    figure = f"{most.longer:,} against {most.shorter:,} tokens {differs} at equal flips ({p_value(most.p_holm)})"
    n = f"n = {most.trials[1]:,} and {most.trials[0]:,}"
    return Answer("mixed" if len(ways) > 1 else next(iter(ways), "neither"), f"{figure}, {n}")


def _bits(run: Measured, _: Mapping[str, Any]) -> Answer:
    """Bits by their intervals, K against V by McNemar's test at each bit: what the rule of such a spec says."""
    assert run.scores.anatomy is not None
    squares = next(one.squares for one in run.scores.anatomy.maps if one.name == "bit")
    top = max(squares, key=lambda square: square.visible.rate or 0.0)
    others = [order(top.visible, square.visible) for square in squares if square is not top]
    which = f"bit {top.row} in {top.column} shows most" + (", above every other" if all(others) else "")
    pairs = [(a, b) for a, b in combinations(squares, 2) if a.column == b.column]
    apart = sum(order(a.visible, b.visible) != 0 for a, b in pairs)
    bits = f"Bits differ: {which}" if apart else "No difference between bits is shown"
    figure = f"bit {top.row} in {top.column} shown by {share(top.visible)} single flips"
    figure += f"; {apart} of {len(pairs)} pairs of bits of a plane are told apart"
    planes, how = _planes(run.scores)
    return Answer(f"{bits}; {planes}.", f"{figure}; {how}")


def _planes(scores: Scores) -> tuple[str, str]:
    """At which bits K or V is the more fragile, and the pair of cells that differs most."""
    found = []
    for pair in scores.pairs:
        first, second = (scores.cells[index].plan for index in (pair.first, pair.second))
        planes = [cell.fault["where"]["cache"] for cell in (first, second)]
        if planes == [["K"], ["V"]] and len(first.fault["bits"]) == 1:
            found.append((pair, first.fault["bits"][0], f"{second.name} against {first.name}"))
    apart = [one for one in found if one[0].p_holm < ALPHA]
    counts = f"K and V differ at {len(apart)} of {len(found)} bits"
    if not apart:
        return "K and V are not told apart at any of them", counts
    # less accuracy in V than in K: V is the more fragile
    words = []
    for sign, what in ((1, "K is more fragile than V"), (-1, "V is more fragile than K")):
        bits = [str(bit) for pair, bit, _ in apart if pair.difference.value * sign > 0]
        words += [f"{what} at bit{'s' * (len(bits) > 1)} {joined(bits)}"] if bits else []
    pair, _, names = max(apart, key=lambda one: abs(one[0].difference.value))
    how = f"{names} {_signed(pair.difference)} right ({p_value(pair.p_holm)}), n = {pair.pairs:,} pairs"
    return joined(words), f"{counts}, most {how}"


def _half(run: Measured, declared: Mapping[str, Any]) -> Answer:
    fits = {one.label: one for one in run.scores.dose_responses if one.dose == "rate"}
    one = fits[declared["series"]]
    cells = [run.scores.cells[index] for index in one.cells]
    sizes = sorted({cell.exact_match.n for cell in cells})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    unit = str(cells[0].plan.fault["rate"]["unit"]).replace("_", " ")
    low, high = ("?" if end is None else f"{end:.2g}" for end in (one.fit.low, one.fit.high))
    where = f"between {low} and {high}" if one.fit.ec50 is None else f"at {one.fit.ec50:.2g}"
    return Answer(f"Half of the effect is reached {where} {unit}.", f"EC50 [{low}, {high}] {unit}, n = {n} a cell")


def _floor(run: Measured, declared: Mapping[str, Any]) -> Answer:
    cell = run.cell(declared["cell"])
    wide = cell.effect.clustered if run.clustered else None
    more = "" if wide is None else f"; for other prompts [{wide[0]:.1%}, {wide[1]:.1%}]"
    return Answer("shown" if cell.below_floor else "neither", f"{cell.plan.name} {share(cell.exact_match)}{more}")


def _floor_of_all(run: Measured, _: Mapping[str, Any]) -> Answer:
    cells = [cell for cell in run.scores.cells if cell.below_floor is not None]
    below = sum(bool(cell.below_floor) for cell in cells)
    rates = [cell.exact_match.rate or 0.0 for cell in cells]
    span = f"{min(rates):.1%} to {max(rates):.1%}" if rates else "-"
    return Answer(f"{below} of {len(cells)} cells lie below the floor.", span)


def _first(run: Measured, declared: Mapping[str, Any]) -> Answer:
    """Reasoning against the retrieval of its own operands; `exposure: equal` asks the pairs alone that are exposed
    alike up to the tokens that decide, otherwise these are told beside all."""
    exposed = [one for one in exposures_of(run.scores.tasks) if one[0].same_operands]
    alike, others = ([pair for pair, exposure in exposed if exposure.equal == wanted] for wanted in (True, False))
    known = any(exposure.flips and exposure.tokens for _, exposure in exposed)
    only = declared.get("exposure") == "equal"
    pairs = alike if only else [pair for pair, _ in exposed]
    if not pairs:
        return Answer("Not answered: no comparison is at equal exposure.", "-") if exposed else NOTHING
    apart, reasoning = _apart(pairs)
    if not apart:
        text = "It cannot be told which breaks first."
    elif reasoning == len(apart):
        text = "Reasoning breaks first wherever the two can be told apart"
    elif not reasoning:
        text = "Retrieval breaks first wherever the two can be told apart"
    else:
        text = "Neither breaks first throughout"
    if apart:
        told = {_kind(run.scores.cells[pair.cell]): False for pair in pairs}
        told |= {_kind(run.scores.cells[pair.cell]): True for pair in apart}
        at, never = ([kind for kind, shown in told.items() if shown == wanted] for wanted in (True, False))
        where = f", which is under {' and '.join(at)}; under {' and '.join(never)} they cannot" if never else ""
        text = f"{text}{where}."
    most = min(apart or pairs, key=lambda pair: pair.p)
    where = run.scores.cells[most.cell].plan.name
    figure = f"{_counts(pairs)} comparisons; under {where} failures of {most.reasoning} over {most.retrieval} "
    figure += f"{most.sensitivity or '-'}, n = {most.pairs:,} pairs, {p_value(most.p_holm)}"
    if only:
        verdict = f"{text[0].lower()}{text[1:]}" if apart else "no single comparison tells them apart."
        text = f"At equal exposure {verdict}"
        over, _ = pooled_alike(run.scores.tasks)
        if over:
            more = ", ".join(f"{one.second} {one}" for one in over)
            text += f" Over all cells, wrong answers less those of {over[0].first}: {more}."
            figure = f"{_counts(pairs)} comparisons; n = {' and '.join(f'{one.pairs:,}' for one in over)} pairs"
        figure += f"; at unequal exposure {_counts(others)}" if others else ""
    elif alike:
        text += f" At equal exposure up to the token that decides: {_counts(alike)}."
    elif known:
        text += " No comparison is at equal exposure up to the token that decides."
    return Answer(text, figure)


def _apart(pairs: Sequence[TaskPair]) -> tuple[list[TaskPair], int]:
    """Those that the test tells apart, and in how many of them reasoning fails more often."""
    apart = [pair for pair in pairs if pair.p_holm < ALPHA]
    return apart, sum(pair.only_reasoning > pair.only_retrieval for pair in apart)


def _counts(pairs: Sequence[TaskPair]) -> str:
    apart, reasoning = _apart(pairs)
    return f"reasoning in {reasoning}, retrieval in {len(apart) - reasoning} of {len(pairs)}"


def _kind(cell: CellScore) -> str:
    """The series of a cell, and which tokens its faults strike unless all."""
    tokens = cell.plan.fault["where"]["tokens"]
    return series_label([cell]) + ("" if tokens == "all" else f" (faults of {TOKENS.get(tokens, tokens)})")


def _formats(labels: Sequence[str], runs: Sequence[Measured], beyond: Data) -> Answer:
    """One answer per question; the names of formats without what all of a kind share."""
    names = [label.replace("_per_token_head", "") for label in labels]
    scores = [run.scores for run in runs]
    found = formats.parts(names, scores, beyond["formats"])
    sizes = sorted({cell.exact_match.n for one in scores for cell in one.cells})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    # a label says more than the format where a run was made in another place than the first
    formats_of = [one.run.storage_format for one in scores]
    here = [one for one in range(1, len(names)) if labels[one] == formats_of[one]]
    there = [one for one in range(1, len(names)) if one not in here]
    # the comparison of all is the one that was asked; where nothing shares the first one's place, it is all there is
    told, apart = (here, there) if here else (there, [])
    figures = "; ".join(part.figure(names, told) for part in found)
    lead = f"against {names[0]} at equal doses (masked: fewer answers are lost, amplified: more)"
    other = ""
    if apart:
        texts = "; ".join(part.answer(names, apart) for part in found)
        other = f"In another place as well as in another format, {lead}: {texts}. {formats.PLACE_ALONE}"
        figures += f"; {', '.join(names[one] for one in apart)}: see the page"
    text = "; ".join(part.answer(names, told) for part in found)
    return Answer(f"Faults, {lead}: {text}.", f"{figures}; n = {n} a cell", other)


def _search(searches: Sequence[Data]) -> Answer:
    """By both definitions of the state, each by the search that shows most; of several that show as much, the first.

    A search shows by its own cells and its own other seed, so an earlier one is not undone by a later one without."""
    best = [
        min(enumerate(closest), key=lambda one: (list(SEARCHED).index(one[1]["verdict"]), one[0]))
        for closest in zip(*(one["closest"] for one in searches), strict=True)
    ]
    several = len({at for at, _ in best}) > 1 or any(at for at, _ in best)
    days = [f" (search of {searches[at]['where'].split(', ')[-2]})" if several else "" for at, _ in best]
    said = [SEARCHED[one["verdict"]] + _lacking(one) + day for (_, one), day in zip(best, days, strict=True)]
    spared = [_spared(one) for _, one in best]
    if len(set(spared)) > 1:
        said = [text + (f" ({how})" if how else "") for text, how in zip(said, spared, strict=True)]
    end = f" ({spared[0]})" if len(set(spared)) == 1 and spared[0] else ""
    texts = [f"{name}: {text}" for name, text in zip(DEFINITIONS, said, strict=True)]
    if len(set(said)) == 1:
        texts = [f"{' and '.join(DEFINITIONS)}: {said[0]}"]
    figures = [f"{name}: {one['state']}" for name, (_, one) in zip(DEFINITIONS, best, strict=True)]
    return Answer(f"{'; '.join(texts)}{end}.", "; ".join(figures))


def _spared(closest: Data) -> str:
    """A state that is there by when its faults strike says so."""
    told = closest["verdict"] in ("Found", "Shown once") and closest["spared"]
    return f"faults that spare the first {closest['spared']} tokens of the answer" if told else ""


def _lacking(closest: Data) -> str:
    """Another seed whose run was interrupted confirms nothing; figures from before that was counted had none."""
    missing = closest.get("missing_again", 0)
    return f", whose run lacks {missing} trials" if missing and closest["verdict"] == "Shown once" else ""


DEFINITIONS = ("By the answers", "silent")
SEARCHED = {
    "Found": "yes, by both intervals, and again with another seed",
    "Shown once": "shown by both intervals of one search, not yet with another seed",
    "Undecided": "seen, but not shown by intervals in two searches with different seeds",
    "None": "none is shown",
}


def _signed(found: Difference) -> str:
    return f"{found.value:+.1%} {ends(found.low, found.high)}"


TESTS: Mapping[str, Callable[[Measured, Mapping[str, Any]], Answer]] = {
    "contrast": _contrast,
    "equal flips": _equal_flips,
    "pairs": _pairs,
    "lengths": _lengths,
    "bits": _bits,
    "half": _half,
    "floor": _floor,
    "floor of all": _floor_of_all,
    "what breaks first": _first,
}
