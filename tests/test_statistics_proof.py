"""The proof of docs/statistics.md in small: every figure near the bounds that the tool holds it to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "tools" / "statistics_proof.py"


@pytest.fixture(scope="module")
def proof() -> Any:
    spec = importlib.util.spec_from_file_location("statistics_proof", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("part", "size"),
    [
        ("wilson", 4000),
        ("differences", 1500),
        ("type_one", 600),
        ("trend", 600),
        ("power", 1500),
        ("looks", 1500),
        ("clusters", 300),
        ("crossings", 100),
    ],
)
def test_figures_are_near_their_bounds(proof: Any, part: str, size: int) -> None:
    lines = getattr(proof, part)(size, np.random.default_rng(7))
    assert lines
    for line in lines:
        # Four standard errors of a share of `size` simulated cells, on top of the bounds of the full proof.
        slack = 4 * np.sqrt(0.06 / size) if part != "power" else 4 * np.sqrt(0.16 / size)
        assert line.low - slack <= line.figure <= line.high + slack, line
