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
