"""kvspec: declarative fault injection into the KV cache of vLLM models.

`import kvspec` imports nothing else: each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvspec._native import __version__ as __version__
    from kvspec.engine.campaign import run_campaign as run_campaign
    from kvspec.plan import compile_plan as compile_plan
    from kvspec.score import score_run as score_run
    from kvspec.score.drift import score as score
    from kvspec.spec import load_spec as load_spec

_PUBLIC = {
    "__version__": "kvspec._native",
    "load_spec": "kvspec.spec",
    "compile_plan": "kvspec.plan",
    "run_campaign": "kvspec.engine.campaign",
    "score_run": "kvspec.score",
}


def __getattr__(name: str) -> Any:
    if name == "score":  # the package, which can be called
        return importlib.import_module("kvspec.score")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "score"})
