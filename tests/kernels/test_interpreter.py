"""Runs `device/` in Triton's interpreter and reports each of its tests here.

TRITON_INTERPRET must be set before Triton is imported, and this process may have imported it already. So the tests run
in processes of their own (two, one per core), and one test here stands for one test function there.
By hand: TRITON_INTERPRET=1 pytest tests/kernels/device
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parent / "device"
SHARDS = (
    ("test_golden.py", "test_philox.py", "test_events.py", "test_read.py", "test_far.py", "test_memory.py"),
    ("test_write.py", "test_store.py", "test_nonfinite.py", "test_scales.py", "test_requests.py", "test_zero.py"),
)
SECONDS = 500


def functions() -> list[tuple[str, str]]:
    """(file, name) of each test function."""
    return [
        (path.name, node.name)
        for path in sorted(FOLDER.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[tuple[str, str | None]]]:
    """(file, function) -> [(test with parameters, text of its failure or None)]."""
    folder = tmp_path_factory.mktemp("interpreted")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    started = []
    for i, files in enumerate(SHARDS):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={folder / f'{i}.xml'}"]
        log = (folder / f"{i}.log").open("w")
        started.append(
            subprocess.Popen([*command, *(str(FOLDER / f) for f in files)], env=environment, stdout=log, stderr=log)
        )
    try:
        for process in started:
            process.wait(SECONDS)
    finally:
        for process in started:
            process.kill()
    seen: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for i in range(len(SHARDS)):
        report = folder / f"{i}.xml"
        assert report.exists(), (folder / f"{i}.log").read_text()
        for case in ElementTree.parse(report).iter("testcase"):
            bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
            text = "\n".join(f"{child.get('message')}\n{child.text}" for child in bad) if bad else None
            key = (case.get("classname", "").rpartition(".")[2] + ".py", case.get("name", "").partition("[")[0])
            seen.setdefault(key, []).append((case.get("name", ""), text))
    return seen


def test_all_files_are_run():
    assert sorted(name for files in SHARDS for name in files) == sorted({name for name, _ in functions()})


@pytest.mark.parametrize(("file", "function"), functions(), ids=lambda part: part.removesuffix(".py"))
def test_interpreted(file, function, outcomes):
    cases = outcomes.get((file, function), [])
    assert cases, f"{file}::{function} did not run"
    failures = [f"{name}\n{text}" for name, text in cases if text is not None]
    assert not failures, f"{len(failures)} of {len(cases)} failed\n\n" + "\n\n".join(failures)
