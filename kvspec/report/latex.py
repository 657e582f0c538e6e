"""The table of cells for a paper: a `tabular` that needs the package booktabs, or a `longtable` if it is long."""

from __future__ import annotations

from kvspec.report import words
from kvspec.report.safe import visible
from kvspec.score import CellScore, Scores

LONG = 40
"""Rows above which the table may break over pages."""
_HEAD = ("Experiment", "Model", "Rate", r"Accuracy (\%)", r"95\,\% interval", "$n$", "Drift", "Flips", "masked/sdc/due")
_COLUMNS = "lllrrrrrr"
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def to_latex(scores: Scores) -> str:
    """The table as LaTeX. A value that does not exist is a dash."""
    run = scores.run
    long = len(scores.cells) > LONG
    kind = "longtable" if long else "tabular"
    lines = [
        f"% kvspec: {visible(run.name)}, plan {visible(run.plan_digest[:12])}, {run.recorded} of {run.planned} trials",
        "% Packages: booktabs" + (", longtable" if long else ""),
        f"\\begin{{{kind}}}{{{_COLUMNS}}}",
        "\\toprule",
        " & ".join(_HEAD) + " \\\\",
        "\\midrule",
        *(["\\endhead"] if long else []),
        *(" & ".join(_row(cell)) + " \\\\" for cell in scores.cells),
        "\\bottomrule",
        f"\\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def _row(cell: CellScore) -> tuple[str, ...]:
    match = cell.exact_match
    drift = cell.drift_means["char_drift"]
    return (
        escape(cell.plan.name),
        escape(str(cell.plan.fault["model"])),
        _rate(cell),
        "--" if match.rate is None else f"{match.rate * 100:.1f}",
        "--" if match.low is None or match.high is None else f"{match.low * 100:.1f}--{match.high * 100:.1f}",
        f"{match.n}",
        "--" if drift is None else f"{drift:.1f}",
        f"{cell.flips.landed}" if cell.flips.trials else "--",
        "--" if not match.n else words.outcomes(cell).replace(",", ""),
    )


def _rate(cell: CellScore) -> str:
    text = words.rate(cell.plan.fault)
    value, slash, unit = text.partition("/")
    mantissa, e, power = value.partition("e")
    if not e or not power.lstrip("+-").isdigit():
        return escape(text)
    factor = "" if mantissa == "1" else f"{mantissa}\\cdot "
    return f"${factor}10^{{{int(power)}}}$" + escape(slash + unit)


def escape(text: str) -> str:
    """Any text as LaTeX that prints it: nothing in it is a command."""
    return "".join(_ESCAPES.get(char, char) for char in visible(text))
