"""Small maps whose truth is known, and files that lie, for the tests of fault maps."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kvspec import _native
from kvspec.maps import Coverage, FaultMap, Generator, Header, MapGeometry, explicit
from kvspec.maps.parquet import KEY, write
from kvspec.maps.trial import identified
from kvspec.plan import canonical_json
from kvspec.spec.model import Selector

GEOMETRY = MapGeometry(layers=3, kv_heads=2, head_size=16, planes=2, format="bf16")
GENERATOR = Generator("bit", 2e-3, 0xFFFF, 1, 0, 1.0, (11, 22))
BASE = Header(GEOMETRY, Coverage(prompt_tokens=5, tokens=12), generator=GENERATOR)


def generative(**changes: Any) -> FaultMap:
    """A generative map; keywords change the header."""
    return FaultMap(identified(replace(BASE, **changes)))


def made(**changes: Any) -> FaultMap:
    """Its enumeration."""
    return explicit(generative(**changes))


def patched(fault_map: FaultMap, **values: Any) -> FaultMap:
    """The same map with other columns and the hashes of the old ones."""
    assert fault_map.columns is not None
    columns = {name: column.copy() for name, column in fault_map.columns.items()}
    for name, (row, value) in values.items():
        columns[name][row] = value
    return FaultMap(fault_map.header, columns)


def parquet_bytes(fault_map: FaultMap) -> bytes:
    file = io.BytesIO()
    write(fault_map, file)
    return file.getvalue()


def foreign(fault_map: FaultMap, change: Callable[[dict[str, pa.Array]], dict[str, pa.Array]], **options: Any) -> bytes:
    """A Parquet file with the header of a map and columns of one's own."""
    columns = change({name: pa.array(column) for name, column in (fault_map.columns or {}).items()})
    table, file = pa.table(columns), io.BytesIO()
    settings = {"compression": "none", "store_schema": False} | options
    with pq.ParquetWriter(file, table.schema, **settings) as writer:
        writer.add_key_value_metadata({KEY.decode(): canonical_json(fault_map.header.to_json())})
        writer.write_table(table)
    return file.getvalue()


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, out = number << 1, bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def claim(data: bytes, old: int, new: int) -> bytes:
    """Replace a number in the Parquet footer wherever it stands as a 64-bit field."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length : -8]
    changed = footer.replace(b"\x16" + varint(old), b"\x16" + varint(new))
    assert changed != footer
    return data[: -8 - length] + changed + len(changed).to_bytes(4, "little") + b"PAR1"


def header_bytes(change: Callable[[dict[str, Any]], object], *, rehash: bool = True) -> bytes:
    """A generative JSON map with a changed header, its provenance hash made to fit where that is possible."""
    key = _native.derive_keys(3, 0xFF, 2, 0)[0]
    header = generative(trial=TRIAL, generator=replace(GENERATOR, key=key)).header
    data = deepcopy(header.to_json())  # it shares TRIAL with every other map
    change(data)
    if rehash:
        kept = {k: v for k, v in data.items() if k not in ("id", "kind", "provenance")}
        data["provenance"] = hashlib.sha256(
            json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()
    return json.dumps(data).encode()


TRIAL = {"id": "c0/p1/t2", "request": 1, "trial": 2, "seed": 3, "experiment": "00000000000000ff", "fault": 0}


def hostile() -> Iterator[tuple[str, str, bytes]]:
    """(name of the file, code that it must give, content)."""
    whole = made()
    good, rows = parquet_bytes(whole), len(whole)
    last = rows - 1
    for part in (0, 3, 4, 8, 11, 12, len(good) // 2, len(good) - 9, len(good) - 8, len(good) - 1):
        yield f"truncated-{part}.parquet", "KVS508", good[:part]
    yield "footer-huge.parquet", "KVS508", good[:-8] + b"\xff\xff\xff\x7f" + b"PAR1"
    yield "footer-zero.parquet", "KVS508", good[:-8] + bytes(4) + b"PAR1"
    swapped = np.arange(rows)
    swapped[[3, 4]] = [4, 3]
    columns = whole.columns or {}
    yield (
        "reordered.parquet",
        "KVS510",
        parquet_bytes(FaultMap(whole.header, {n: c[swapped] for n, c in columns.items()})),
    )
    twice = np.arange(rows)
    twice[5] = 4
    yield (
        "duplicate.parquet",
        "KVS510",
        parquet_bytes(FaultMap(whole.header, {n: c[twice] for n, c in columns.items()})),
    )
    outside = {"layer": 3, "kv": 2, "head": 2, "token": 12, "elem": 16, "bit": 16}
    for name, value in outside.items():
        yield f"outside-{name}.parquet", "KVS509", parquet_bytes(patched(whole, **{name: (last, value)}))
    yield "largest-token.parquet", "KVS509", parquet_bytes(patched(whole, token=(last, 2**32 - 1)))
    other = (columns["bit"][last] + 1) % 16
    yield "wrong-hash.parquet", "KVS511", parquet_bytes(patched(whole, bit=(last, other)))
    fewer = FaultMap(whole.header, {n: c[:-1] for n, c in columns.items()})
    yield "fewer-rows.parquet", "KVS511", parquet_bytes(fewer)
    yield "claims-2^32-rows.parquet", "KVS513", claim(good, rows, 2**32)
    yield "claims-2^62-rows.parquet", "KVS513", claim(good, rows, 2**62)
    yield (
        "header-2^32-flips.parquet",
        "KVS513",
        parquet_bytes(replace(whole, header=replace(whole.header, flips=2**32))),
    )
    big = replace(whole, header=replace(whole.header, notes={"x-n": "y" * (9 << 20)}))
    yield "header-9-MiB.parquet", "KVS513", parquet_bytes(big)
    big = replace(whole, header=replace(whole.header, notes={"x-n": "y" * (20 << 20)}))
    yield "footer-20-MiB.parquet", "KVS513", parquet_bytes(big)
    yield from _columns(whole)
    yield from _headers()
    yield from _json(whole)


def _columns(whole: FaultMap) -> Iterator[tuple[str, str, bytes]]:
    rows = len(whole)
    replaced: dict[str, pa.Array] = {
        "nested": pa.array([[1]] * rows, pa.list_(pa.uint32())),
        "deep": pa.array([[[[[1]]]]] * rows, pa.list_(pa.list_(pa.list_(pa.list_(pa.uint32()))))),
        "struct": pa.array([{"a": 1}] * rows),
        "text": pa.array(["x" * 1000] * rows),
        "float": pa.array([1.0] * rows),
        "signed": pa.array([1] * rows, pa.int32()),
        "wide": pa.array([1] * rows, pa.uint64()),
        "null": pa.array([None] * rows, pa.uint32()),
        "bool": pa.array([True] * rows),
        "decimal": pa.array([1] * rows).cast(pa.decimal128(38)),
    }
    for name, column in replaced.items():
        yield f"column-{name}.parquet", "KVS508", foreign(whole, lambda old, new=column: old | {"token": new})
    # The fourth column becomes nullable and holds one null.
    yield (
        "column-one-null.parquet",
        "KVS508",
        foreign(whole, lambda old: old | {"head": pa.array([None, *old["head"].to_pylist()[1:]], pa.uint16())}),
    )
    yield "column-missing.parquet", "KVS508", foreign(whole, lambda old: {k: v for k, v in old.items() if k != "elem"})
    yield "column-extra.parquet", "KVS508", foreign(whole, lambda old: old | {"more": old["bit"]})
    yield "column-order.parquet", "KVS508", foreign(whole, lambda old: dict(reversed(old.items())))
    yield "column-long-name.parquet", "KVS508", foreign(whole, lambda old: old | {"x" * 100_000: old["bit"]})
    yield "columns-many.parquet", "KVS508", foreign(whole, lambda old: old | {f"c{i}": old["bit"] for i in range(3000)})
    bomb = replace(whole, header=replace(whole.header, flips=1 << 24))
    zeros = {n: pa.array(np.zeros(1 << 24, c.dtype)) for n, c in (whole.columns or {}).items()}
    for codec in ("zstd", "gzip", "snappy", "brotli"):
        yield f"bomb-{codec}.parquet", "KVS508", foreign(bomb, lambda _: zeros, compression=codec, use_dictionary=False)
    # Run lengths and dictionaries make 2^24 equal rows a few hundred bytes: row groups bound what is decoded.
    yield "bomb-dictionary.parquet", "KVS513", _one_group(bomb, zeros)
    yield "bomb-run-length.parquet", "KVS510", foreign(bomb, lambda _: zeros)
    yield (
        "encoding.parquet",
        "KVS508",
        foreign(whole, lambda old: old, use_dictionary=False, column_encoding="BYTE_STREAM_SPLIT"),
    )
    plain = foreign(whole, lambda old: old)
    yield "not-a-map.parquet", "KVS508", _without_metadata(whole)
    yield (
        "columns-of-generative.parquet",
        "KVS511",
        foreign(replace(whole, header=replace(whole.header, kind="generative")), lambda old: old),
    )
    yield "dictionary-claims-2^31.parquet", "KVS508", _lying_dictionary(plain)


def _one_group(bomb: FaultMap, columns: dict[str, pa.Array]) -> bytes:
    file, table = io.BytesIO(), pa.table(columns)
    with pq.ParquetWriter(file, table.schema, compression="none", store_schema=False) as writer:
        writer.add_key_value_metadata({KEY.decode(): canonical_json(bomb.header.to_json())})
        writer.write_table(table, row_group_size=1 << 24)
    return file.getvalue()


def _without_metadata(whole: FaultMap) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({n: pa.array(c) for n, c in (whole.columns or {}).items()}), file)
    return file.getvalue()


def _lying_dictionary(data: bytes) -> bytes:
    """The first dictionary page claims 2^31 - 1 values: field 1 of the struct in field 7 of its header."""
    at = data.index(b"\x4c\x15", 4)
    stop = at + 2
    while data[stop] & 128:
        stop += 1
    return data[: at + 2] + varint(2**31 - 1) + data[stop + 1 :]


def _headers() -> Iterator[tuple[str, str, bytes]]:
    def change(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
        def apply(data: dict[str, Any]) -> None:
            for key in path[:-1]:
                data = data[key]
            data[path[-1]] = value

        return apply

    def read(data: dict[str, Any]) -> None:
        master = _native.derive_keys(3, 0xFF, 2, 0)[1]
        data["site"] = "read"
        data["generator"]["key"] = f"{master[0]:08x}{master[1]:08x}"

    wrong: list[tuple[str, str, Callable[[dict[str, Any]], object]]] = [
        ("version", "KVS507", change("kvspec_faultmap", value=2)),
        ("version-true", "KVS507", change("kvspec_faultmap", value=True)),
        ("sampling", "KVS507", change("sampling", value=3)),
        ("unknown-key", "KVS507", change("more", value=1)),
        ("no-geometry", "KVS507", lambda d: d.pop("geometry")),
        ("layers-0", "KVS507", change("geometry", "layers", value=0)),
        ("layers-float", "KVS507", change("geometry", "layers", value=3.0)),
        ("layers-huge", "KVS507", change("geometry", "layers", value=10**400)),
        ("format", "KVS507", change("geometry", "format", value="int3")),
        ("wide-rows", "KVS507", change("geometry", "head_size", value=32768)),
        ("site", "KVS507", change("site", value="both")),
        ("op", "KVS507", change("op", value="xor")),
        ("rate-nan", "KVS507", change("generator", "rate", value="nan")),
        ("rate-2", "KVS507", change("generator", "rate", value="0x1.0000000000000p+1")),
        ("rate-overflow", "KVS507", change("generator", "rate", value="0x1.0000000000000p+9999")),
        ("mask-wide", "KVS507", change("generator", "mask", value="1ffff")),
        ("range-backwards", "KVS507", change("generator", "selector", "layers", value=[[5, 2]])),
        ("range-huge", "KVS507", change("generator", "selector", "heads", value=[[0, 2**40]])),
        ("steps-backwards", "KVS507", lambda d: (read(d), d["generator"]["selector"].update(steps=[[5, 2]]))),
        ("tokens-2^32", "KVS507", change("coverage", "tokens", value=2**32)),
        ("bomb-tokens", "KVS513", change("coverage", "tokens", value=2**32 - 1)),
        (
            "bomb-rate",
            "KVS513",
            lambda d: (d["coverage"].update(tokens=10**7), d["generator"].update(rate="0x1.0000000000000p+0")),
        ),
        ("bomb-events", "KVS513", lambda d: (read(d), d["coverage"].update(tokens=2**32 - 1))),
        (
            "bomb-steps",
            "KVS513",
            lambda d: (
                read(d),
                d["coverage"].update(tokens=2**31),
                d["generator"]["selector"].update(steps=[[0, 2**31]]),
            ),
        ),
        ("other-request", "KVS511", change("trial", "request", value=2)),
        ("other-key", "KVS511", change("generator", "key", value="0" * 16)),
        ("token-id", "KVS507", change("record", value={"token_ids": [1, -1]})),
        ("token-id-true", "KVS507", change("record", value={"token_ids": [True]})),
        ("flips-negative", "KVS507", change("flips", value=-1)),
        ("flips-2^32", "KVS513", change("flips", value=2**32)),
        ("flips-other", "KVS511", change("flips", value=7)),
        ("no-generator", "KVS507", lambda d: d.pop("generator")),
        ("id-short", "KVS507", change("id", value="ab")),
        ("id-other", "KVS511", change("id", value="0" * 64)),
        ("9-MiB", "KVS513", change("x-note", value="a" * (9 << 20))),
        ("deep-note", "KVS507", change("x-deep", value=json.loads("[" * 40 + "]" * 40))),
    ]
    for name, code, how in wrong:
        yield f"header-{name}.json", code, header_bytes(how)
    yield "header-provenance.json", "KVS511", header_bytes(change("coverage", "tokens", value=13), rehash=False)


def _json(whole: FaultMap) -> Iterator[tuple[str, str, bytes]]:
    from kvspec.maps.textual import write_text

    good = write_text(whole)
    data = json.loads(good)
    yield "deep.json", "KVS507", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    # 1.3 GiB of empty lists once parsed, and quotes over which a careless search would go back.
    yield "many-lists.json", "KVS513", b'{"rows": [' + b"[]," * (20 << 20) + b"[]]}"
    yield "many-keys.json", "KVS513", b"{" + b",".join(b'"%d":0' % i for i in range(1_200_000)) + b"}"
    yield "quotes.json", "KVS507", b'{"a": "' + b'\\"' * 500_000 + b"\\"
    yield "twice.json", "KVS507", good.replace(b'"kind"', b'"site": "read", "kind"', 1)
    yield "nan.json", "KVS507", good.replace(b'"flips": ', b'"x-n": NaN, "flips": ', 1)
    yield "long-number.json", "KVS507", good.replace(b'"flips": ', b'"x-n": ' + b"9" * 5000 + b', "flips": ', 1)
    yield "latin.json", "KVS507", good.replace(b'"flips": ', b'"x-\xff": 1, "flips": ', 1)
    yield "surrogate.json", "KVS507", good.replace(b'"op"', b'"\\ud800": 1, "op"', 1)
    yield "list.json", "KVS508", b"[1, 2]"
    yield "cut.json", "KVS507", good[: len(good) // 2]
    yield "empty.json", "KVS508", b""
    yield "spaces.json", "KVS508", b" " * 1000
    for name, code, row in (
        ("text", "KVS508", "abc"),
        ("short", "KVS508", [0, 0]),
        ("true", "KVS508", [0, 0, True, 0, 0, 0, 0]),
        ("float", "KVS508", [0, 0, 0, 0, 0, 0, 1.5]),
        ("negative", "KVS508", [0, 0, 0, 0, 0, 0, -1]),
        ("wraps", "KVS508", [2**32, 0, 0, 0, 0, 0, 0]),
        ("bit", "KVS509", [0, 0, 0, 0, 0, 0, 16]),
    ):
        yield f"row-{name}.json", code, json.dumps(data | {"rows": [row, *data["rows"][1:]]}).encode()
    yield "no-rows.json", "KVS508", json.dumps({k: v for k, v in data.items() if k != "rows"}).encode()
    yield "columns.json", "KVS508", json.dumps(data | {"columns": ["request"]}).encode()
    yield "rows-of-generative.json", "KVS508", json.dumps(data | {"kind": "generative"}).encode()


def write_hostile(folder: Path) -> dict[str, str]:
    """Write all hostile files; name -> code."""
    codes = {}
    for name, code, content in hostile():
        (folder / name).write_bytes(content)
        codes[name] = code
    return codes


__all__ = ["BASE", "GENERATOR", "GEOMETRY", "TRIAL", "Selector", "generative", "hostile", "made", "write_hostile"]
