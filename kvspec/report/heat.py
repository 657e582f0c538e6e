"""Heat maps of cells that hit one bit field: bit by layer, and bit by K or V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvspec.report import words
from kvspec.report.charts import Chart, config
from kvspec.report.limits import Limits
from kvspec.report.palette import Palette
from kvspec.report.safe import brief, clip, visible
from kvspec.report.vega import Spec
from kvspec.score import CellScore, Scores

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
    bits = sorted({s.bit for s in squares}, key=_order, reverse=True)
    others = sorted({s.other for s in squares}, key=_order)
    values = []
    for square in squares:
        match = square.cell.exact_match
        share = match.rate or 0.0
        name = brief(square.cell.plan.name, limits.name)
        values.append(
            {
                "b": square.bit,
                "o": square.other,
                "v": share,
                "p": f"{share:.0%}".removesuffix("%"),
                "t": f"{name}: {share:.1%} of {match.n:,} equal golden [{words.interval(match)}]",
            }
        )
    place: Spec = {
        "x": {"field": "o", "type": "ordinal", "sort": others, "title": word, "axis": {"labelAngle": 0}},
        "y": {"field": "b", "type": "ordinal", "sort": bits, "title": "Bit"},
    }
    scale = {"type": "quantize", "domain": [0, 1], "range": list(palette.heat)}
    written = len(squares) <= 640
    # Beside a few rows that carry their numbers, a legend is larger than the map.
    legend = None if written and len(bits) < 8 else {"title": "Accuracy", "format": ".0%", "orient": "right"}
    ink = {"condition": {"test": "datum.v < 0.43", "value": palette.heat_ink[0]}, "value": palette.heat_ink[1]}
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

    def column(other: str) -> str:
        return f"layer {other}" if kind == "layer" else other

    worst = min(squares, key=lambda s: (s.cell.exact_match.rate or 0.0, s.cell.plan.index))
    common = clip(_rest(squares[0].cell, kind), limits.name)
    return Chart(
        key=f"bit-by-{kind}" + (f"-{number + 1}" if number else ""),
        title=f"Bit by {word.lower() if kind == 'layer' else word}: {common}",
        description=f"Accuracy in percent, {len(bits)} bit fields by {len(others)} columns. "
        f"Lowest: {worst.cell.exact_match.rate or 0.0:.1%} for bit {worst.bit}, {column(worst.other)}.",
        spec={
            "config": config(palette),
            "width": {"step": 34 if len(others) > 4 else 64},
            "height": {"step": 24},
            "data": {"values": values},
            "encoding": place,
            "layer": layers,
        },
        head=("Bit", *map(column, others)),
        rows=tuple((bit, *(_share(squares, bit, other) for other in others)) for bit in bits)
        if len(squares) <= limits.rows
        else (),
    )


def _share(squares: Sequence[_Square], bit: str, other: str) -> str:
    for square in squares:
        if (square.bit, square.other) == (bit, other):
            return words.percent(square.cell.exact_match)
    return words.DASH
