"""Heat maps: of cells that hit one bit field, by layer and by K or V; of single flips, by their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvspec.report import words
from kvspec.report.charts import Chart, config
from kvspec.report.limits import Limits
from kvspec.report.palette import Palette
from kvspec.report.safe import brief, clip, visible
from kvspec.report.vega import Spec
from kvspec.score import CellScore, Proportion, Scores

MOST = 8
"""Heat maps of one kind."""


@dataclass(frozen=True, slots=True)
class _Square:
    bit: str
    other: str
    cell: CellScore


def heat_charts(scores: Scores, palette: Palette, limits: Limits) -> list[Chart]:
    """Every heat map that the cells of a campaign make; most campaigns have none."""
    charts: list[Chart] = []
    for kind, word in (("layer", "Layer"), ("cache", "K or V")):
        groups: dict[str, list[_Square]] = {}
        for cell in scores.cells:
            place = _place(cell.plan.fault, kind)
            if place is not None and cell.exact_match.n:
                groups.setdefault(_rest(cell, kind), []).append(_Square(place[0], place[1], cell))
        found = [squares for squares in groups.values() if _is_map(squares)]
        for number, squares in enumerate(found[:MOST]):
            if len(squares) <= limits.squares:
                charts.append(_chart(kind, word, number, squares, palette, limits))
    return charts


def _place(fault: dict[str, Any], kind: str) -> tuple[str, str] | None:
    where, bits = fault["where"], fault["bits"]
    bit = str(fault["msb_policy"] or bits) if isinstance(bits, str) else ",".join(str(b) for b in bits)
    if kind == "cache":
        return (bit, where["cache"][0]) if len(where["cache"]) == 1 else None
    layers = where["layers"]
    if not layers or len(layers) != 1:
        return None
    low, high = layers[0]
    return bit, str(low) if high == low + 1 else f"{low}-" if high is None else f"{low}-{high - 1}"


def _rest(cell: CellScore, kind: str) -> str:
    # What all squares of one map have in common, in words: it is also the title.
    fault = cell.plan.fault
    where = fault["where"]
    parts = [str(fault["model"]), str(fault["site"]), words.rate(fault)]
    if fault.get("target", "values") == "scales":
        parts.append("scales")
    if fault["model"] == "burst":
        parts.append(f"burst {fault['burst_len']}")
    if kind == "layer" and len(where["cache"]) == 1:
        parts.append(f"{where['cache'][0]} only")
    if kind == "cache" and where["layers"]:
        parts.append(f"layers {where['layers']}")
    parts += [f"{name} {where[name]}" for name in ("heads", "tokens", "steps") if where[name] not in (None, "all")]
    return visible(", ".join(parts))


def _is_map(squares: Sequence[_Square]) -> bool:
    bits, others = {s.bit for s in squares}, {s.other for s in squares}
    unique = len({(s.bit, s.other) for s in squares}) == len(squares)
    return unique and len(others) > 1 and len(squares) > 2 and len(squares) > max(1, len(bits) * len(others) // 3)


def _order(label: str) -> tuple[int, str]:
    digits = label.split(",")[0].split("-")[0]
    return (int(digits), label) if digits.isdigit() else (-1, label)


def _chart(kind: str, word: str, number: int, squares: list[_Square], palette: Palette, limits: Limits) -> Chart:
    def column(other: str) -> str:
        return f"layer {other}" if kind == "layer" else other

    bits = sorted({s.bit for s in squares}, key=_order, reverse=True)
    others = sorted({s.other for s in squares}, key=_order)
    worst = min(squares, key=lambda s: (s.cell.exact_match.rate or 0.0, s.cell.plan.index))
    common = clip(_rest(squares[0].cell, kind), limits.name)
    patches = []
    for square in squares:
        match = square.cell.exact_match
        name = brief(square.cell.plan.name, limits.name)
        tip = f"{name}: {match.rate or 0.0:.1%} of {match.n:,} equal golden [{words.interval(match)}]"
        patches.append(_Patch(square.bit, square.other, match, tip))
    return Chart(
        key=f"bit-by-{kind}" + (f"-{number + 1}" if number else ""),
        title=f"Bit by {word.lower() if kind == 'layer' else word}: {common}",
        description=f"Accuracy in percent, {len(bits)} bit fields by {len(others)} columns. "
        f"Lowest: {worst.cell.exact_match.rate or 0.0:.1%} for bit {worst.bit}, {column(worst.other)}.",
        spec=_drawn(patches, (bits, "Bit"), (others, word), "Accuracy", palette),
        **_numbers(patches, (bits, "Bit"), (others, [column(other) for other in others]), limits),
    )


def anatomy_charts(scores: Scores, palette: Palette, limits: Limits) -> list[Chart]:
    """What single flips do by their place, where a campaign has enough of them."""
    if scores.anatomy is None:
        return []
    charts = []
    for found in scores.anatomy.maps:
        rows = list(dict.fromkeys(square.row for square in found.squares))
        columns = sorted({square.column for square in found.squares}, key=_order)
        if found.name == "position":
            columns.sort(key=("prompt", "generated").index)
        patches = [
            _Patch(
                square.row,
                square.column,
                square.visible,
                f"{found.rows} {square.row}, {found.columns} {square.column}: {words.percent(square.visible)} of "
                f"{square.visible.n:,} show [{words.interval(square.visible)}]",
            )
            for square in found.squares
        ]
        if len(patches) > limits.squares:
            continue
        most = max(patches, key=lambda patch: patch.share.rate or 0.0)
        charts.append(
            Chart(
                key=f"single-{found.name}",
                title=f"Single flips: {found.rows.lower()} by {found.columns}",
                description=f"Share of the trials with one flip that show it, in percent, {len(rows)} rows by "
                f"{len(columns)} columns. Highest: {words.percent(most.share)} for {found.rows.lower()} {most.row}, "
                f"{most.column}.",
                spec=_drawn(
                    patches,
                    (rows, found.rows),
                    (columns, found.columns[0].upper() + found.columns[1:]),
                    "Shows",
                    palette,
                ),
                **_numbers(patches, (rows, found.rows), (columns, columns), limits),
            )
        )
    return charts


@dataclass(frozen=True, slots=True)
class _Patch:
    row: str
    column: str
    share: Proportion
    tip: str


def _drawn(
    patches: Sequence[_Patch],
    rows: tuple[Sequence[str], str],
    columns: tuple[Sequence[str], str],
    what: Literal["Accuracy", "Shows"],
    palette: Palette,
) -> Spec:
    """The drawing. What is bad is dark: little accuracy, or a flip that shows."""
    bad_is_low = what == "Accuracy"
    values = [
        {
            "b": patch.row,
            "o": patch.column,
            "v": patch.share.rate or 0.0,
            "p": f"{patch.share.rate or 0.0:.0%}".removesuffix("%"),
            "t": patch.tip,
        }
        for patch in patches
    ]
    place: Spec = {
        "x": {"field": "o", "type": "ordinal", "sort": columns[0], "title": columns[1], "axis": {"labelAngle": 0}},
        "y": {"field": "b", "type": "ordinal", "sort": rows[0], "title": rows[1]},
    }
    colours = list(palette.heat) if bad_is_low else list(palette.heat)[::-1]
    scale = {"type": "quantize", "domain": [0, 1], "range": colours}
    written = len(patches) <= 640
    # Beside a few rows that carry their numbers, a legend is larger than the map.
    legend = None if written and len(rows[0]) < 8 else {"title": what, "format": ".0%", "orient": "right"}
    dark = "datum.v < 0.43" if bad_is_low else "datum.v > 0.57"
    ink = {"condition": {"test": dark, "value": palette.heat_ink[0]}, "value": palette.heat_ink[1]}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "stroke": palette.grid, "strokeWidth": 1},
            "encoding": {
                "color": {"field": "v", "type": "quantitative", "scale": scale, "legend": legend},
                "tooltip": {"field": "t"},
            },
        }
    ]
    if written:
        layers.append({"mark": {"type": "text", "fontSize": 11}, "encoding": {"text": {"field": "p"}, "color": ink}})
    return {
        "config": config(palette),
        "width": {"step": 34 if len(columns[0]) > 4 else 64},
        "height": {"step": 24},
        "data": {"values": values},
        "encoding": place,
        "layer": layers,
    }


def _numbers(
    patches: Sequence[_Patch],
    rows: tuple[Sequence[str], str],
    columns: tuple[Sequence[str], Sequence[str]],
    limits: Limits,
) -> dict[str, Any]:
    """Head and rows of the table below a map."""
    shares = {(patch.row, patch.column): words.percent(patch.share) for patch in patches}
    table = tuple((row, *(shares.get((row, column), words.DASH) for column in columns[0])) for row in rows[0])
    return {"head": (rows[1], *columns[1]), "rows": table if len(patches) <= limits.rows else ()}
