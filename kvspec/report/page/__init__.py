"""What the HTML page says, as plain values for its templates. No number is computed here."""

from kvspec.report.page.build import Extras, page_context, refusal_context, summary_context

__all__ = ["Extras", "page_context", "refusal_context", "summary_context"]
