"""Files -> one `Node` tree: reading within limits, `include`, and `--set` overrides."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvspec.errors import Diagnostic, Mark, SpecError
from kvspec.spec.override import OVERRIDE_FILE, override
from kvspec.spec.parse import Budget, parse
from kvspec.spec.tree import Node, mapping_node, printable, type_name

MAX_FILE_BYTES = 1 << 20
"""Size of one YAML file."""
MAX_TOTAL_BYTES = 4 << 20
"""Size of a spec and all that it includes."""
FROM_LIBRARY = "the specs of the library lie in kvspec's repository, not in its package: run this in a checkout"
MAX_INCLUDE_DEPTH = 8
MAX_INCLUDES = 64


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """Read a spec file, merge what it includes, apply overrides such as `trials=4`.

    Raises `SpecError` with KVS101 to KVS106.
    """
    loader = _Loader()
    root = loader.file(str(path), ())
    for number, text in enumerate(overrides, 1):
        root = override(root, text, number, loader.budget)
    return root


def read_text(path: str, limit: int, *, code: str = "KVS101", at: Mark | None = None, where: str | None = None) -> str:
    """Read a regular UTF-8 file of at most `limit` bytes; a larger one is refused by its size, unread.

    `at` and `where` are the mark and JSON path of the value that named the file; `code` says that it cannot be read.
    """
    shown = printable(path, 200)
    mark = at or Mark(path, 1, 1)
    try:
        # Non-blocking, so that a pipe without a writer is refused below instead of waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise SpecError(Diagnostic(code, f"`{shown}` is not a regular file", mark, where))
            if facts.st_size > limit:
                problem = f"`{shown}` is too large: {facts.st_size} bytes"
                raise SpecError(Diagnostic("KVS104", problem, mark, where, f"at most {limit} bytes"))
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a file name"
        folder = Path(path).parent
        library = isinstance(error, FileNotFoundError) and at is None and folder.name == "specs"
        hint = FROM_LIBRARY if library and not folder.is_dir() else None
        raise SpecError(Diagnostic(code, f"`{shown}` cannot be read: {reason}", mark, where, hint=hint)) from None
    if len(data) > limit:
        raise SpecError(Diagnostic("KVS104", f"`{shown}` is too large", mark, where, f"at most {limit} bytes"))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise SpecError(Diagnostic("KVS102", "the file is not UTF-8 text", Mark(path, line, column))) from None


def beside(mark: Mark, path: str) -> str:
    """A path as seen from the file that names it; from the working directory for an override."""
    folder = "" if mark.file == OVERRIDE_FILE else os.path.dirname(mark.file)
    return os.path.join(folder, path)


def merge(below: Node, above: Node) -> Node:
    """`above` laid over `below`: mappings merge key by key, everything else is replaced."""
    if not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    value = dict(below.value)
    for key, child in above.value.items():
        value[key] = merge(value[key], child) if key in value else child
    return mapping_node(value, above.mark, below.keys | above.keys)


@dataclass
class _Loader:
    """Follows includes. One budget for the whole spec."""

    budget: Budget = field(default_factory=Budget)
    bytes_left: int = MAX_TOTAL_BYTES
    includes: int = 0

    def file(self, path: str, parents: tuple[str, ...], at: Mark | None = None, where: str | None = None) -> Node:
        code = "KVS105" if at else "KVS101"
        text = read_text(path, MAX_FILE_BYTES, code=code, at=at, where=where)
        self.bytes_left -= len(text)
        if self.bytes_left < 0:
            expected = f"at most {MAX_TOTAL_BYTES} bytes in a spec and all that it includes"
            raise SpecError(Diagnostic("KVS104", "the included files are too large", at, where, expected))
        root = parse(text, path, self.budget)
        include = root.get("include")
        if not isinstance(root.value, dict) or include is None:
            return root
        own = {key: child for key, child in root.value.items() if key != "include"}
        above = mapping_node(own, root.mark, {key: root.keys[key] for key in own})
        below: Node | None = None
        for index, entry in enumerate(include.items):
            place = f"$.include[{index}]" if isinstance(include.value, list) else "$.include"
            part = self.include(entry, place, (*parents, os.path.realpath(path)))
            below = part if below is None else merge(below, part)
        return above if below is None else merge(below, above)

    def include(self, entry: Node, place: str, parents: tuple[str, ...]) -> Node:
        if not isinstance(entry.value, str) or not entry.value:
            problem = f"`include` is {type_name(entry)}" if entry.value != "" else "`include` is empty"
            expected = "the path of a YAML file, or a list of them"
            raise SpecError(Diagnostic("KVS201", problem, entry.mark, place, expected))
        target = beside(entry.mark, entry.value)
        shown = printable(entry.value, 200)
        if "\0" not in target and os.path.realpath(target) in parents:
            expected = "includes that never lead back to their own file"
            raise SpecError(Diagnostic("KVS105", f"`{shown}` includes itself", entry.mark, place, expected))
        self.includes += 1
        for count, limit, words in (
            (len(parents), MAX_INCLUDE_DEPTH, "includes inside includes"),
            (self.includes, MAX_INCLUDES, "includes in all"),
        ):
            if count > limit:
                expected = f"at most {limit} {words}"
                raise SpecError(Diagnostic("KVS104", f"`{shown}` is one include too many", entry.mark, place, expected))
        part = self.file(target, parents, entry.mark, place)
        if not isinstance(part.value, dict):
            problem = f"`{shown}` holds {type_name(part)}"
            raise SpecError(Diagnostic("KVS105", problem, entry.mark, place, "a mapping of spec keys"))
        return part
