"""The fabricated run of benches/report_scale.py in small, so that it keeps step with the records."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kvspec.score import score_run

PATH = Path(__file__).parents[1] / "benches" / "report_scale.py"


def test_fabricated_records_are_a_run(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("report_scale", PATH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    plan = bench.plan_of(bench.CELLS * bench.PROMPTS)
    assert bench.fabricate(tmp_path / "run", plan) == len(plan)
    scores = score_run(tmp_path / "run")
    assert scores.sound
    assert scores.run.recorded == scores.run.planned == len(plan)
    (half,) = [found.fit for found in scores.dose_responses if found.dose == "rate"]
    assert half.ec50 is not None
    assert 1e-7 < half.ec50 < 1e-5
