"""Structural validation: a `Node` tree against `schemas/spec.schema.json`.

The schema is plain draft-07, and the tests hold this checker against the `jsonschema` package. It exists because a
diagnostic needs the mark of the value and the words of the schema, and because importing `jsonschema` takes longer
than everything else in `kvspec check`. It knows the keywords that the schema uses and refuses to meet another.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from kvspec import _native
from kvspec.spec import hints
from kvspec.spec.tree import Findings, Node, printable, show, type_name

Schema = dict[str, Any]

TYPE_WORDS = {
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


def check(node: Node, schema: Schema, findings: Findings) -> None:
    """Add every violation of `schema` in the tree to `findings`."""
    _Checker(schema, findings).check(node, schema, "$")


class _Checker:
    def __init__(self, root: Schema, findings: Findings) -> None:
        self.root = root
        self.findings = findings

    def check(self, node: Node, schema: Schema, path: str) -> None:
        """Apply all keywords that are meant for the type of the value; a wrong type is the only error of its value."""
        schema = self.resolve(schema)
        types = self.types(schema)
        if types and not any(_is(node, name) for name in types):
            self.wrong_type(node, schema, path, types)
            return
        for keyword in dict.fromkeys(_KEYWORDS[name] for name in schema):
            if keyword is not None:
                keyword(self, node, schema, path)

    def matches(self, node: Node, schema: Schema) -> bool:
        """Whether a schema holds, without reporting."""
        probe = _Checker(self.root, Findings())
        probe.check(node, schema, "$")
        return not probe.findings.diagnostics

    def resolve(self, schema: Schema) -> Schema:
        """Follow `$ref`, beside which draft-07 ignores everything."""
        while "$ref" in schema:
            target: Any = self.root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = target
        return schema

    def types(self, schema: Schema) -> list[str]:
        """The types a schema accepts, looking into the branches of `anyOf`."""
        schema = self.resolve(schema)
        if "type" in schema:
            return [schema["type"]]
        return [name for branch in schema.get("anyOf", ()) for name in self.types(branch)]

    def words(self, schema: Schema) -> list[Any]:
        """The allowed words of a schema, looking into the branches of `anyOf` and of lists."""
        schema = self.resolve(schema)
        found = [self.resolve(branch)["const"] for branch in schema.get("oneOf", ()) if "const" in branch]
        for branch in schema.get("anyOf", ()):
            found += self.words(branch)
        return found

    def wrong_type(self, node: Node, schema: Schema, path: str, types: list[str]) -> None:
        words = dict.fromkeys(TYPE_WORDS[name] for name in types)
        if allowed := self.words(schema):
            words = {_listed(allowed) if word == TYPE_WORDS["string"] else word: None for word in words}
        value = show(node)
        if node.value is None:
            message = "the file is empty" if path == "$" else "there is no value here"
        else:
            message = f"this is {value}" if value == type_name(node) else f"{value} is {type_name(node)}"
        self.report("KVS201", message, node, path, " or ".join(words), hints.for_type(node, path, types))

    def report(
        self, code: str, message: str, node: Node, path: str, expected: str | None = None, hint: str | None = None
    ) -> None:
        self.findings.add(code, message, node.mark, path, expected=expected, hint=hint)

    # Keywords. Each method handles one keyword of a schema, or a group of keywords that shares a message.

    def properties(self, node: Node, schema: Schema, path: str) -> None:
        for key, child in node.mapping.items():
            if key in schema["properties"]:
                self.check(child, schema["properties"][key], f"{path}.{key}")

    def additional_properties(self, node: Node, schema: Schema, path: str) -> None:
        known = schema["properties"]
        for key in [key for key in node.mapping if key not in known]:
            self.findings.add(
                "KVS202",
                f"the key `{printable(key)}` is not known",
                node.keys.get(key, node.mark),
                f"{path}.{printable(key)}",
                expected=f"one of: {_listed(known)}",
                hint=hints.for_key(key, known),
            )

    def required(self, node: Node, schema: Schema, path: str) -> None:
        if not isinstance(node.value, dict):
            return
        for key in schema["required"]:
            if key not in node.value:
                # A condition may require a key that it does not describe.
                text = schema["properties"][key].get("description", "")
                expected = f"`{key}`: {_phrase(text)}" if text else None
                self.report("KVS204", f"the key `{key}` is missing", node, path, expected)

    def one_of(self, node: Node, schema: Schema, path: str) -> None:
        branches = schema["oneOf"]
        if "required" in branches[0]:
            self.choice(node, branches, path, exclusive=True)
        else:
            self.word(node, [branch["const"] for branch in branches], path)

    def enum(self, node: Node, schema: Schema, path: str) -> None:
        self.word(node, schema["enum"], path)

    def const(self, node: Node, schema: Schema, path: str) -> None:
        self.word(node, [schema["const"]], path)

    def word(self, node: Node, words: list[Any], path: str) -> None:
        if node.value not in words:
            expected = f"one of: {_listed(words)}" if len(words) > 1 else f"`{words[0]}`"
            hint = hints.for_word(node.value, words)
            self.report("KVS203", f"{show(node)} is not allowed here", node, path, expected, hint)

    def any_of(self, node: Node, schema: Schema, path: str) -> None:
        """Branches are told apart by type, so that the errors are those of the branch that was meant."""
        branches = schema["anyOf"]
        if "required" in branches[0]:
            self.choice(node, branches, path, exclusive=False)
            return
        for branch in branches:
            if any(_is(node, name) for name in self.types(branch)):
                self.check(node, branch, path)
                return

    def choice(self, node: Node, branches: list[Schema], path: str, *, exclusive: bool) -> None:
        """Branches that name one key each: exactly one, or at least one, must be there."""
        keys = [key for branch in branches for key in branch["required"]]
        present = [key for key in keys if key in node.mapping]
        expected = f"{'exactly' if exclusive else 'at least'} one of: {_listed(keys)}"
        if not present:
            self.report("KVS204", f"one of the keys {_listed(keys)} is missing", node, path, expected)
        elif exclusive:
            for key in present[1:]:
                message = f"`{key}` does not go together with `{present[0]}`"
                mark = node.keys.get(key, node.mark)
                self.findings.add("KVS206", message, mark, f"{path}.{key}", expected=expected)

    def all_of(self, node: Node, schema: Schema, path: str) -> None:
        for branch in schema["allOf"]:
            self.check(node, branch, path)

    def condition(self, node: Node, schema: Schema, path: str) -> None:
        branch = schema.get("then" if self.matches(node, schema["if"]) else "else")
        if branch is not None:
            self.check(node, branch, path)

    def excluded(self, node: Node, schema: Schema, path: str) -> None:
        """`not: {}`: the key has no place here, and the description beside it says why."""
        key = path.rpartition(".")[2]
        self.report("KVS206", f"`{key}` does not go with the rest of the entry", node, path, schema["description"])

    def bounds(self, node: Node, schema: Schema, path: str) -> None:
        value = node.value
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return
        if not math.isfinite(value):
            what = "not a number" if math.isnan(value) else "not finite"
            self.report("KVS205", f"{show(node)} is {what}", node, path, _range(schema))
        elif not (
            schema.get("minimum", -math.inf) <= value <= schema["maximum"]
            and value > schema.get("exclusiveMinimum", -math.inf)
        ):
            hint = hints.for_number(value, schema)
            self.report("KVS205", f"{show(node)} is out of range", node, path, _range(schema), hint)

    def length(self, node: Node, schema: Schema, path: str) -> None:
        value = node.value
        if not isinstance(value, (list, str)):
            return
        what, bound, unit = (
            ("list", "Items", "entries") if isinstance(value, list) else ("text", "Length", "characters")
        )
        low, high = schema.get(f"min{bound}", 0), schema.get(f"max{bound}", math.inf)
        if not low <= len(value) <= high:
            problem = f"the {what} has {len(value)} {unit}" if value else f"the {what} is empty"
            expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
            self.report("KVS207", problem, node, path, f"{expected} {unit}")

    def unique(self, node: Node, schema: Schema, path: str) -> None:
        if not isinstance(node.value, list) or not schema["uniqueItems"]:
            return
        seen: set[Any] = set()
        for index, item in enumerate(node.value):
            if isinstance(item.value, (dict, list)):
                continue
            key = (isinstance(item.value, bool), item.value)  # True is 1 in Python, not in JSON
            if key in seen:
                self.report("KVS210", f"{show(item)} is listed twice", item, f"{path}[{index}]", "every entry once")
            seen.add(key)

    def pattern(self, node: Node, schema: Schema, path: str) -> None:
        if not isinstance(node.value, str) or (not node.value and "minLength" in schema):
            return
        # Not `search`: in Python `$` also matches before a final line break, in JSON Schema it does not.
        if not re.fullmatch(schema["pattern"], node.value):
            problem = f"{show(node)} has the wrong form"
            self.report("KVS210", problem, node, path, _phrase(schema["description"]))

    def entries(self, node: Node, schema: Schema, path: str) -> None:
        if isinstance(node.value, list):
            for index, item in enumerate(node.value):
                self.check(item, schema["items"], f"{path}[{index}]")


_KEYWORDS: dict[str, Callable[[_Checker, Node, Schema, str], None] | None] = {
    "properties": _Checker.properties,
    "additionalProperties": _Checker.additional_properties,
    "required": _Checker.required,
    "oneOf": _Checker.one_of,
    "anyOf": _Checker.any_of,
    "allOf": _Checker.all_of,
    "if": _Checker.condition,
    "not": _Checker.excluded,
    "const": _Checker.const,
    "enum": _Checker.enum,
    "uniqueItems": _Checker.unique,
    "pattern": _Checker.pattern,
    "items": _Checker.entries,
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), _Checker.length),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "maximum"), _Checker.bounds),
    # Dealt with by `check`, or by the keyword beside which they stand.
    **dict.fromkeys(("type", "then", "else", "patternProperties", "definitions")),
    **dict.fromkeys(("$schema", "$id", "title", "description", "default", "examples")),
}


def _is(node: Node, name: str) -> bool:
    value = node.value
    match name:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            # As in JSON Schema, 3.0 is an integer. Infinity is let through to the bounds, which name it.
            whole = isinstance(value, float) and (value.is_integer() or not math.isfinite(value))
            return (isinstance(value, int) and not isinstance(value, bool)) or whole
        case _:
            return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(schema: Schema) -> str:
    """The range of a number in words; every number of the schema has both ends."""
    kind, high = TYPE_WORDS[schema["type"]], _number(schema["maximum"])
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
