"""Structural validation: a `Node` tree against `schemas/spec.schema.json`.

The `jsonschema` package finds the violations. What is done here is to tell them: each `ValidationError` becomes a
`Diagnostic` with a code, the mark of the value, and the words of the schema.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jsonschema import Draft7Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from kvspec import _native
from kvspec.errors import Diagnostic, Mark
from kvspec.spec import hints
from kvspec.spec.tree import Findings, Node, printable, show, type_name

Schema = dict[str, Any]
Errors = Iterator[ValidationError]

_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


@functools.cache
def spec_schema() -> Schema:
    """The schema of a spec, as embedded in the extension."""
    schema: Schema = json.loads(_native.schema("spec"))
    return schema


def check(root: Node, findings: Findings) -> None:
    """Add every violation of the schema in the tree to `findings`."""
    errors = _Validator(spec_schema()).iter_errors(_plain(root))
    # A mapping that lacks several keys has an error for each, and every one of them tells all the keys.
    findings.diagnostics += dict.fromkeys(found for error in _meant(errors) for found in _tell(root, error))


# The validator: draft-07, and four keywords as a spec needs them.


def _integer(_: TypeChecker, value: object) -> bool:
    """As in draft-07, 3.0 is one. Infinity is let through to the bounds, which name it."""
    return Draft7Validator.TYPE_CHECKER.is_type(value, "integer") or (
        isinstance(value, float) and not math.isfinite(value)
    )


def _items(validator: Any, items: Schema, instance: object, schema: Schema) -> Errors:
    """Of a list that is too long, only that is told."""
    if _has_entries(instance, schema):
        yield from Draft7Validator.VALIDATORS["items"](validator, items, instance, schema)


def _has_entries(instance: object, schema: Schema) -> bool:
    """Whether a value has entries to look at, and no more than it may have."""
    return isinstance(instance, list) and len(instance) <= schema.get("maxItems", math.inf)


def _maximum(_: Any, maximum: float, instance: object, __: Schema) -> Errors:
    """NaN is below no maximum."""
    if isinstance(instance, (int, float)) and not isinstance(instance, bool) and not instance <= maximum:
        yield ValidationError("above the maximum")


def _pattern(_: Any, pattern: str, instance: object, schema: Schema) -> Errors:
    """`$` is the end of the text, not also the place before a final line break. Empty text is told by `minLength`."""
    if isinstance(instance, str) and not re.fullmatch(pattern, instance) and (instance or "minLength" not in schema):
        yield ValidationError("does not match")


def _unique_items(_: Any, unique: bool, instance: Any, schema: Schema) -> Errors:
    """Scalars only, in linear time, and with the place of every repetition."""
    seen: set[Any] = set()
    for index, item in enumerate(instance if unique and _has_entries(instance, schema) else ()):
        if not isinstance(item, (dict, list)):
            key = (isinstance(item, bool), item)  # True is 1 in Python, not in JSON
            if key in seen:
                yield ValidationError("listed twice", path=[index])
            seen.add(key)


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft7Validator,
    validators={"items": _items, "maximum": _maximum, "pattern": _pattern, "uniqueItems": _unique_items},
    type_checker=Draft7Validator.TYPE_CHECKER.redefine("integer", _integer),
)


class _Quiet:
    """jsonschema writes the value into every message. Nobody reads those, and aliases can make a value very long."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


class _Text(_Quiet, str):
    __slots__ = ()


class _List(_Quiet, list[Any]):
    __slots__ = ()


class _Mapping(_Quiet, dict[str, Any]):
    __slots__ = ()


def _plain(root: Node) -> Any:
    """The tree as plain data for jsonschema. What aliases share stays shared."""
    made: dict[int, Any] = {}

    def plain(value: Any) -> Any:
        if id(value) not in made:
            match value:
                case dict():
                    new: Any = _Mapping((plain(key), plain(child.value)) for key, child in value.items())
                case list():
                    new = _List(plain(child.value) for child in value)
                case str():
                    new = _Text(value)
                case _:
                    new = value
            made[id(value)] = new
        return made[id(value)]

    return plain(root.value)


# The errors that a person should hear of.


def _meant(errors: Iterable[ValidationError]) -> Errors:
    """The same errors, with alternatives replaced by what is wrong with the one that was meant.

    A wrong type is the only error of its value, unless the value has no place at all (`not`). The schema states types
    first, so it is also the first.
    """
    wrong: set[tuple[str | int, ...]] = set()
    for error in errors:
        place = tuple(error.absolute_path)
        if place in wrong and error.validator != "not":
            continue
        if error.validator == "type":
            wrong.add(place)
        if error.validator == "anyOf" and not _is_choice(error):
            others = {branch.schema_path[0] for branch in _of_other_types(error)}
            meant = [each for each in error.context if each.schema_path[0] not in others]
            yield from _meant(meant) if meant else [error]
        else:
            yield error


def _of_other_types(error: ValidationError) -> list[ValidationError]:
    """Why branches are out of the question: the type of the value itself."""
    return [each for each in error.context if each.validator == "type" and not each.path]


def _is_choice(error: ValidationError) -> bool:
    """Whether the branches name one key each."""
    branches: Any = error.validator_value
    return "required" in branches[0]


# What they hear.


