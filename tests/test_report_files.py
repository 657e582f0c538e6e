"""Reports as files and frames: plots, LaTeX, notebooks, and the options of `kvspec report`."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pyarrow.csv import read_csv
from pyarrow.parquet import read_table

from kvspec.cli import main
from kvspec.cli.report import page_extras
from kvspec.cli.run import leave_page
from kvspec.plan import compile_plan
from kvspec.report import Result as RunResult
from kvspec.report import render
from kvspec.report.charts import _log_axis, legend_columns, spread
from kvspec.report.latex import escape
from kvspec.report.plots import plot_charts
from kvspec.score import score_run
from kvspec.score.views import view_run
from tests.run_folders import in_cell, lost_flip, make_plan, sdc, write_run

PLAN = make_plan(prompts=2, per_prompt=5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", PLAN, in_cell(1, 4, sdc), expected={0: 0.01, 1: 2.0, 2: 3.0, 3: 4.5})


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_html_and_plots_from_the_command_line(run: Path, tmp_path: Path) -> None:
    page, plots = tmp_path / "page.html", tmp_path / "new" / "plots"
    result = invoke("report", run, "--html", page, "--plots", plots)
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert f"wrote {page} (" in result.stderr
    assert page.read_text().startswith("<!doctype html>")
    names = sorted(file.name for file in plots.iterdir())
    assert names == sorted(
        f"{chart}.{kind}"
        for chart in (
            "dose-response-rate-per_bit",
            "dose-response-rate-per_element",
            "dose-response-expected",
            "dose-response-landed",
            "survival",
            "outcomes",
        )
        for kind in ("png", "svg")
    )
    for name in names:
        content = (plots / name).read_bytes()
        if name.endswith("png"):
            assert content.startswith(b"\x89PNG")
        else:
            root = ET.fromstring(content)
            space = "{http://www.w3.org/2000/svg}"
            assert root.find(f"{space}title") is not None
            assert root.find(f"{space}desc") is not None
            assert b"var(--" not in content, "a file has colours of its own"
    assert invoke("report", run, "--html", page, "--format", "text").stdout.startswith("kvspec report: synthetic")


def test_the_one_line_for_a_run(run: Path) -> None:
    leave_page(run)
    assert (run / "report.html").stat().st_size
    assert score_run(run).run.recorded == len(PLAN), "the page in the folder does not disturb the run"
    assert page_extras(run).geometry is not None


def test_a_page_that_cannot_be_made_does_not_spoil_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_page(run)
    assert f"kvspec: wrote {run / 'report.html'} (" in capsys.readouterr().err
    monkeypatch.setattr("kvspec.report.html.page_of", lambda *_: 1 / 0)
    leave_page(run)
    assert "no page was written (division by zero); later: kvspec report" in capsys.readouterr().err


def test_findings_and_refusals(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    lost = write_run(tmp_path / "lost", PLAN, in_cell(0, 1, lost_flip))
    assert invoke("report", lost, "--html", page).exit_code == 1
    empty = write_run(tmp_path / "empty", PLAN, lambda *_: None)
    page.unlink()
    result = invoke("report", empty, "--html", page)
    assert result.exit_code == 2
    assert "KVS506" in result.stderr
    assert "Nothing to score" in page.read_text()
    half = write_run(tmp_path / "half", PLAN)
    part = sorted((half / "parts").iterdir())[1]
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    assert part.name in invoke("report", half, "--html", page).stderr
    for wrong in (tmp_path / "absent", tmp_path, half):
        page.unlink(missing_ok=True)
        assert invoke("report", wrong, "--html", page).exit_code == 2
        assert not page.exists()
    plots = invoke("report", empty, "--plots", tmp_path / "plots")
    assert plots.exit_code == 2
    assert not (tmp_path / "plots").exists()
    assert "KVS501" in invoke("report", lost, "--html", tmp_path / "no" / "page.html").stderr
    (tmp_path / "file").touch()
    assert "KVS501" in invoke("report", lost, "--plots", tmp_path / "file" / "plots").stderr


def test_text_needs_neither_templates_nor_charts(run: Path) -> None:
    program = (
        "import sys\n"
        "from kvspec.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'jinja2', 'vl_convert', 'altair', 'torch', 'vllm'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for output in ("text", "json", "latex"):
        command = [sys.executable, "-c", program, "report", str(run), "--format", output]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert done.stderr.strip() == "[]"


def test_no_two_charts_share_a_file(run: Path) -> None:
    keys = [chart.key for chart in plot_charts(*view_run(run))]
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"[a-z0-9_-]+", key) for key in keys)


def test_charts_are_vega_lite(run: Path) -> None:
    altair = pytest.importorskip("altair")
    for chart in plot_charts(*view_run(run)):
        altair.Chart.from_dict(chart.spec)  # raises if the schema refuses it


@pytest.mark.parametrize("values", [[1e-9], [1.0, 1.0], [3e-7, 2e-1], [0.5, 0.7], [1e-320, 1e10], [5e-324, 1.7e308]])
def test_a_logarithmic_axis_has_two_ticks_and_holds_its_values(values: list[float]) -> None:
    ticks, ends = _log_axis(values)
    assert all(math.isfinite(x) and x > 0 for x in (*ticks, *ends))
    assert ends[0] < ends[1]
    assert len(ticks) >= 1
    if min(values) >= 1e-280:
        assert ends[0] < min(values) <= max(values) <= ends[1] * (1 + 1e-12)


def test_spreading_and_legends() -> None:
    assert spread(range(10), 3) == [0, 4, 9]
    assert spread([1], 3) == [1]
    assert legend_columns(["a", "a" * 30])["expr"].endswith(" / 250)))")


@pytest.mark.parametrize("output", ["csv", "parquet"])
def test_cells_as_a_table_for_other_tools(run: Path, tmp_path: Path, output: str) -> None:
    file = tmp_path / "cells"
    assert invoke("report", run, "--format", output, "--out", file).exit_code == 0
    found = read_csv(file) if output == "csv" else read_table(file)
    assert found.column_names == (table := RunResult(run).to_arrow()).column_names
    assert found.column("accuracy").to_pylist() == table.column("accuracy").to_pylist() == [1.0, 0.6, 1.0, 1.0]
    if output == "csv":
        assert invoke("report", run, "--format", "csv").stdout == file.read_text()
    else:
        assert "--out" in invoke("report", run, "--format", "parquet").stderr


LATEX = r"""\begin{tabular}{lllrrrrrr}
\toprule
Experiment & Model & Rate & Accuracy (\%) & 95\,\% interval & $n$ & Drift & Flips & masked/sdc/due \\
\midrule
BitRot[1e-07] & random & $10^{-7}$/bit & 100.0 & 72.2--100.0 & 10 & 0.0 & 10 & 10/0/0 \\
BitRot[1e-05] & random & $10^{-5}$/bit & 60.0 & 31.3--83.2 & 10 & 26.0 & 20 & 6/4/0 \\
BitRot[0.001] & random & 0.001/bit & 100.0 & 72.2--100.0 & 10 & 0.0 & 30 & 10/0/0 \\
Burst & burst & $10^{-5}$/element & 100.0 & 72.2--100.0 & 10 & 0.0 & 40 & 10/0/0 \\
\bottomrule
\end{tabular}
"""


def test_latex_in_full(run: Path, tmp_path: Path) -> None:
    text = render(score_run(run), "latex")
    assert text.split("\n", 2)[2] == LATEX
    assert invoke("report", run, "--format", "latex", "--out", tmp_path / "t.tex").exit_code == 0
    assert (tmp_path / "t.tex").read_text() == text


def test_latex_of_hostile_names(tmp_path: Path) -> None:
    name = "a_b & \\input{/etc/passwd} $x^2$ 100% #1 ~ \n"
    faults = tuple(replace(fault, name=name) for fault in PLAN.spec.faults)
    text = render(score_run(write_run(tmp_path / "run", compile_plan(replace(PLAN.spec, faults=faults)))), "latex")
    assert "\\input" not in text
    assert r"a\_b \& \textbackslash{}input\{/etc/passwd\} \$x\textasciicircum{}2\$ 100\% \#1" in text
    assert escape("\u202e") == r"\textbackslash{}u202e"


def test_a_result_shows_itself(run: Path) -> None:
    result = RunResult(run)
    assert repr(result) == f"Result({str(run)!r})"
    shown = result._repr_html_()
    assert "31.3-83.2%" in shown
    assert "<script" not in shown
    assert str(result).startswith("kvspec report: synthetic")
    assert result.html().startswith("<!doctype html>")
    assert result.to_json()["sound"] is True


def test_frames(run: Path) -> None:
    result = RunResult(run)
    cells = result.to_arrow()
    assert cells.column("accuracy").to_pylist() == [1.0, 0.6, 1.0, 1.0]
    assert cells.column("flips_landed").to_pylist() == [10, 20, 30, 40]
    assert result.to_arrow(trials=True).num_rows == len(PLAN)


def test_pandas(run: Path) -> None:
    pytest.importorskip("pandas")
    frame = RunResult(run).to_pandas()
    assert list(frame["sdc"]) == [0, 4, 0, 0]
    assert len(RunResult(run).to_pandas(trials=True)) == len(PLAN)


def test_polars(run: Path) -> None:
    pytest.importorskip("polars")
    assert RunResult(run).to_polars()["sdc"].to_list() == [0, 4, 0, 0]
