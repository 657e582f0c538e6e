"""The header of a stranger's map: JSON text -> `Header`, or a diagnostic. Never a traceback."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from kvspec import _native
from kvspec.errors import Diagnostic, RecordsError
from kvspec.maps.limits import MAX_DEPTH, MAX_HEADER_BYTES, MAX_ROWS
from kvspec.maps.model import MAP_VERSION, Header
from kvspec.plan.model import SAMPLING_VERSION

_TOKEN_LISTS = ("token_ids", "golden_token_ids")
_SHOWN = 8


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft7Validator
    from jsonschema.validators import extend

    # Draft-07 takes 3.0 for a whole number; a count that is no `int` would fail far from here.
    types = Draft7Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator: Any = extend(Draft7Validator, type_checker=types)  # type: ignore[no-untyped-call]
    return validator(json.loads(_native.schema("faultmap")))


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """One JSON object: no key twice, no NaN. Raises KVS507."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is not JSON")

    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _wrong(what, f"is not a JSON object: {_first(error)}") from None
    if not isinstance(data, dict):
        raise _wrong(what, "is not a JSON object")
    return data


def read_header(data: dict[str, Any], what: str) -> Header:
    """The checked header. Raises `RecordsError`: KVS507 for each place that does not fit, KVS511 for a wrong hash."""
    for key, known in (("kvspec_faultmap", MAP_VERSION), ("sampling", SAMPLING_VERSION)):
        if type(data.get(key)) is not int or data[key] != known:
            raise _wrong(
                what, f"has `{key}` {_show(data.get(key))}", f"$.{key}", f"{known}, the version this kvspec reads"
            )
    _check_shape(data, what)
    try:
        header = Header.from_json(data)
        _check_meaning(header, what)
        provenance = header.provenance
    except (ValueError, OverflowError, TypeError, KeyError) as error:
        raise _wrong(what, f"has a header that cannot be: {_first(error)}") from None
    if provenance != data["provenance"]:
        raise RecordsError.one(
            "KVS511",
            f"`{what}` has a header with the hash `{provenance}`, it says `{data['provenance']}`",
            path="$.provenance",
            hint="the header was changed after it was written",
        )
    return header


def check_size(text: bytes, what: str) -> None:
    """Refuse a header over the limit (KVS513)."""
    if len(text) > MAX_HEADER_BYTES:
        raise RecordsError.one(
            "KVS513",
            f"`{what}` has a header of {len(text)} bytes",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
        )


def _check_shape(data: dict[str, Any], what: str) -> None:
    record = data.get("record")
    if isinstance(record, dict):
        # Long lists are checked here: the schema validator would take a Python call for each number.
        lists = [name for name in _TOKEN_LISTS if isinstance(record.get(name), list)]
        for name in lists:
            if not all(type(x) is int and 0 <= x < 2**32 for x in record[name]):
                raise _wrong(
                    what, "holds a token id that is none", f"$.record.{name}", "whole numbers from 0 below 2^32"
                )
        data = data | {"record": record | {name: [] for name in lists}}
    if _depth_exceeds(data, MAX_DEPTH):
        raise _wrong(what, "has a header that is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
    errors = []
    for error in _validator().iter_errors(data):
        errors.append(Diagnostic("KVS507", f"`{what}`: {_told(error)}", path=_path(error.absolute_path)))
        if len(errors) == _SHOWN:
            break
    if errors:
        raise RecordsError(errors)


def _check_meaning(header: Header, what: str) -> None:
    geometry, coverage = header.geometry, header.coverage
    if geometry.bits * geometry.head_size > 2**15:
        raise _wrong(what, "has rows of more than 32768 bits", "$.geometry.head_size")
    if header.target == "scales" and not _native.format_scaled(geometry.format):
        raise _wrong(what, f"strikes scales, which a {geometry.format} cache does not have", "$.target")
    if header.kind == "generative" and header.generator is None:
        raise _wrong(what, "is generative and has no generator", "$.generator")
    if coverage.tokens and coverage.prompt_tokens > 2**32 - 1:
        raise _wrong(what, "covers too many tokens", "$.coverage")
    if header.flips > MAX_ROWS:
        raise RecordsError.one(
            "KVS513",
            f"`{what}` says that it has {header.flips} flips",
            path="$.flips",
            expected=f"at most {MAX_ROWS}",
        )


def _depth_exceeds(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_depth_exceeds(x, levels - 1) for x in inner)


def _told(error: Any) -> str:
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"lacks {', '.join(f'`{key}`' for key in missing)}"
    if error.validator == "additionalProperties":
        unknown = [key for key in error.instance if key not in error.schema.get("properties", {})]
        return f"holds unknown keys such as {_show(unknown[0] if unknown else None)}"
    return f"the value {_show(error.instance)} breaks the rule `{error.validator}` ({_show(error.validator_value)})"


def _path(parts: Sequence[Any]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:40]}" for part in parts)


def _show(value: Any) -> str:
    text = repr(value)
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _wrong(what: str, message: str, path: str | None = None, expected: str | None = None) -> RecordsError:
    return RecordsError.one("KVS507", f"`{what}` {message}", path=path, expected=expected)
