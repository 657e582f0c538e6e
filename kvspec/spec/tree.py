"""The tree between YAML and `Spec`: plain values, each of which knows where it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvspec.errors import Diagnostic, Mark, SpecError

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value with its mark. Nodes are never changed: an alias shares its node with the anchor."""

    value: Scalar | dict[str, Node] | list[Node]
    mark: Mark
    keys: dict[str, Mark] = field(default_factory=dict)
    """Where each key of a mapping stands."""
    size: int = 1
    """Values below and including this one, aliases expanded."""
    height: int = 0
    """Nesting of mappings and lists below and including this one."""

    @property
    def mapping(self) -> dict[str, Node]:
        """The children of a mapping, private `x-` notes left out; empty for everything else."""
        if not isinstance(self.value, dict):
            return {}
        return {key: child for key, child in self.value.items() if not key.startswith("x-")}

    @property
    def items(self) -> list[Node]:
        """The children of a list; a single value counts as a list of one."""
        return self.value if isinstance(self.value, list) else [self]

    def get(self, *keys: str | int) -> Node | None:
        """The node at a path of keys and indices, or `None`."""
        node: Node | None = self
        for key in keys:
            match node.value if node else None:
                case dict() as mapping if isinstance(key, str):
                    node = mapping.get(key)
                case list() as items if isinstance(key, int) and key < len(items):
                    node = items[key]
                case _:
                    return None
        return node

    def plain(self) -> Any:
        """The value as plain Python data, without `x-` notes."""
        match self.value:
            case dict():
                return {key: child.plain() for key, child in self.mapping.items()}
            case list() as items:
                return [child.plain() for child in items]
            case scalar:
                return scalar

    def walk(self, path: str = "$") -> Iterator[tuple[str, Node]]:
        """Every node with its JSON path, parents first, without `x-` notes (whose keys may be of any length)."""
        yield path, self
        for key, child in self.mapping.items():
            yield from child.walk(f"{path}.{key}")
        if isinstance(self.value, list):
            for index, child in enumerate(self.value):
                yield from child.walk(f"{path}[{index}]")


def mapping_node(value: dict[str, Node], mark: Mark, keys: dict[str, Mark]) -> Node:
    """A mapping with its size and height worked out."""
    size = 1 + sum(child.size for child in value.values())
    return Node(value, mark, keys, size, 1 + max((child.height for child in value.values()), default=0))


def list_node(value: list[Node], mark: Mark) -> Node:
    """A list with its size and height worked out."""
    size = 1 + sum(child.size for child in value)
    return Node(value, mark, {}, size, 1 + max((child.height for child in value), default=0))


def type_name(node: Node) -> str:
    """What a value is, in the words of the diagnostics."""
    match node.value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return "a boolean"
        case None:
            return "null"
        case str():
            return "text"
        case _:
            return "a number"


def show(node: Node) -> str:
    """A value as a message quotes it: short, on one line, in backticks."""
    match node.value:
        case dict() | list():
            return type_name(node)
        case "":
            return "empty text"
        case bool() | None as word:
            return f"`{'null' if word is None else str(word).lower()}`"
        case value:
            return f"`{printable(str(value))}`"


def printable(text: str, limit: int = 60) -> str:
    """Text from a file, made safe for a terminal line and cut to `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Findings:
    """Collects diagnostics, so that all errors of a spec are reported at once and in file order."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self.diagnostics: list[Diagnostic] = []

    def add(
        self,
        code: str,
        message: str,
        mark: Mark,
        path: str | None,
        *,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note one error."""
        self.diagnostics.append(Diagnostic(code, message, mark, path, expected, hint))

    def touched(self) -> set[str]:
        """The paths at or below which something was found."""
        ends = re.compile(r"(?=[.\[])|$")
        return {path[: end.start()] for path in {d.path or "" for d in self.diagnostics} for end in ends.finditer(path)}

    def raise_if_any(self) -> None:
        """Raise everything found as one `SpecError`."""
        if self.diagnostics:
            files: dict[str, int] = {}
            for found in self.diagnostics:
                files.setdefault(found.mark.file if found.mark else "", len(files))

            def place(found: Diagnostic) -> tuple[int, int, int]:
                mark = found.mark or Mark("", 0, 0)
                return files[mark.file], mark.line, mark.column

            raise SpecError(sorted(self.diagnostics, key=place))
