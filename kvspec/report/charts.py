"""The charts as Vega-Lite, each with its words and its table. Plain data in, plain data out; nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvspec.report import words
from kvspec.report.limits import Limits
from kvspec.report.palette import DASHES, SHAPES, Palette
from kvspec.report.safe import brief, clip
from kvspec.report.series import DOSES, Dose, Series, drawable
from kvspec.report.vega import Spec
from kvspec.score import CellScore, Scores
from kvspec.score.views import Views

T = TypeVar("T")

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
RATE = "format(datum.value, '~e')"
NUMBER = "datum.value >= 0.001 && datum.value < 100000 ? format(datum.value, ',~g') : format(datum.value, '~e')"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, what it shows in words, and its numbers as a table."""

    key: str
    """Name of its files."""
    title: str
    description: str
    """For those who do not see it."""
    spec: Spec
    note: str = ""
    """What is left out, and why."""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = field(default=())


def config(palette: Palette) -> Spec:
    """Looks shared by all charts."""
    text = {"labelColor": palette.muted, "titleColor": palette.ink, "labelFont": FONT, "titleFont": FONT}
    return {
        "background": palette.page,
        "font": FONT,
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            **text,
            "gridColor": palette.grid,
            "domainColor": palette.muted,
            "tickColor": palette.muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "labelPadding": 4,
        },
        "legend": {
            **text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "symbolSize": 110,
            "labelLimit": 280,
            "symbolOpacity": 1,
        },
        "header": {**text, "labelFontSize": 12, "labelFontWeight": 600, "labelColor": palette.ink, "title": None},
    }


def dose_charts(
    series: tuple[Series, ...], dose: Dose, scores: Scores, palette: Palette, limits: Limits
) -> list[Chart]:
    """Accuracy over one dose: one chart, or one per unit where declared rates have several units."""
    shown, left_out = drawable(series, dose)
    units = sorted({one.unit for one in shown}) if dose == "rate" else [""]
    charts = []
    for unit in units:
        mine = tuple(one for one in shown if not unit or one.unit == unit)
        alone = 0
        if len(mine) > limits.curves:
            # Many series of one cell each are no curves: heat maps and the table show them.
            curves = tuple(one for one in mine if len(one.points) > 1)
            alone, mine = len(mine) - len(curves), curves
        if mine:
            charts.append(_dose_chart(mine, dose, unit, (left_out, alone), scores, palette, limits))
    return charts


