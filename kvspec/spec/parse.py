"""YAML 1.2 text -> `Node` tree, in bounded time and memory.

ruamel.yaml scans and parses; what its events mean is decided here, because a spec needs less than YAML offers
(no tags, no timestamps, no merge keys) and more than loaders give (a mark for every value, all duplicate keys).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner, ScannerError

from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.tree import Findings, Node, Scalar, list_node, mapping_node, printable

MAX_DEPTH = 64
"""Nesting of mappings and lists."""
MAX_VALUES = 100_000
"""Values of a whole spec: includes followed, aliases expanded."""

# The core schema of YAML 1.2, section 10.3.2.
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(inf|Inf|INF)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass
class Budget:
    """What one spec may still use up, shared by its main file, its includes and its overrides."""

    values: int = MAX_VALUES

    def spend(self, values: int, mark: Mark) -> None:
        """Count values that were read; refuse when the spec holds too many."""
        self.values -= values
        if self.values < 0:
            raise SpecError(
                Diagnostic(
                    "KVS104",
                    "the spec holds too many values",
                    mark,
                    expected=f"at most {MAX_VALUES} values, includes followed and aliases expanded",
                    hint="keep long prompt lists in a file: `prompts: {file: prompts.txt}`",
                )
            )


def parse(text: str, file: str, budget: Budget | None = None) -> Node:
    """Read one YAML document.

    Raises `SpecError`: KVS102 for text that is not YAML 1.2 (or more than a spec may use of it), KVS103 for all
    duplicate keys, KVS104 for nesting or size over the limits.
    """
    builder = _Builder(file, budget or Budget())
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _TaglessScanner
    try:
        root = builder.document(yaml.parse(text))
    except MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        mark = builder.mark(at) if at else Mark(file, 1, 1)
        raise _not_yaml(_first_line(error.problem or error.context), mark) from None
    except ReaderError as error:
        before = text[: error.position]
        mark = Mark(file, before.count("\n") + 1, error.position - before.rfind("\n"))
        raise _not_yaml(f"the character U+{error.character:04X} is not allowed", mark) from None
    except YAMLError as error:
        raise _not_yaml(_first_line(str(error)), Mark(file, 1, 1)) from None
    except (ValueError, OverflowError, IndexError, AttributeError, TypeError, AssertionError):
        # The scanner trips over some malformed escapes and directives before it can say so.
        raise _not_yaml("the text is malformed", Mark(file, 1, 1)) from None
    builder.findings.raise_if_any()
    return root


def resolve_scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar: `1e-6` is a number, `no` and `2024-01-01` are text."""
    if text in _WORDS:
        return _WORDS[text]
    # Whole numbers beyond a double serve no field, and Python refuses to read the longest: infinity says enough.
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 300 else float(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0) if len(text) <= 200 else float("inf")
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _not_yaml(problem: str, mark: Mark, hint: str | None = None) -> SpecError:
    return SpecError(Diagnostic("KVS102", problem, mark, hint=hint))


def _first_line(problem: str | None) -> str:
    lines = (problem or "the text is malformed").strip().splitlines()
    return printable(lines[0], 120) if lines else "the text is malformed"


class _TaglessScanner(Scanner):
    """Refuses tags where they start: a spec is plain data, and scanning a long tag takes quadratic time."""

    def fetch_tag(self) -> None:
        raise ScannerError(None, None, "a tag (`!...`) is not allowed here", self.reader.get_mark())


class _Builder:
    """Builds nodes from parser events. One level of recursion per level of nesting, which is bounded."""

    def __init__(self, file: str, budget: Budget) -> None:
        self.file = file
        self.budget = budget
        self.findings = Findings()
        self.anchors: dict[str, Node | None] = {}
        """`None` while the anchored value is still being read."""

    def mark(self, at: Any) -> Mark:
        return Mark(self.file, at.line + 1, at.column + 1)

    def document(self, events: Iterator[Any]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                mark = self.mark(event.start_mark)
                if root is not None:
                    raise _not_yaml("the file holds a second document", mark, "write one spec per file")
                if event.version not in (None, (1, 2)):
                    raise _not_yaml("the `%YAML` directive asks for another version", mark, "leave it out")
                root = self.node(next(events), events, 0, "$")
            elif isinstance(event, StreamEndEvent):
                break
        return root if root is not None else Node(None, Mark(self.file, 1, 1))

    def node(self, event: Any, events: Iterator[Any], depth: int, path: str) -> Node:
        mark = self.mark(event.start_mark)
        if isinstance(event, AliasEvent):
            return self.alias(event, mark, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self.budget.spend(1, mark)
        if isinstance(event, ScalarEvent):
            node = Node(self.scalar(event, mark), mark)
        else:
            self.check_depth(depth + 1, mark)
            if isinstance(event, SequenceStartEvent):
                node = self.sequence(events, mark, depth + 1, path)
            else:
                node = self.mapping(events, mark, depth + 1, path)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, mark: Mark, depth: int) -> Node:
        name = printable(event.anchor)
        if event.anchor not in self.anchors:
            hint = f"write `&{name}` before the value it stands for"
            raise _not_yaml(f"the alias `*{name}` has no anchor", mark, hint)
        node = self.anchors[event.anchor]
        if node is None:
            raise _not_yaml(f"the alias `*{name}` stands inside its own value", mark)
        self.budget.spend(node.size, mark)
        self.check_depth(depth + node.height, mark)
        return node

    def check_depth(self, depth: int, mark: Mark) -> None:
        if depth > MAX_DEPTH:
            expected = f"at most {MAX_DEPTH} levels of mappings and lists"
            raise SpecError(Diagnostic("KVS104", "the text is nested too deeply", mark, expected=expected))

    def scalar(self, event: Any, mark: Mark) -> Scalar:
        text: str = event.value
        if _SURROGATE.search(text):
            raise _not_yaml("the text holds half of a surrogate pair", mark, "write the character itself")
        plain = event.implicit[0]
        return resolve_scalar(text) if plain else text

    def sequence(self, events: Iterator[Any], mark: Mark, depth: int, path: str) -> Node:
        items: list[Node] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self.node(event, events, depth, f"{path}[{len(items)}]"))
        return list_node(items, mark)

    def mapping(self, events: Iterator[Any], mark: Mark, depth: int, path: str) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            at = self.mark(event.start_mark)
            # A key is its text: `null:` and `1:` are the keys "null" and "1", which the schema then names as unknown.
            if not isinstance(event, ScalarEvent):
                raise _not_yaml("a key is not a word", at)
            self.budget.spend(1, at)
            key = event.value
            self.scalar(event, at)
            value = self.node(next(events), events, depth, f"{path}.{printable(key)}")
            if key in values:
                self.findings.add(
                    "KVS103",
                    f"the key `{printable(key)}` appears twice",
                    at,
                    f"{path}.{printable(key)}",
                    expected="every key once",
                    hint=f"it already stands at {keys[key]}",
                )
            else:
                values[key], keys[key] = value, at
        return mapping_node(values, mark, keys)
