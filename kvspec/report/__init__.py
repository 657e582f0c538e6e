"""`Scores` -> words or JSON. No number is computed here."""

from kvspec.report.json_report import to_json
from kvspec.report.output import FORMATS, print_report, render
from kvspec.report.text import render_text

__all__ = ["FORMATS", "print_report", "render", "render_text", "to_json"]
