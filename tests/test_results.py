"""The pages of docs/results: made from run folders alone, and without a path of the machine that made them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvspec.records import RunStore
from tests.run_folders import make_plan, sdc, write_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.json"))


def results(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/results.py", "--command", "kvspec run x.yaml", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_page_says_what_was_run_and_found(tmp_path: Path) -> None:
    plan = make_plan(per_prompt=20, name="quickstart")
    expected = {cell.index: 2.5 for cell in plan.cells}
    run = write_run(
        tmp_path / "run", plan, lambda t, r: sdc(r) if t.cell == 1 and t.trial < 15 else r, expected=expected
    )
    made = results("--out", tmp_path / "pages", run)
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "pages" / "quickstart.md").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "pages" / "quickstart.json").read_text(encoding="utf-8"))
    assert plan.digest in page
    assert "kvspec run x.yaml" in page
    assert "bf16, emulated on test cpu" in page
    assert "| BitRot[1e-05] | 1e-05/bit | 2.5 | 2 | 25.0% [14.2%, 40.2%], n = 40 |" in page
    assert "How fast does a small model lose its answers" in page  # of the spec of that name
    (found,) = figures["runs"]
    assert all(f"- {sentence}" in page for sentence in found["report"]["verdict"])
    assert found["report"]["cells"][1]["exact_match"]["k"] == 10
    index = (tmp_path / "pages" / "README.md").read_text(encoding="utf-8")
    assert found["report"]["verdict"][1] in index
    assert not any(str(tmp_path) in text for text in (page, index, json.dumps(figures)))


def test_formats_are_compared(tmp_path: Path) -> None:
    plan = make_plan(per_prompt=20)
    calm = write_run(tmp_path / "a", plan)
    hurt = write_run(tmp_path / "b", plan, lambda t, r: sdc(r) if t.cell == 1 else r)
    assert results("--out", tmp_path, calm, hurt).returncode == 0
    page = (tmp_path / "synthetic.md").read_text(encoding="utf-8")
    assert "Of 4 comparisons of two formats at one dose (Fisher, two-sided, Holm) 1 differ: BitRot[1e-05]" in page


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    made = results("--out", tmp_path, tmp_path)
    assert made.returncode == 2
    assert made.stderr.startswith("error[KVS502]")
    a, b = (write_run(tmp_path / name, make_plan(name=name)) for name in ("a", "b"))
    assert "of several specs: a, b" in results("--out", tmp_path, a, b).stderr
    assert RunStore.open(a).digest


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_committed_pages_follow_from_their_figures(file: Path) -> None:
    figures = json.loads(file.read_text(encoding="utf-8"))
    page, index = (path.read_text(encoding="utf-8") for path in (file.with_suffix(".md"), RESULTS / "README.md"))
    assert not re.search(r"/(tmp|root|work|home)/", page + file.read_text())
    for run in figures["runs"]:
        assert run["report"]["run"]["plan_digest"] in page
        for sentence in run["report"]["verdict"]:
            assert sentence in page
            assert sentence in index
