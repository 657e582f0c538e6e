"""The GPU's injector on vLLM's V2 model runner, without a GPU; `interpreted.py` runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "interpreted.py"
FAULTS = [
    {"name": "W", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 0.001}},
    {"name": "R", "model": "random", "site": "KV_READ", "rate": {"per_bit": 0.0005}},
    {
        "name": "B", "model": "burst", "burst_len": 3, "site": "BOTH", "rate": {"per_element": 0.01},
        "where": {"layers": [1, 2], "steps": "decode"},
    },
]  # fmt: skip
SPEC = {
    "prompts": {"inline": ["Hello there", "abc"]},
    "generation": {"max_tokens": 3},
    "faults": FAULTS,
    "trials": 1,
    "controls": {"golden_repeats": 1, "null_trials": 1},
    "seed": 3,
    "engine": {"max_num_seqs": 4},
}


@pytest.fixture(scope="module")
def found(llama, tmp_path_factory):
    pytest.importorskip("kvspec_kernels")
    folder = tmp_path_factory.mktemp("interpreted")
    (folder / "specs.json").write_text(json.dumps({"small": SPEC}))
    command = [sys.executable, str(PROGRAM), str(llama), str(folder / "specs.json"), str(folder / "out.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())["small"]


def test_the_runner_and_the_layout_are_those_of_a_gpu(found):
    engine = found["environment"]["engine"]
    assert engine["runner"] == "vllm.v1.worker.cpu.model_runner.CPUModelRunner"
    assert engine["layout"].endswith("V +64")


def test_the_canary_saw_writes_and_reads(found):
    canary = found["environment"]["canary"]
    assert canary["checked_reads"] == 2 * canary["checked"] > 0
    assert canary["landed"] == canary["planned"] > 0


def test_flips_land_as_planned_and_reads_are_undone(found):
    records = found["records"]
    assert len(records) == 12
    for row in records.values():
        assert row["error"] is None
        assert row["flips_landed"] == row["flips_planned"]
        assert row["flips_exposed"] == row["flips_restored"]
    flips = {
        cell: sum(r["flips_landed"] for t, r in records.items() if t.startswith(cell)) for cell in ("c0", "c1", "c2")
    }
    assert min(flips.values()) > 0
    assert sum(r["flips_exposed"] for t, r in records.items() if t.startswith("c0")) == 0
    assert sum(r["flips_exposed"] for t, r in records.items() if t.startswith("c1")) == flips["c1"]


def test_controls_equal_the_golden_runs_beside_faulty_ones(found):
    records = found["records"]
    for p in range(2):
        golden = records[f"golden/p{p}"]["token_ids"]
        assert records[f"golden_repeat/p{p}/t0"]["token_ids"] == golden
        assert records[f"null/p{p}/t0"]["token_ids"] == golden
        assert records[f"c0/p{p}/t0"]["token_ids"] != golden