def _tell(root: Node, error: ValidationError) -> Iterator[Diagnostic]:
    node = root.get(*error.absolute_path) or root
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    schema: Any = error.schema
    rule: Any = error.validator_value

    def told(
        code: str,
        message: str,
        expected: str | None,
        hint: str | None = None,
        *,
        mark: Mark = node.mark,
        path: str = path,
    ) -> Diagnostic:
        return Diagnostic(code, message, mark, path, expected, hint)

    match error.validator:
        case "anyOf" | "oneOf" if _is_choice(error):
            yield from _tell_choice(error, node, path)
        case "type" | "anyOf":
            branches = [error] if error.validator == "type" else _of_other_types(error)
            types: list[Any] = [branch.validator_value for branch in branches]
            expected = " or ".join(dict.fromkeys(_type_words(branch.schema) for branch in branches))
            yield told("KVS201", _wrong_type(node, path), expected, hints.for_type(node, path, types))
        case "oneOf" | "const":
            words = [branch["const"] for branch in rule] if error.validator == "oneOf" else [rule]
            expected = f"one of: {_listed(words)}" if len(words) > 1 else f"`{words[0]}`"
            yield told("KVS203", f"{show(node)} is not allowed here", expected, hints.for_word(node.value, words))
        case "additionalProperties":
            known = schema["properties"]
            for key in [key for key in node.mapping if key not in known]:
                yield told(
                    "KVS202",
                    f"the key `{printable(key)}` is not known",
                    f"one of: {_listed(known)}",
                    hints.for_key(key, known),
                    mark=node.keys.get(key, node.mark),
                    path=f"{path}.{printable(key)}",
                )
        case "required":
            for key in [key for key in rule if key not in node.mapping]:
                meaning = _phrase(schema["properties"][key]["description"])
                yield told("KVS204", f"the key `{key}` is missing", f"`{key}`: {meaning}")
        case "minimum" | "exclusiveMinimum" | "maximum":
            value: Any = node.value
            if math.isfinite(value):
                problem, hint = "out of range", hints.for_number(value, schema)
            else:
                problem, hint = "not a number" if math.isnan(value) else "not finite", None
            yield told("KVS205", f"{show(node)} is {problem}", _range(schema), hint)
        case "minItems" | "maxItems" | "minLength" | "maxLength":
            yield told("KVS207", *_wrong_length(node, schema))
        case "uniqueItems":
            yield told("KVS210", f"{show(node)} is listed twice", "every entry once")
        case "pattern":
            form = "; ".join(map(_phrase, schema["description"].split(". ")))  # its later sentences say it, too
            yield told("KVS210", f"{show(node)} has the wrong form", form)
        case "not":
            problem = f"`{error.absolute_path[-1]}` does not go with the rest of the entry"
            yield told("KVS206", problem, schema["description"])
        case keyword:
            raise AssertionError(
                f"the schema uses `{keyword}`, for which there are no words"
            )  # a test holds it has none


def _tell_choice(error: ValidationError, node: Node, path: str) -> Iterator[Diagnostic]:
    """Branches that name one key each: exactly one (`oneOf`), or at least one (`anyOf`), must be there."""
    branches: Any = error.validator_value
    keys = [key for branch in branches for key in branch["required"]]
    present = [key for key in keys if key in node.mapping]
    expected = f"{'exactly' if error.validator == 'oneOf' else 'at least'} one of: {_listed(keys)}"
    if not present:
        yield Diagnostic("KVS204", f"one of the keys {_listed(keys)} is missing", node.mark, path, expected)
    for key in present[1:]:
        message = f"`{key}` does not go together with `{present[0]}`"
        yield Diagnostic("KVS206", message, node.keys.get(key, node.mark), f"{path}.{key}", expected)


def _wrong_type(node: Node, path: str) -> str:
    if node.value is None:
        return "the file is empty" if path == "$" else "there is no value here"
    value = show(node)
    return f"this is {value}" if value == type_name(node) else f"{value} is {type_name(node)}"


def _type_words(schema: Any) -> str:
    """What a schema accepts: a kind of value, or the words if it lists them."""
    words = [branch["const"] for branch in schema.get("oneOf", ()) if "const" in branch]
    return _listed(words) if words else _TYPE_WORDS[schema["type"]]


def _wrong_length(node: Node, schema: Schema) -> tuple[str, str]:
    value: Any = node.value
    what, bound, unit = ("list", "Items", "entries") if isinstance(value, list) else ("text", "Length", "characters")
    low, high = schema.get(f"min{bound}", 0), schema.get(f"max{bound}")
    problem = f"the {what} has {len(value)} {unit}" if value else f"the {what} is empty"
    return problem, f"{low} to {high} {unit}" if high is not None else f"at least {low} {unit}"


def _range(schema: Schema) -> str:
    """The range of a number in words; every number of the schema has both ends."""
    kind, high = _TYPE_WORDS[schema["type"]], _number(schema["maximum"])
    if "exclusiveMinimum" in schema:
        return f"{kind} above {_number(schema['exclusiveMinimum'])}, at most {high}"
    return f"{kind} from {_number(schema['minimum'])} to {high}"


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _phrase(text: str) -> str:
    """The first sentence of a description, as the end of a sentence."""
    text = text.partition(". ")[0].removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(str(word) for word in words)
