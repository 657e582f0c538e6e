"""`Scores` -> words, JSON, LaTeX, one HTML page, plots. No number is computed here.

What needs jinja2 or vl-convert (`report.html`, `report.plots`) is imported only where it is asked for.
"""

from kvspec.report.json_report import to_json
from kvspec.report.output import FORMATS, print_report, render, render_bytes
from kvspec.report.result import Result
from kvspec.report.text import render_text

__all__ = ["FORMATS", "Result", "print_report", "render", "render_bytes", "render_text", "to_json"]
