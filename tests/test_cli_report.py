"""`kvspec report` and `kvspec score` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvspec.cli import main
from tests.run_folders import in_cell, lost_flip, make_plan, sdc, write_run

PLAN = make_plan()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", PLAN, in_cell(1, 4, sdc))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_report_to_standard_output(run: Path) -> None:
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("kvspec report: synthetic\n")
    assert result.stderr == ""
    data = json.loads(invoke("report", run, "--format", "json").stdout)
    assert data["cells"][1]["outcome"] == {"masked": 6, "sdc": 4, "due": 0}


@pytest.mark.parametrize("output", ["text", "json"])
def test_report_to_a_file(run: Path, tmp_path: Path, output: str) -> None:
    file = tmp_path / "report"
    result = invoke("report", run, "--format", output, "--out", file)
    assert (result.exit_code, result.stdout) == (0, "")
    assert file.read_text() == invoke("report", run, "--format", output).stdout


def test_lost_flips_are_a_finding(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, in_cell(0, 1, lost_flip))
    assert invoke("report", run).exit_code == 1
    assert invoke("report", run, "--out", tmp_path / "file").exit_code == 1


@pytest.mark.parametrize("output", ["json", "csv"])
def test_score_to_standard_output(run: Path, output: str) -> None:
    result = invoke("score", run, "--format", output)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == len(PLAN) + (output == "csv")
    assert sum('"sdc"' in line for line in lines) == 4


def test_score_to_parquet(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert invoke("score", run, "--format", "parquet", "--out", tmp_path / "t.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "t.parquet").num_rows == len(PLAN)
    refused = invoke("score", run, "--format", "parquet")
    assert refused.exit_code == 2
    assert "--out" in refused.stderr


@pytest.mark.parametrize("command", ["report", "score"])
def test_bad_folders_are_coded_errors(tmp_path: Path, run: Path, command: str) -> None:
    empty = write_run(tmp_path / "empty", PLAN, lambda *_: None)
    broken = write_run(tmp_path / "broken", PLAN)
    part = broken / "parts" / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:100])
    planless = write_run(tmp_path / "planless", PLAN)
    (planless / "plan.json").unlink()
    for folder, code in (
        (tmp_path / "absent", "KVS502"),
        (tmp_path, "KVS502"),
        (empty, "KVS506"),
        (broken, "KVS505"),
        (planless, "KVS505"),
    ):
        result = invoke(command, folder)
        assert result.exit_code == 2, (folder, result.output)
        assert f"error[{code}]" in result.stderr, (folder, result.output)
        assert "Traceback" not in result.output
        target = tmp_path / "out-file"
        assert invoke(command, folder, "--out", target).exit_code == 2
        assert not target.exists(), "a failed command writes nothing"
    refused = invoke(command, run, "--out", tmp_path / "no" / "such" / "folder")
    assert refused.exit_code == 2
    assert "KVS501" in refused.stderr


def test_neither_command_needs_torch_or_vllm(run: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'vllm', 'transformers', 'triton', 'tokenizers'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from kvspec.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for args in (["report", str(run)], ["score", str(run), "--format", "csv"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "BitRot" in done.stdout or "c1/p0/t0" in done.stdout


def test_no_output_takes_the_place_of_a_run(run: Path, tmp_path: Path) -> None:
    """Every command that writes a file, at every file that a run is made of."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    part = next((run / "parts").glob("*.parquet"))
    for target in (run / "run.json", run / "spec.json", run / "plan.json", part, run / "parts" / "new"):
        for args in (
            ("report", run, "--out", target),
            ("report", run, "--html", target),
            ("score", run, "--out", target),
        ):
            result = invoke(*args)
            assert result.exit_code == 2, args
            assert "KVS502" in result.stderr
    assert invoke("report", run, "--out", run / "report.txt").exit_code == 0
    (run / "report.txt").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_spec_that_was_changed_is_refused(run: Path) -> None:
    spec = json.loads((run / "spec.json").read_text())
    for changed in ({**spec, "seed": spec["seed"] + 1}, {k: v for k, v in spec.items() if k != "faults"}, {}):
        (run / "spec.json").write_text(json.dumps(changed))
        for args in (("score", run), ("report", run, "--html", run / "page.html")):
            result = invoke(*args)
            assert result.exit_code == 2, args
            assert "KVS505" in result.stderr
            assert "spec.json" in result.stderr
    (run / "spec.json").write_text(json.dumps({**spec, "description": "other words"}))
    assert invoke("score", run).exit_code == 0


def test_a_part_that_is_there_twice_is_refused(run: Path) -> None:
    parts = sorted((run / "parts").glob("*.parquet"))
    (run / "parts" / f"part-{len(parts):06d}.parquet").write_bytes(parts[1].read_bytes())
    for command in ("report", "score"):
        result = invoke(command, run)
        assert result.exit_code == 2
        assert "twice" in result.stderr


def test_without_a_command_there_is_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "kvspec check" in result.output


def test_a_reader_that_goes_away_is_no_finding(run: Path) -> None:
    """As if SIGPIPE had ended it; exit code 1 would mean findings."""
    command = [sys.executable, "-m", "kvspec", "score", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 141
        assert process.stderr.read() == b""
