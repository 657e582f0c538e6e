"""Rewrite the pins in pyproject.toml from a fresh resolution: `python3 tools/pins.py`.

`uv.lock` holds addresses of a package index and stays out of git; names and versions alone go into
`[tool.uv] constraint-dependencies`. A package that the `cpu` and `cuda` extras need in different versions is pinned by
those extras themselves, so it is left out here.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
BEGIN, END = "# pins: begin (tools/pins.py)", "# pins: end"


def export(extra: str) -> dict[str, set[str]]:
    """Requirement lines of one extra, by package name."""
    command = ["uv", "export", "--no-hashes", "--no-emit-workspace", "--no-annotate", "--no-header", "--extra", extra]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=PYPROJECT.parent).stdout
    lines: dict[str, set[str]] = defaultdict(set)
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)==", line):
            lines[match[1]].add(line.strip())
    return lines


def pins() -> list[str]:
    """Constraints on which all extras agree."""
    sides = [export("cpu"), export("cuda")]
    agreed = []
    for name in sorted(set().union(*sides)):
        found = [side[name] for side in sides if name in side]
        if all(lines == found[0] for lines in found):
            agreed += sorted(found[0])
    return agreed


def write(constraints: list[str]) -> None:
    """Put the block into pyproject.toml, replacing the old one."""
    text = PYPROJECT.read_text(encoding="utf-8")
    quoted = "".join(f"    {_toml(line)},\n" for line in constraints)
    block = f"{BEGIN}\nconstraint-dependencies = [\n{quoted}]\n{END}\n"
    if BEGIN in text:
        head, rest = text.split(BEGIN)
        text = head + block + rest.split(END + "\n", 1)[1]
    else:
        text = text.replace("[tool.uv]\n", f"[tool.uv]\n{block}", 1)
    tomllib.loads(text)
    PYPROJECT.write_text(text, encoding="utf-8")


def _toml(line: str) -> str:
    return "'" + line + "'" if '"' in line else '"' + line + '"'


if __name__ == "__main__":
    write([])  # an old pin must not hold the new resolution back
    found = pins()
    write(found)
    print(f"{len(found)} pins")
