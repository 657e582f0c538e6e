"""`kvspec run` as people type it: a process, the bundled model, real vLLM."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "kvspec"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


def kvspec(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shortened quickstart on SmolLM2, run once."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    done = kvspec(
        "run", "specs/quickstart.yaml", "--out", str(out),
        "--set", "trials=2", "--set", "generation.max_tokens=12", "--html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "BitRot[1e-08]" in done.stdout
    assert "Verdict" in done.stdout
    assert "Traceback" not in done.stderr
    assert f"wrote {out / 'report.html'}" in done.stderr
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    return out


def test_the_report_has_the_promised_shape(quickstart: Path) -> None:
    done = kvspec("report", str(quickstart), "--format", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    floor = report["floor"]
    assert floor["golden_repeats"] == floor["identical"] == 20
    assert floor["null_trials"] == floor["null_identical"] == 20
    assert len(report["cells"]) == 8
    for cell in report["cells"]:
        assert {"name", "site", "model", "rate", "char_drift_mean", "token_drift_mean"} <= set(cell)
        assert cell["trials"] == 10
        assert cell["exact_match"]["n"] == 10
        assert cell["exact_match"]["low"] <= cell["exact_match"]["k"] / 10 <= cell["exact_match"]["high"]
        assert cell["flips"]["planned"] == cell["flips"]["landed"]
        assert sum(cell["outcome"].values()) == sum(cell["status"].values()) == 10


def test_accuracy_falls_with_the_rate(quickstart: Path) -> None:
    cells = json.loads(kvspec("report", str(quickstart), "--format", "json").stdout)["cells"]
    curve = [c["exact_match"] for c in cells if c["name"].startswith("BitRot")]
    assert len(curve) >= 5
    assert curve[0]["k"] >= 8
    assert curve[-1]["k"] == 0  # the guide's table has 100 % at such rates: that cannot be
    for before, after in itertools.pairwise(curve):
        assert after["low"] <= before["high"]


def test_running_again_does_nothing_and_reports_the_same(quickstart: Path) -> None:
    before = sorted(p.name for p in (quickstart / "parts").iterdir())
    done = kvspec(
        "run", "specs/quickstart.yaml", "--out", str(quickstart),
        "--set", "trials=2", "--set", "generation.max_tokens=12", "--html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (quickstart / "parts").iterdir()) == before


def test_everything_flipped_is_garbage(tmp_path: Path) -> None:
    done = kvspec("run", "specs/smoke.yaml", "--out", str(tmp_path / "run"), "--format", "json", "--quiet")
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["exact_match"]["k"] == 0
    # rate 1: every bit of every token that was written, 30 layers x 2 x 3 heads x 64 elements x 16 bits
    assert cell["flips"]["landed"] % (30 * 2 * 3 * 64 * 16) == 0
    assert cell["flips"]["landed"] > 0


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = [
        "run", "specs/quickstart.yaml", "--out", str(out),
        "--set", "trials=1", "--set", "generation.max_tokens=12", "--set", "engine.max_num_seqs=2",
        "--set", "controls.null_trials=1", "--set", "controls.golden_repeats=1",
    ]  # fmt: skip
    # A shell starts its background jobs with SIGINT ignored, and a child would inherit that from these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*COMMAND, *args], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    deadline = time.monotonic() + 300
    while not list(out.glob("parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 130, rest
    assert "Traceback" not in rest

    from kvspec.records import RunStore

    stopped = RunStore.open(out)
    done = stopped.done()
    assert stopped.status == "interrupted"
    assert 0 < len(done) < stopped.manifest["trials"]
    again = kvspec(*args)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} already recorded" in again.stderr
    assert RunStore.open(out).status == "complete"


def problems(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in done.stderr
    (found,) = json.loads(done.stdout)["diagnostics"]
    return dict(found)


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    done = kvspec("run", "specs/gpt2_bitrot.yaml", "--out", str(tmp_path / "run"), "--format", "json")
    assert done.returncode == 3
    found = problems(done)
    assert found["code"] == "KVS902"
    assert "--set model.id=bundled:smollm2" in found["hint"]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    done = kvspec("run", "specs/smoke.yaml", "--out", str(tmp_path), "--format", "json")
    assert done.returncode == 2
    assert problems(done)["code"] == "KVS502"
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
