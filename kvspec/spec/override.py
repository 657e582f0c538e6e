"""`--set path=value`: one value of a spec replaced from the command line."""

from __future__ import annotations

import re

from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.parse import Budget, parse
from kvspec.spec.tree import Node, list_node, mapping_node, printable, type_name

OVERRIDE_FILE = "--set"
"""The file name in the mark of a value that an override wrote; the line counts the overrides."""

MAX_SEGMENTS = 16

_SEGMENT = re.compile(r"(?:^|\.)([A-Za-z0-9_-]+)|\[([0-9]{1,9})\]")


def override(root: Node, text: str, number: int, budget: Budget) -> Node:
    """The tree with one value replaced; `root` itself is left alone.

    A mapping on the way that is absent is made, so `generation.seed=1` works without `generation`. A list is not
    made longer. Raises `SpecError` (KVS106).
    """
    path, equals, value = text.partition("=")
    shown = printable(text)
    segments = _segments(path.strip())
    if not equals or not segments:
        raise _refused(number, f"`{shown}` is not an override")
    if segments[0] == "include":
        raise _refused(number, "an override cannot include files", "write `include` in the spec")
    try:
        new = parse(value, OVERRIDE_FILE, budget)
    except SpecError as error:
        problem = f"the value of `{shown}` is not accepted: {error.diagnostics[0].message}"
        raise _refused(number, problem, "put text in quotes") from None
    return _put(root, segments, _marked(new, Mark(OVERRIDE_FILE, number, len(path) + 2)), "$")


def _segments(path: str) -> list[str | int]:
    """Keys and indices of a path; empty if it is not one. `[0]` is an index, `.0` an index or a key."""
    segments: list[str | int] = []
    end = 0
    while end < len(path) and (match := _SEGMENT.match(path, end)):
        segments.append(match[1] if match[1] else int(match[2]))
        end = match.end()
    return segments if end == len(path) and len(segments) <= MAX_SEGMENTS else []


def _refused(number: int, problem: str, hint: str | None = None, path: str | None = None) -> SpecError:
    expected = "path=value, such as `model.id=gpt2` or `faults[0].rate.per_bit=1e-6`"
    return SpecError(Diagnostic("KVS106", problem, Mark(OVERRIDE_FILE, number, 1), path, expected, hint))


def _marked(node: Node, mark: Mark) -> Node:
    """The same value with the mark of its override everywhere."""
    match node.value:
        case dict() as mapping:
            children = {key: _marked(child, mark) for key, child in mapping.items()}
            return mapping_node(children, mark, dict.fromkeys(children, mark))
        case list() as items:
            return list_node([_marked(child, mark) for child in items], mark)
        case scalar:
            return Node(scalar, mark)


def _put(node: Node, segments: list[str | int], new: Node, path: str) -> Node:
    if not segments:
        return new
    head, rest = segments[0], segments[1:]
    match node.value:
        case dict() as mapping if isinstance(head, str):
            child = mapping.get(head) or Node({}, new.mark)
            keys = {**node.keys, head: new.mark if head not in mapping or not rest else node.keys[head]}
            return mapping_node({**mapping, head: _put(child, rest, new, f"{path}.{head}")}, node.mark, keys)
        case list() as items if isinstance(head, int) or re.fullmatch("[0-9]{1,9}", head):
            index = int(head)
            if index >= len(items):
                problem = f"there is no `{path[2:]}[{index}]`: the list has {len(items)} entries, counted from 0"
                raise _refused(new.mark.line, problem, path=path)
            changed = _put(items[index], rest, new, f"{path}[{index}]")
            return list_node([*items[:index], changed, *items[index + 1 :]], node.mark)
        case _:
            problem = f"`{path[2:] or path}` is {type_name(node)}, so it has no `{head}`"
            raise _refused(new.mark.line, problem, path=path)
