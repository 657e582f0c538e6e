"""Vega-Lite without a network: compile, draw to SVG and PNG, and the runtime that a page carries. Needs vl-convert."""

from __future__ import annotations

from functools import cache
from typing import Any

Spec = dict[str, Any]

RUNTIME = "window.kvspecEmbed = vegaEmbed;"
"""What the page calls. Charts are compiled here and their expressions are interpreted there, so the page's security
policy need not allow code made from strings. (vl-convert 1.9 hands out Vega itself only inside Vega-Embed.)"""


def compile_chart(spec: Spec) -> Spec:
    """Vega-Lite -> Vega. Raises `ValueError` if it is no Vega-Lite."""
    import vl_convert

    compiled: Spec = vl_convert.vegalite_to_vega(spec)
    return compiled


def draw_svg(spec: Spec) -> str:
    """A chart as an SVG document."""
    import vl_convert

    drawing: str = vl_convert.vegalite_to_svg(spec)
    return drawing


def draw_png(spec: Spec, scale: float = 2.0) -> bytes:
    """A chart as PNG, `scale` pixels per unit."""
    import vl_convert

    image: bytes = vl_convert.vegalite_to_png(spec, scale=scale)
    return image


@cache
def runtime() -> str:
    """JavaScript that draws compiled charts, without any address in it that a page would load."""
    import vl_convert

    # In a function of its own: the names of the bundle are not names of the page.
    script = f"(() => {{\n{vl_convert.javascript_bundle(RUNTIME)}\n}})();"
    if "</script" in script.lower() or "<!--" in script:
        raise RuntimeError("the Vega runtime cannot stand in a <script> element")
    return script
