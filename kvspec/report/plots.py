"""Every chart of the page as SVG and PNG, in the colours of paper."""

from __future__ import annotations

import html
from collections.abc import Iterator

from kvspec.report.charts import Chart, as_file, dose_charts, outcome_chart, survival_chart
from kvspec.report.heat import anatomy_charts, heat_charts
from kvspec.report.limits import Limits
from kvspec.report.palette import PAPER
from kvspec.report.series import DOSES, build_series
from kvspec.report.vega import draw_png, draw_svg
from kvspec.score import Scores
from kvspec.score.views import Views


def plot_charts(scores: Scores, views: Views) -> list[Chart]:
    """All charts that a run gives; none if nothing was scored."""
    limits = Limits()
    series = build_series(scores, limits.name)
    charts = [chart for dose in DOSES for chart in dose_charts(series, dose, scores, PAPER, limits)]
    charts += heat_charts(scores, PAPER, limits) + anatomy_charts(scores, PAPER, limits)
    more = survival_chart(scores, views, PAPER, limits), outcome_chart(scores, PAPER, limits)
    return charts + [chart for chart in more if chart is not None]


def plot_files(scores: Scores, views: Views) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file: each chart as `.svg` and `.png`."""
    for chart in plot_charts(scores, views):
        spec = as_file(chart)
        yield f"{chart.key}.svg", _with_words(draw_svg(spec), chart).encode()
        yield f"{chart.key}.png", draw_png(spec)


def _with_words(svg: str, chart: Chart) -> str:
    """Title and description inside the drawing, for readers that do not see it."""
    words = f"<title>{html.escape(chart.title)}</title><desc>{html.escape(chart.description)}</desc>"
    head, close, rest = svg.partition(">")
    return f'{head} role="img"{close}{words}{rest}'