def _dose_chart(
    series: tuple[Series, ...],
    dose: Dose,
    unit: str,
    left_out: tuple[int, int],
    scores: Scores,
    palette: Palette,
    limits: Limits,
) -> Chart:
    title = DOSES[dose] + (f" ({unit.replace('_', ' ')})" if unit else "")
    many = len(series) > limits.curves
    drawn = series[: limits.panels] if many else series
    points = [
        {
            "s": one.label,
            "x": p.doses[dose],
            "y": p.share,
            "l": p.low,
            "h": p.high,
            "t": f"{p.name}: {p.share:.1%} of {p.n:,} equal golden [{p.low:.1%} to {p.high:.1%}]; "
            f"{title.lower()} {p.doses[dose]:.3g}",
        }
        for one in drawn
        for p in one.points
    ]
    curves = [
        {"s": one.label, "x": x, "y": y, "l": low, "h": high}
        for one in drawn
        if dose in one.fits
        for x, y, low, high in one.fits[dose].curve
    ]
    halves = [
        {"s": one.label, "x": fit.ec50, "l": fit.low, "h": fit.high, "t": f"{one.label}: EC50 {fit.ec50:.3g}"}
        for one in drawn
        if (fit := one.fits.get(dose)) is not None and fit.ec50 is not None
    ]
    ticks, domain = _log_axis([p["x"] for p in points])  # type: ignore[misc]
    labels = [one.label for one in drawn]
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "scale": {"type": "log", "domain": domain, "nice": False, "clamp": True},
        "axis": {
            "values": _thin(ticks, 4 if many else 12),
            "labelExpr": RATE if unit else NUMBER,
            "title": title,
            "grid": False,
        },
    }
    y: Spec = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}}
    accuracy = {**y, "field": "y", "title": None if many else "Accuracy (tokens equal golden)"}
    legend: Spec | None = (
        None
        if many
        else {
            "title": None,
            "orient": "top",
            "columns": legend_columns(labels),
            "symbolLimit": 0,
            "symbolStrokeWidth": 0,
        }
    )
    colour: Spec = {
        "field": "s",
        "type": "nominal",
        "scale": {"domain": labels, "range": [palette.series[0]] if many else list(palette.series[: len(labels)])},
        "legend": legend,
    }
    shape = {**colour, "scale": {"domain": labels, "range": list(SHAPES[: 1 if many else len(labels)])}}
    dash = {**colour, "scale": {"domain": labels, "range": list(DASHES[: 1 if many else len(labels)])}, "legend": None}
    layers: list[Spec] = [*_floor_band(scores, palette)]
    if curves:
        band = {"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}, "color": colour}
        line = {"x": x, "y": accuracy, "color": colour, "strokeDash": dash}
        for kind, look, encoding in (("area", {"opacity": 0.16}, band), ("line", {"strokeWidth": 2}, line)):
            mark = {"type": kind, "interpolate": "monotone", **look}
            layers.append({"data": {"values": curves}, "mark": mark, "encoding": encoding})
    fitted = {one.label for one in drawn if dose in one.fits and one.fits[dose].curve}
    loose = [p for p in points if p["s"] not in fitted]
    joined = {"x": x, "y": accuracy, "color": colour, "strokeDash": dash}
    layers.append(
        {"data": {"values": loose}, "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.75}, "encoding": joined}
    )
    bars = {"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}, "color": colour}
    layers.append({"data": {"values": points}, "mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": bars})
    marks = {"x": x, "y": accuracy, "color": colour, "shape": shape, "tooltip": {"field": "t"}}
    layers.append(
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": marks,
        }
    )
    if halves:
        layers += _ec50_marks(halves, x, y, colour)
    chart: Spec = {"config": config(palette)}
    if many:
        chart |= _panels(layers, labels)
    else:
        chart |= {"width": "container", "height": 340, "layer": layers}
    return Chart(
        key=f"dose-response-{dose}" + (f"-{unit}" if unit and dose == "rate" else ""),
        title=title,
        description=_dose_words(drawn, title, dose),
        spec=chart,
        note=_notes(
            (left_out[0], "cells have a dose of 0 or none in this unit and are not on the logarithmic axis"),
            (left_out[1], "cells stand alone, without another rate, and are not drawn"),
            (len(series) - len(drawn), "series are not drawn; the table has them"),
        ),
    )


def _panels(layers: list[Spec], labels: list[str]) -> Spec:
    """Small multiples, one per series. A facet needs one source of data, so each layer's rows are marked and merged."""
    rows: list[Spec] = []
    cut: list[Spec] = []
    for number, layer in enumerate(layers):
        mine = [{**row, "k": number} for row in layer["data"]["values"]]
        if mine and "s" not in mine[0]:
            mine = [{**row, "s": label} for row in mine for label in labels]
        rows += mine
        cut.append(
            {**{k: v for k, v in layer.items() if k != "data"}, "transform": [{"filter": f"datum.k == {number}"}]}
        )
    return {
        "data": {"values": rows},
        "facet": {"field": "s", "type": "nominal", "sort": labels, "header": {"labelLimit": 210}},
        "columns": 4,
        "spacing": 22,
        "spec": {"width": 205, "height": 120, "layer": cut},
    }


def _floor_band(scores: Scores, palette: Palette) -> list[Spec]:
    floor = scores.floor.combined
    if floor.rate is None:
        return []
    row = {"l": floor.low, "h": floor.high, "t": f"Controls: {floor.k:,} of {floor.n:,} equal golden"}
    place = {"y": {"field": "l", "type": "quantitative"}, "y2": {"field": "h"}, "tooltip": {"field": "t"}}
    return [
        {
            "data": {"values": [row]},
            "mark": {"type": "rect", "color": palette.muted, "opacity": 0.13},
            "encoding": place,
        }
    ]


def _ec50_marks(halves: list[Spec], x: Spec, y: Spec, colour: Spec) -> list[Spec]:
    spans = [half for half in halves if half["l"] is not None and half["h"] is not None]
    at = {**y, "datum": 0.02}
    return [
        {
            "data": {"values": spans},
            "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.55},
            "encoding": {"x": {**x, "field": "l"}, "x2": {"field": "h"}, "y": at, "color": colour},
        },
        {
            "data": {"values": halves},
            "mark": {"type": "tick", "thickness": 3, "size": 16},
            "encoding": {"x": x, "y": at, "color": colour, "tooltip": {"field": "t"}},
        },
    ]


def _dose_words(series: Sequence[Series], title: str, dose: Dose) -> str:
    parts = []
    for one in series[:12]:
        first, last = one.points[0], one.points[-1]
        if first is last:
            parts.append(f"{one.label}: {first.share:.1%} at {first.doses[dose]:.3g}")
        else:
            parts.append(
                f"{one.label}: {first.share:.1%} at {first.doses[dose]:.3g} to "
                f"{last.share:.1%} at {last.doses[dose]:.3g}"
            )
    more = f"; and {len(series) - 12} more series" if len(series) > 12 else ""
    return clip(f"Accuracy over {title.lower()}, logarithmic. {'; '.join(parts)}{more}.", 1_200)


def outcome_chart(scores: Scores, palette: Palette, limits: Limits) -> Chart | None:
    """What the trials of every cell became."""
    measured = [cell for cell in scores.cells if cell.exact_match.n]
    if not measured:
        return None
    drawn = measured
    if len(measured) > limits.bars:
        drawn = spread(sorted(measured, key=lambda c: (-(c.exact_match.rate or 0.0), c.plan.index)), limits.bars)
    names = _labels(drawn, limits)
    values = [
        {"c": name, "o": kind, "v": count, "i": order, "t": f"{name}: {count:,} of {cell.exact_match.n:,} {kind}"}
        for cell, name in zip(drawn, names, strict=True)
        for order, kind in enumerate(("masked", "sdc", "due"))
        if (count := cell.outcome[kind])
    ]
    spec: Spec = {
        "config": config(palette),
        "width": "container",
        "height": {"step": 22},
        "data": {"values": values},
        "mark": {"type": "bar", "height": {"band": 0.72}},
        "encoding": {
            "y": {"field": "c", "type": "nominal", "sort": names, "title": None, "axis": {"labelLimit": 260}},
            "x": {
                "field": "v",
                "type": "quantitative",
                "stack": "normalize",
                "title": "Share of scored trials",
                "axis": {"format": ".0%", "tickCount": 5},
            },
            "color": {
                "field": "o",
                "type": "nominal",
                "scale": {"domain": ["masked", "sdc", "due"], "range": list(palette.outcomes)},
                "legend": {"title": None, "orient": "top"},
            },
            "order": {"field": "i", "type": "quantitative"},
            "tooltip": {"field": "t"},
        },
    }
    sums = {kind: sum(cell.outcome[kind] for cell in measured) for kind in ("masked", "sdc", "due")}
    return Chart(
        key="outcomes",
        title="Outcomes by cell",
        description=f"Share of masked, sdc and due trials in {len(drawn)} cells. Over all cells: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sums.items())
        + ".",
        spec=spec,
        note=f"{len(drawn)} of {len(measured):,} cells, evenly spread from the highest accuracy to the lowest."
        if len(drawn) < len(measured)
        else "",
    )


def survival_chart(scores: Scores, views: Views, palette: Palette, limits: Limits) -> Chart | None:
    """How long answers stay equal to golden."""
    curves = [view for view in views.cells if len(view.survival) > 1]
    falling = [view for view in curves if view.survival[-1][1] < 1.0]
    if not falling:
        return None
    falling.sort(key=lambda view: (-view.survival[-1][1], view.cell))
    picked = spread(falling, limits.curves)
    cells = {cell.plan.index: cell for cell in scores.cells}
    names = _labels([cells[view.cell] for view in picked], limits)
    values = [
        {"c": name, "x": t, "y": share} for view, name in zip(picked, names, strict=True) for t, share in view.survival
    ]
    spec: Spec = {
        "config": config(palette),
        "width": "container",
        "height": 280,
        "data": {"values": values},
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "scale": {"nice": False},
                "title": "Tokens generated",
                "axis": {"grid": False, "tickMinStep": 1},
            },
            "y": {
                "field": "y",
                "type": "quantitative",
                "scale": {"domain": [0, 1]},
                "title": "Answers still equal to golden",
                "axis": {"format": ".0%", "tickCount": 5},
            },
            "color": {
                "field": "c",
                "type": "nominal",
                "scale": {"domain": names, "range": list(palette.series[: len(names)])},
                "legend": {
                    "title": None,
                    "orient": "top",
                    "columns": legend_columns(names),
                    "symbolLimit": 0,
                    "symbolSize": 500,
                },
            },
            "strokeDash": {
                "field": "c",
                "type": "nominal",
                "scale": {"domain": names, "range": list(DASHES[: len(names)])},
            },
        },
    }
    ends = [f"{name}: {view.survival[-1][1]:.1%} at the end" for view, name in zip(picked, names, strict=True)]
    return Chart(
        key="survival",
        title="How long answers stay equal to golden",
        description=clip(f"Survival of answers until their first differing token. {'; '.join(ends)}.", 1_200),
        spec=spec,
        note=f"{len(picked)} of {len(falling):,} cells with a mismatch, evenly spread from the mildest to the worst."
        if len(picked) < len(falling)
        else "",
        head=("Cell", "Equal after 1 token", "Half differ by token", "Equal at the end"),
        rows=tuple(_survival_row(name, view.survival) for view, name in zip(picked, names, strict=True)),
    )


