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
    {"name": "S0", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 0.002}, "op": "set0"},
    {"name": "S1", "model": "burst", "burst_len": 2, "site": "KV_WRITE", "rate": {"per_element": 0.02}, "op": "set1"},
    {"name": "SR", "model": "burst", "burst_len": 2, "site": "KV_READ", "rate": {"per_element": 0.01}, "op": "set1"},
    {"name": "SB", "model": "random", "site": "BOTH", "rate": {"per_bit": 0.001}, "op": "set0"},
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
def everything(llama, tmp_path_factory):
    pytest.importorskip("kvspec_kernels")
    folder = tmp_path_factory.mktemp("interpreted")
    (folder / "specs.json").write_text(json.dumps({"small": SPEC}))
    command = [sys.executable, str(PROGRAM), str(llama), str(folder / "specs.json"), str(folder / "out.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def found(everything):
    return everything["small"]


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
    assert len(records) == 20
    for row in records.values():
        assert row["error"] is None
        assert row["flips_landed"] == row["flips_planned"]
        assert row["flips_exposed"] == row["flips_restored"]
    flips = {
        cell: sum(r["flips_landed"] for t, r in records.items() if t.startswith(cell))
        for cell in ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
    }
    assert min(flips.values()) > 0
    assert sum(r["flips_exposed"] for t, r in records.items() if t.startswith("c0")) == 0
    for cell in ("c1", "c5"):
        rows = [r for t, r in records.items() if t.startswith(cell)]
        assert sum(r["flips_exposed"] for r in rows) == sum(r["flips_changed"] for r in rows) <= flips[cell]


def test_controls_equal_the_golden_runs_beside_faulty_ones(found):
    records = found["records"]
    for p in range(2):
        golden = records[f"golden/p{p}"]["token_ids"]
        assert records[f"golden_repeat/p{p}/t0"]["token_ids"] == golden
        assert records[f"null/p{p}/t0"]["token_ids"] == golden
        assert records[f"c0/p{p}/t0"]["token_ids"] != golden


def test_stuck_ats_land_and_change_about_half_of_their_bits(found):
    for cell in ("c3", "c4", "c5", "c6"):
        rows = [row for trial, row in found["records"].items() if trial.startswith(cell)]
        landed, changed = (sum(row[name] for row in rows) for name in ("flips_landed", "flips_changed"))
        assert 0.2 * landed < changed < 0.8 * landed
    assert all(r["flips_changed"] == r["flips_landed"] for t, r in found["records"].items() if t[:2] in ("c0", "c1"))


def test_listed_faults_are_read_back_as_listed_and_nothing_else(everything):
    answers = everything["listed"]
    assert len(answers) == 5
    for answer in answers:
        assert answer["planned"] == answer["landed"] == answer["read_back"]
        assert answer["mismatches"] == 0
        assert answer["exposed"] == answer["restored"]
        assert answer["flips_found"] == answer["flips_listed"]
    assert all(answer["planned"] > 40 and answer["of_reads"] > 20 for answer in answers[1:])
    assert all(answer["exposed"] > 10 for answer in answers[1:])
    assert answers[0]["planned"] == 0
    assert answers[0]["logits"] != answers[1]["logits"]
    assert len(answers[0]["logits"]) == 3
