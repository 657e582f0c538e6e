"""Maps from strangers: every lie gets a code, in bounded memory and time, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvspec.errors import KvspecError, PrerequisiteError, RecordsError
from kvspec.maps import read_map, verify_map
from tests.maps.made import made, parquet_bytes, write_hostile

# VmHWM is this program's own peak; ru_maxrss would start from the peak of the process that forked it.
MEASURED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from kvspec.cli import main
try:
    main(["map", "verify", "--format", "json", *sys.argv[1:]])
finally:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print("peak", status["VmHWM"].split()[0], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def codes(folder: Path) -> dict[str, str]:
    return write_hostile(folder)


def test_every_lie_has_its_code(folder: Path, codes: dict[str, str]) -> None:
    found = {}
    for name in codes:
        with pytest.raises(RecordsError) as caught:
            verify_map(folder / name)
        found[name] = caught.value.diagnostics[0].code
        assert name in str(caught.value) or caught.value.diagnostics[0].path, name
        assert len(str(caught.value)) < 5000, name
    assert found == codes


def test_column_and_row_are_named(folder: Path, codes: dict[str, str]) -> None:
    for name in ("layer", "kv", "head", "elem", "bit"):
        with pytest.raises(RecordsError) as caught:
            read_map(folder / f"outside-{name}.parquet")
        assert caught.value.diagnostics[0].path == f"$.columns.{name}[{len(made()) - 1}]"
    with pytest.raises(RecordsError, match="row 5 repeats the site before it"):
        read_map(folder / "duplicate.parquet")


def test_a_pyarrow_that_is_too_old_is_no_damage_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").write_bytes(parquet_bytes(made()))
    monkeypatch.setattr(pa, "__version__", "25.0.1")
    with pytest.raises(PrerequisiteError, match=r"pyarrow 26 or later, and 25\.0\.1 is installed") as caught:
        read_map(tmp_path / "m.parquet")
    assert caught.value.diagnostics[0].code == "KVS901"


def test_a_wrong_argument_of_ours_is_no_damage_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise TypeError("got an unexpected keyword argument")

    (tmp_path / "m.parquet").write_bytes(parquet_bytes(made()))
    monkeypatch.setattr(pq, "ParquetFile", unknown)
    with pytest.raises(TypeError, match="unexpected keyword"):
        read_map(tmp_path / "m.parquet")


def test_memory_and_time_are_bounded(folder: Path, codes: dict[str, str]) -> None:
    """The whole collection through the command, in one process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *(str(folder / name) for name in codes)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    results = json.loads(done.stdout)["maps"]
    assert {Path(r["file"]).name: r["diagnostics"][0]["code"] for r in results} == codes
    peak_mib = int(done.stderr.split("peak ")[1]) / 1024
    assert peak_mib < 400, f"{peak_mib:.0f} MiB"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sparse.json").touch()
    os.truncate(tmp_path / "sparse.json", 3 << 30)
    cases = {"pipe": "KVS505", ".": "KVS505", "absent": "KVS505", "a\0b": "KVS505", "sparse.json": "KVS513"}
    for name, code in {**cases, "/dev/zero": "KVS505"}.items():
        with pytest.raises(RecordsError) as caught:
            read_map(tmp_path / name)
        assert caught.value.diagnostics[0].code == code, name


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_garbled_files_never_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(parquet_bytes(made()))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.mktemp("garbled") / "m.parquet"
    path.write_bytes(content)
    try:
        found = read_map(path)
    except KvspecError:
        return
    assert found.id == made().id