def _survival_row(name: str, curve: tuple[tuple[int, float], ...]) -> tuple[str, ...]:
    first = next((share for t, share in reversed(curve) if t <= 1), 1.0)
    half = next((f"{t:,}" for t, share in curve if share <= 0.5), words.DASH)
    return name, f"{first:.1%}", half, f"{curve[-1][1]:.1%}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spread, the first and the last included."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / max(1, most - 1)
    return [items[round(i * step)] for i in range(most)]


def legend_columns(labels: Sequence[str]) -> Spec:
    """Columns of a legend above a chart, by the width that the chart gets, such that no label is cut."""
    pixels = 40 + 7 * max(map(len, labels), default=1)
    # Not by `width` alone: that shrinks to make room for the legend it would decide on.
    room = "(isFinite(containerSize()[0]) ? containerSize()[0] - 60 : width)"
    return {"expr": f"max(1, min(4, floor({room} / {pixels})))"}


def _labels(cells: Sequence[CellScore], limits: Limits) -> list[str]:
    """Names that are different from each other."""
    seen: dict[str, int] = {}
    labels = []
    for cell in cells:
        name = brief(cell.plan.name, limits.name)
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} (cell {cell.plan.index})")
    return labels


def _log_axis(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Ticks and ends of a logarithmic axis, with room beside the outermost points."""
    low, high = max(min(values), 1e-280), min(max(values), 1e280)
    room = max(1.6, 10.0 ** (0.04 * (math.log10(high) - math.log10(low))))
    ends = [low / room, high * room]
    first, last = math.ceil(math.log10(ends[0]) - 1e-9), math.floor(math.log10(ends[1]) + 1e-9)
    ticks = [float(f"1e{power}") for power in range(first, last + 1)]
    return ticks if len(ticks) > 1 else sorted({low, high, *ticks}), ends


def _thin(ticks: list[float], most: int) -> list[float]:
    return ticks[:: max(1, math.ceil(len(ticks) / most))]


def _notes(*parts: tuple[int, str]) -> str:
    return " ".join(f"{count:,} {what}." for count, what in parts if count)


def as_file(chart: Chart, width: int = 720) -> dict[str, Any]:
    """The chart with a size of its own, for a file."""
    spec = dict(chart.spec)
    if spec.get("width") == "container":
        spec["width"] = width
    return spec
