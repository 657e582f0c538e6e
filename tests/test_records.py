"""The run folder: nothing flushed is lost, nothing foreign is touched, and a resume knows exactly what is done."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvspec.errors import KvspecError, RecordsError
from kvspec.records import RUN_FORMAT, SCHEMA, Record, RecordWriter, RunStore
from kvspec.records import parts as parts_module
from kvspec.records.schema import LATER
from tests.run_folders import FINGERPRINT, make_plan, masked, write_run

ROOT = Path(__file__).parents[1]
PLAN = make_plan()
TRIALS = list(PLAN.trials())


def codes(error: pytest.ExceptionInfo[RecordsError]) -> list[str]:
    return [d.code for d in error.value.diagnostics]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_record_and_schema_are_one_list() -> None:
    assert [f.name for f in fields(Record)] == SCHEMA.names
    nullable = {f.name for f in SCHEMA if f.nullable}
    assert nullable == {"nonfinite_at", "error", *LATER}


def test_round_trip_of_every_value(tmp_path: Path) -> None:
    odd = replace(
        masked(TRIALS[0]),
        text="\ufffd\x1b[31m\u4e2d\ud800",
        token_ids=[0, 2**32 - 1],
        flips_planned=2**63,
        flips_landed=2**63,
        nonfinite_at=0,
        error="boom",
        token_ends=[0, 2**32 - 1],
    )
    empty = replace(masked(TRIALS[1]), token_ids=[], text="")
    with RunStore.create(tmp_path / "run", PLAN, version="t") as store:
        store.append([odd, empty])
    rows = RunStore.open(tmp_path / "run").table().to_pylist()
    assert rows[1] == {f.name: getattr(empty, f.name) for f in fields(Record)}
    # Half a surrogate pair is the one thing UTF-8 cannot hold.
    assert rows[0] == {f.name: getattr(odd, f.name) for f in fields(Record)} | {"text": "\ufffd\x1b[31m\u4e2d?"}


def test_the_folder_holds_plan_spec_and_manifest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    assert hashlib.sha256((run / "plan.json").read_bytes()).hexdigest() == PLAN.digest
    assert json.loads((run / "spec.json").read_text())["name"] == "synthetic"
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["recorded"] == manifest["trials"] == len(PLAN)
    assert [s["status"] for s in manifest["sessions"]] == ["complete"]
    assert RunStore.open(run).count() == len(PLAN)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sessions=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), min_size=1, max_size=4),
    debris=st.booleans(),
)
def test_any_sequence_of_sessions_keeps_what_was_flushed(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[tuple[int, int, bool]], debris: bool
) -> None:
    """Each session takes up to `count` missing trials, with `rows` per part, and ends well or by a crash."""
    run = tmp_path_factory.mktemp("records") / "run"
    kept: list[str] = []
    for count, rows, crash in sessions:
        store = RunStore.create(run, PLAN, version="t")
        assert store.done() == set(kept)
        todo = [t for t in TRIALS if t.id not in store.done()][:count]
        writer = RecordWriter(store, rows=rows, seconds=1e9)
        for trial in todo:
            writer.add(masked(trial))
        flushed = len(todo) - len(writer)
        if crash:
            if debris:
                (run / "parts" / "part-000099.parquet.1.kvspec-tmp").write_bytes(b"half")
            store.close()  # what the kernel does for a killed process: only the lock goes
        else:
            with store:
                writer.flush()
            flushed = len(todo)
        kept += [t.id for t in todo[:flushed]]
    reader = RunStore.open(run)
    assert reader.table(["trial_id"]).column(0).to_pylist() == kept
    with RunStore.create(run, PLAN, version="t") as store:
        assert store.done() == set(kept)
        assert not list((run / "parts").glob("*kvspec-tmp"))


def write_until_killed(run: Path) -> None:
    """Body of the process that is killed: 11 records, two per part, one of them still in the buffer."""
    writer = RecordWriter(RunStore.create(run, PLAN, version="t"), rows=2)
    for trial in TRIALS[:11]:
        writer.add(masked(trial))
    print("ready", flush=True)
    signal.pause()


def test_sigkill_costs_only_the_buffer(tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = "import pathlib, sys; from tests.test_records import *; write_until_killed(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", program, run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(RecordsError) as busy:
        RunStore.create(run, PLAN, version="t")
    assert codes(busy) == ["KVS501"]
    assert "another kvspec run" in str(busy.value)
    process.kill()
    process.communicate()
    assert RunStore.open(run).status == "running"
    with RunStore.create(run, PLAN, version="t") as store:
        assert store.resumed
        assert store.done() == {t.id for t in TRIALS[:10]}


@pytest.mark.parametrize("at", ["write", "fsync", "rename"])
def test_a_failing_disk_loses_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    run = tmp_path / "run"
    store = RunStore.create(run, PLAN, version="t")
    writer = RecordWriter(store, rows=2)
    for trial in TRIALS[:3]:
        writer.add(masked(trial))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"write": (parts_module.pq, "write_table"), "fsync": (os, "fsync"), "rename": (os, "replace")}[at]
    with monkeypatch.context() as patch:
        patch.setattr(*target, refuse)
        with pytest.raises(RecordsError, match="No space left") as full:
            writer.add(masked(TRIALS[3]))
        assert codes(full) == ["KVS501"]
    assert len(list((run / "parts").iterdir())) == 1
    writer.flush()
    assert store.done() == {t.id for t in TRIALS[:4]}
    store.close()
    assert RunStore.open(run).table(["trial_id"]).column(0).to_pylist() == [t.id for t in TRIALS[:4]]


def test_the_writer_flushes_by_rows_by_time_and_on_exceptions(tmp_path: Path) -> None:
    now = [0.0]
    with RunStore.create(tmp_path / "run", PLAN, version="t") as store:
        writer = RecordWriter(store, rows=3, seconds=5, clock=lambda: now[0])
        for trial in TRIALS[:4]:
            writer.add(masked(trial))
        assert (len(store.done()), len(writer)) == (3, 1)
        now[0] = 4.9
        writer.tick()
        assert len(writer) == 1
        now[0] = 5.0
        writer.tick()
        assert (len(store.done()), len(writer)) == (4, 0)

        def interrupted() -> None:
            with writer:
                writer.add(masked(TRIALS[4]))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert len(store.done()) == 5


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("boom"), "failed"), (None, "interrupted")],
)
def test_the_manifest_says_how_it_ended(tmp_path: Path, error: BaseException | None, status: str) -> None:
    store = RunStore.create(tmp_path / "run", PLAN, version="t")

    def session() -> None:
        with store:
            store.append([masked(TRIALS[0])])
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            session()
    else:
        session()
    manifest = RunStore.open(tmp_path / "run").manifest
    assert (manifest["status"], manifest["recorded"]) == (status, 1)
    assert manifest["error"] == ("ValueError: boom" if status == "failed" else None)


def test_timings_stay_when_the_session_failed(tmp_path: Path) -> None:
    def session() -> None:
        with RunStore.create(tmp_path / "run", PLAN, version="t") as store:
            store.finish(timings={"trials": 2.5})
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        session()
    ended = RunStore.open(tmp_path / "run").manifest["sessions"][0]
    assert (ended["status"], ended["timings_s"]) == ("failed", {"trials": 2.5})


def test_a_trial_cannot_be_recorded_twice(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", PLAN, version="t") as store:
        store.append([masked(TRIALS[0])])
        with pytest.raises(ValueError, match="golden/p0"):
            store.append([masked(TRIALS[0])])
        with pytest.raises(ValueError, match="twice"):
            store.append([masked(TRIALS[1]), masked(TRIALS[1])])
        assert store.done() == {TRIALS[0].id}


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    with pytest.raises(RuntimeError, match="not open for writing"):
        RunStore.open(run).append([masked(TRIALS[0])])


# Folders that are not ours to write


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(RecordsError) as error:
        RunStore.create(tmp_path, PLAN, version="t")
    assert codes(error) == ["KVS502"]
    assert "--out" in str(error.value)
    assert snapshot(tmp_path) == before


def test_a_foreign_parts_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-000000.parquet").write_bytes(b"not ours")
    with pytest.raises(RecordsError) as error:
        RunStore.create(tmp_path, PLAN, version="t")
    assert codes(error) == ["KVS502"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, code in ((tmp_path / "file", "KVS502"), (tmp_path / "file" / "run", "KVS50")):
        with pytest.raises(RecordsError) as error:
            RunStore.create(path, PLAN, version="t")
        assert codes(error)[0].startswith(code)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RecordsError, match="Permission denied") as error:
        RunStore.create(tmp_path / "run", PLAN, version="t")
    assert codes(error) == ["KVS501"]


def test_another_plan_is_refused_with_both_digests(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    before = snapshot(run)
    other = make_plan((1e-4,))
    with pytest.raises(RecordsError) as error:
        RunStore.create(run, other, version="t")
    assert codes(error) == ["KVS503"]
    assert PLAN.digest in str(error.value)
    assert other.digest in str(error.value)
    assert "--out" in str(error.value)
    assert snapshot(run) == before


def test_an_unfinished_creation_is_taken_up(tmp_path: Path) -> None:
    RunStore.create(tmp_path, PLAN, version="t").close()
    for name in ("run.json", "spec.json", "plan.json"):
        (tmp_path / name).unlink()
    with RunStore.create(tmp_path, PLAN, version="t") as store:
        assert not store.resumed
    assert (tmp_path / "plan.json").exists()


def test_another_environment_is_named_field_by_field_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    before = snapshot(run)
    other = {**FINGERPRINT, "device": {"name": "other cpu"}, "threads": 2}
    with pytest.raises(RecordsError) as error, RunStore.create(run, PLAN, version="t") as store:
        store.attach_environment(other)
    assert codes(error) == ["KVS504", "KVS504"]
    assert "`device.name`" in str(error.value)
    assert '"test cpu"' in str(error.value)
    assert '"other cpu"' in str(error.value)
    assert "`threads` was absent" in str(error.value)
    assert snapshot(run) == before


def test_tuples_and_lists_are_the_same_environment(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", PLAN, version="t") as store:
        store.attach_environment({"shape": (1, 2)})
        store.attach_environment({"shape": [1, 2]})
        with pytest.raises(KvspecError):
            store.attach_environment({"shape": [1, 2.0]})


# Damage


def test_not_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RecordsError) as error:
            RunStore.open(path)
        assert codes(error) == ["KVS502"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format": "1"}', b'{"format": 1, "plan": 3}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    run = write_run(tmp_path / "run", PLAN)
    (run / "run.json").write_bytes(content)
    for use in (RunStore.open, lambda path: RunStore.create(path, PLAN, version="t")):
        with pytest.raises(RecordsError) as error:
            use(run)
        assert codes(error) == ["KVS505"]
        assert "run.json" in str(error.value)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"format": RUN_FORMAT + 1}))
    with pytest.raises(RecordsError, match=f"format {RUN_FORMAT + 1}") as error:
        RunStore.open(run)
    assert codes(error) == ["KVS505"]


def _truncate(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-20])


def _empty(part: Path) -> None:
    part.write_bytes(b"")


def _other_columns(part: Path) -> None:
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"kvspec.plan": PLAN.digest}), part)


def _other_plan(part: Path) -> None:
    pq.write_table(pq.read_table(part).replace_schema_metadata({"kvspec.plan": "f" * 64}), part)


def _no_plan(part: Path) -> None:
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)


def _remove(part: Path) -> None:
    part.unlink()


def _rename(part: Path) -> None:
    part.rename(part.with_name("mine.parquet"))


@pytest.mark.parametrize("damage", [_truncate, _empty, _other_columns, _other_plan, _no_plan, _remove, _rename])
def test_a_damaged_part_is_named(tmp_path: Path, damage: object) -> None:
    run = write_run(tmp_path / "run", PLAN)
    damage(run / "parts" / "part-000001.parquet")  # type: ignore[operator]
    for use in (lambda: RunStore.open(run).table(), lambda: RunStore.create(run, PLAN, version="t")):
        with pytest.raises(RecordsError) as error:
            use()
        assert codes(error) == ["KVS505"]
        assert "part-000001.parquet" in str(error.value) or "mine.parquet" in str(error.value)
    # The refused writer let go of the lock.
    with pytest.raises(RecordsError) as again:
        RunStore.create(run, PLAN, version="t")
    assert codes(again) == ["KVS505"]


def test_one_flipped_bit_in_stored_data_is_seen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN)
    part = run / "parts" / "part-000001.parquet"
    good = part.read_bytes()
    frame = b"\x28\xb5\x2f\xfd"  # each zstd frame holds the data of one page
    starts = [i for i in range(len(good)) if good.startswith(frame, i)]
    assert len(starts) >= len(SCHEMA)
    for start in starts:
        data = bytearray(good)
        data[start + len(frame) + 4] ^= 1
        part.write_bytes(bytes(data))
        with pytest.raises(RecordsError, match=r"part-000001\.parquet"):
            RunStore.open(run).table()


def test_streaming_is_bounded_and_in_order(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PLAN, rows=20)
    batches = list(RunStore.open(run).iter_batches(["trial_id", "cell"], batch_rows=8))
    assert max(b.num_rows for b in batches) <= 8
    ids = [name for b in batches for name in b.column("trial_id").to_pylist()]
    assert ids == [t.id for t in TRIALS]
