"""One HTML file that opens without a network and holds everything it needs."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvspec.errors import KvspecError
from kvspec.report.limits import MAX_BYTES, TIERS, Limits
from kvspec.report.page import Extras, page_context, refusal_context, summary_context
from kvspec.report.safe import script_json
from kvspec.score import Scores
from kvspec.score.views import RunFiles, Views, read_files, view_run

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def html_report(path: Path | str, extras: Extras | None = None) -> str:
    """The page of a run. A run that holds nothing to score gets a page that says so.

    Raises:
        RecordsError: KVS502 no run, KVS505 damaged.
    """
    try:
        scores, views = view_run(path)
    except KvspecError as error:
        return refusal_page(path, error)
    return page_of(scores, views, read_files(path), extras or Extras())


def refusal_page(path: Path | str, error: KvspecError) -> str:
    """The page of a run that holds nothing to score: it says why. Any other error is raised again."""
    if {found.code for found in error.diagnostics} != {"KVS506"}:
        raise error
    sentences = [text for found in error.diagnostics for text in (found.message, found.hint) if text]
    return render_page(refusal_context(read_files(path), str(path), sentences, TIERS[0]))


def page_of(scores: Scores, views: Views, files: RunFiles, extras: Extras) -> str:
    """The page of a scored run: the first tier of limits that keeps it below `MAX_BYTES`."""

    def page(limits: Limits) -> str:
        return render_page(page_context(scores, views, files, extras, limits))

    html = ""
    for limits in TIERS:
        html = page(limits)
        if len(html.encode()) <= MAX_BYTES:
            break
    return html


def render_page(context: dict[str, Any]) -> str:
    """Fill the templates. Everything from a run is escaped; scripts run only if their hash is in the page's policy."""
    from markupsafe import Markup

    runtime = ""
    if context["charts"]:
        from kvspec.report.vega import runtime as vega_runtime

        runtime = vega_runtime()
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    # Markup for what kvspec itself brought, and for JSON that cannot leave its element; never for data.
    page: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            context,
            css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            runtime=Markup(runtime),  # noqa: S704
            chart_json=Markup(script_json(context["charts"])),  # noqa: S704
            policy=" ".join(_hash(text) for text in (runtime, script) if text),
        )
    )
    return page


def render_summary(scores: Scores, rows: int = 60) -> str:
    """Verdict and table as a fragment, for notebooks."""
    fragment: str = _environment().get_template("notebook.html.j2").render(summary_context(scores, Limits(rows=rows)))
    return fragment


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
