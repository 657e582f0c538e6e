"""The same cells in caches of different formats: three questions, per bit, per element and per GiB, and their answers.

Accuracy is that of token ids equal to the golden ones of the same format. The first format is the one that the others
mask or amplify faults against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvspec.score import CellScore, Floor, Scores
from kvspec.stats.exact import ALPHA
from tools.findings import Data, Findings, adjusted, joined, share
from tools.measured import REQUEST_TOKENS

UNITS = {"per_bit": "bit", "per_element": "element", "per_row": "row", "per_token": "token"}
SHOWN = 6
"""Doses of one unit whose formats are all ranked in the sentence; of more, those at which some differ."""
UNSTABLE = {
    "int4_per_token_head": "stock vLLM does not repeat its own answers in int4 either, "
    "[part floor](../benchmarks/h100-session.md)"
}
PLACE_ALONE = (
    "How much place alone can do: the same faults of the same spec on a CPU in float32 ([README](../../README.md)) and "
    "on an H200 in bfloat16 ([quickstart](quickstart.md))."
)


@dataclass(frozen=True)
class Dose:
    """One dose in every format."""

    name: str
    """The rate where it tells the doses apart, else the name of the cell."""
    losses: Sequence[float]
    """Per format: the larger, the more is lost."""
    figures: Sequence[str]
    """Per format, as it is told."""
    p: Mapping[tuple[int, int], float]
    """Of every two formats, adjusted over all doses of the family."""

    @property
    def apart(self) -> int:
        """Pairs of formats that differ."""
        return sum(p < ALPHA for p in self.p.values())

    def ranking(self, names: Sequence[str], sign: str, of: Sequence[int] = ()) -> str:
        """From the fewest losses to the most, of some formats or all; the sign stands between neighbours that differ,
        else `~`."""
        ranked = sorted(of or range(len(names)), key=lambda i: self.losses[i])
        text = f"{names[ranked[0]]} {self.figures[ranked[0]]}"
        for a, b in pairwise(ranked):
            text += f" {sign if self.p[min(a, b), max(a, b)] < ALPHA else '~'} {names[b]} {self.figures[b]}"
        return text

    def against(self, one: int) -> int:
        """1 if a format loses less than the first one, -1 if more, 0 if they are not told apart."""
        return (
            (self.losses[one] < self.losses[0]) - (self.losses[one] > self.losses[0]) if self.p[0, one] < ALPHA else 0
        )


@dataclass(frozen=True)
class Part:
    """One of the questions."""

    unit: str
    """What the faults are equal per."""
    per: str
    """What the rates are per."""
    sign: str
    what: str
    """What the figures count."""
    lead: str
    test: str
    doses: Sequence[Dose]
    table: Sequence[str]
    more: str = ""
    """What else is said of the figures."""

    def findings(self, names: Sequence[str]) -> Findings:
        """The sentence and its table."""
        pairs = len(self.doses) * len(names) * (len(names) - 1) // 2
        apart = sum(dose.apart for dose in self.doses)
        text = f"Equal faults per {self.lead}: {apart} of {pairs} pairs of formats differ ({self.test}, Holm)"
        few = len(self.doses) <= SHOWN
        said = [f"at {d.name}{self.per} {d.ranking(names, self.sign)}" for d in self.doses if few or d.apart]
        if said:
            text += f"; {self.sign} differs from the next, ~ does not: {'; '.join(said)}"
        return Findings(f"Formats per {self.unit}", (f"{text}.{self.more}",), tuple(self.table))

    def answer(self, names: Sequence[str], of: Sequence[int]) -> str:
        """In which of some formats faults are masked and in which amplified; at which doses, unless at all of them."""
        ways: dict[str, list[str]] = {}
        for one in of:
            told = []
            for way, word in ((-1, "amplified"), (1, "masked")):
                at = [dose.name for dose in self.doses if dose.against(one) == way]
                if at:
                    told.append(word if len(at) == len(self.doses) else f"{word} at {joined(at)}")
            ways.setdefault(", ".join(told) or "not told apart", []).append(names[one])
        return f"per {self.unit} {', '.join(f'{joined(some)} {way}' for way, some in ways.items())}"

    def figure(self, names: Sequence[str], of: Sequence[int]) -> str:
        """At the dose that tells most formats apart, of several the last; the ranking of the first and some others."""
        dose = max(reversed(self.doses), key=lambda d: d.apart)
        ranking = dose.ranking(names, self.sign, (0, *of))
        return f"at {dose.name} {self.per.strip() or f'per {self.unit}'} {ranking} {self.what}"


def parts(names: Sequence[str], runs: Sequence[Scores], measured: Data) -> list[Part]:
    """All questions that the doses of the runs answer."""
    rows = list(zip(*(scores.cells for scores in runs), strict=True))
    p = _by_cell(measured["tests"])
    found = []
    for unit, word in UNITS.items():
        mine = [row for row, cells in enumerate(rows) if cells[0].plan.fault["rate"]["unit"] == unit]
        doses, table = [], _head(names)
        for row in mine:
            shares = [cell.exact_match for cell in rows[row]]
            table.append(f"| {rows[row][0].plan.name} | {' | '.join(map(share, shares))} |")
            rates = [one.rate or 0.0 for one in shares]
            doses.append(Dose(_name(row, mine, rows), [-x for x in rates], [f"{x:.1%}" for x in rates], p.get(row, {})))
        if mine:
            found.append(Part(word, "", ">", "right", word, "exact test within prompts", doses, table))
    lost = _per_gib(names, rows, measured["requests_per_gib"], _by_cell(measured["losses_per_gib"]))
    return found if lost is None else [*found, lost]


def _by_cell(tests: Sequence[Data]) -> dict[int, dict[tuple[int, int], float]]:
    """p of every two formats in each cell, adjusted over all."""
    found: dict[int, dict[tuple[int, int], float]] = {}
    for one, p in zip(tests, adjusted(tests), strict=True):
        i, j = one["formats"]
        found.setdefault(one["cell"], {})[i, j] = p
    return found


def compared(names: Sequence[str], runs: Sequence[Scores], places: Sequence[str], measured: Data) -> Iterator[Findings]:
    """The answer to each question, and what bears on all of them. A place is a device and its arithmetic."""
    for part in parts(names, runs, measured):
        yield part.findings(names)
    yield Findings("What is compared", (_floors(runs), *_places(names, runs, places)))


def _floors(runs: Sequence[Scores]) -> str:
    formats = [scores.run.storage_format for scores in runs]
    controls = [scores.floor.combined for scores in runs]
    told = ", ".join(f"{name} {one.k:,} of {one.n:,}" for name, one in zip(formats, controls, strict=True))
    worst = max((_loss(scores.floor), name) for name, scores in zip(formats, runs, strict=True))
    known = [UNSTABLE[name] for name, one in zip(formats, controls, strict=True) if name in UNSTABLE and one.k < one.n]
    note = f" ({known[0]})" if known else ""
    return (
        f"Every format is held against its own golden answers. Controls that equal them without a fault: {told}{note}. "
        f"The comparison does not subtract these floors: a loss of up to {worst[0]:.1%} ({worst[1]}, the end of the "
        "Wilson interval) may be none of the faults', so a difference as small as that may be one of floors."
    )


def _loss(floor: Floor) -> float:
    return 1.0 - (floor.combined.low or 0.0)


def _places(names: Sequence[str], runs: Sequence[Scores], places: Sequence[str]) -> tuple[str, ...]:
    """What it means that formats ran in different places; nothing where all ran in one."""
    groups: dict[str, list[str]] = {}
    for name, place in zip(names, places, strict=True):
        groups.setdefault(place, []).append(name)
    if len(groups) < 2:
        return ()
    told = "; ".join(f"{joined(some)} on {place}" for place, some in groups.items())
    formats = {scores.run.storage_format for scores in runs}
    both = "" if len(formats) < len(runs) else ", and no format ran in two of them"
    text = (
        f"Not all ran in one place: {told}. Golden and faulted answers of a format come from the same place, and the "
        "codes that flips strike are those of the format in either, so doses, falls and floors are its own. But "
        f"another arithmetic breaks near ties of logits in another way{both}: a difference between places is one of "
        f"format and place together. {PLACE_ALONE}"
    )
    return (text,)


def _head(names: Sequence[str]) -> list[str]:
    return [f"| cell | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]


def _name(row: int, mine: Sequence[int], rows: Sequence[Sequence[CellScore]]) -> str:
    rates = [rows[one][0].plan.fault["rate"]["value"] for one in mine]
    value = rows[row][0].plan.fault["rate"]["value"]
    return f"{value:g}" if rates.count(value) == 1 else rows[row][0].plan.name


def _per_gib(
    names: Sequence[str],
    rows: Sequence[Sequence[CellScore]],
    held: Sequence[float] | None,
    p: Mapping[int, Mapping[tuple[int, int], float]],
) -> Part | None:
    """Broken requests per GiB: at one rate per bit a GiB has the same faults in all formats, but not as many requests.

    Two formats lose alike if the ratio of their shares of broken requests is the inverse of that of the requests that
    they hold. That is no question of single trials within a prompt, so prompts are clusters, in the test as in the
    intervals.
    """
    mine = [row for row, cells in enumerate(rows) if cells[0].plan.fault["rate"]["unit"] == "per_bit"]
    if held is None or not mine:
        return None
    table = [*_head(names), f"| requests that a GiB holds | {' | '.join(f'{count:,.0f}' for count in held)} |"]
    doses = []
    for row in mine:
        line, lost = [], []
        for cell, count in zip(rows[row], held, strict=True):
            found = cell.exact_match
            if found.rate is None or found.low is None or found.high is None:
                return None
            ends = cell.effect.clustered or (found.low, found.high)
            mean, low, high = ((1 - x) * count for x in (found.rate, *reversed(ends)))
            line.append(f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]")
            lost.append(mean)
        table.append(f"| {rows[row][0].plan.name} | {' | '.join(line)} |")
        doses.append(Dose(_name(row, mine, rows), lost, [f"{count:,.0f}" for count in lost], p[row]))
    lead = f"GiB, broken requests of {REQUEST_TOKENS} tokens per GiB of cache, scales included"
    test, more = "t-test with prompts as clusters", " The intervals of its table have prompts as clusters as well."
    return Part("GiB", " per bit", "<", "broken requests per GiB", lead, test, doses, table, more)
