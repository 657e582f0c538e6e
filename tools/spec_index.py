"""`specs/README.md` from the specs themselves: `python3 tools/spec_index.py`, or `--check` to see if it is current.

Every spec states its question, hypothesis and decision rule in the keys `x-question`, `x-hypothesis` and `x-decision`.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvspec.plan import compile_plan
from kvspec.spec import load_spec
from kvspec.spec.load import load_tree

SPECS = Path(__file__).parent.parent / "specs"
INDEX = SPECS / "README.md"
PAGES = SPECS.parent / "docs" / "results"
NOTES = ("question", "hypothesis", "decision")
LISTS = ("contrasts", "equal-flips")

HEAD = """# Specs

Generated from the files by `python3 tools/spec_index.py`; edit those. Every one runs as it is:
`kvspec plan specs/NAME.yaml` shows what it will do, `kvspec run specs/NAME.yaml` does it.
Without network add `--set model.id=bundled:smollm2` to those of hub models. Tens of thousands of trials are for a GPU.

A cell is a fault at one rate and place, n its trials over all prompts; trials are all requests, with golden and the
controls. "found" leads to what was measured, often with more trials than the spec asks for by itself.
"""


def notes(path: Path) -> dict[str, str]:
    """The `x-` notes of a spec, by name without `x-`; empty texts where it has none."""
    root = load_tree(path)
    found = {}
    for name in (*NOTES, "guide", "caution"):
        node = root.get(f"x-{name}")
        found[name] = "" if node is None else " ".join(str(node.plain()).split())
    return found


def decision_at(name: str, when: str) -> str:
    """The decision rule of a spec of the library at a time (ISO 8601), by the history of this repository.

    Empty where the history has no such spec that early, or is not there: a rule that cannot be shown to be older than
    a run is not.
    """
    if shutil.which("git") is None:
        return ""
    wanted = ["git", "log", "-1", "--format=%H", f"--before={when}", "--", SPECS.name]
    commit = subprocess.run(wanted, cwd=SPECS.parent, capture_output=True, text=True, check=False).stdout.strip()
    if not commit:
        return ""
    archive = ["git", "archive", commit, SPECS.name]
    files = subprocess.run(archive, cwd=SPECS.parent, capture_output=True, check=True).stdout
    with TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(files)) as tar:
        tar.extractall(folder, filter="data")
        file = Path(folder) / SPECS.name / f"{name}.yaml"
        return notes(file)["decision"] if file.is_file() else ""


def declared(path: Path) -> dict[str, Any]:
    """What `tools/results.py` makes of a spec's runs, as plain data or `None`.

    `contrasts`: lists of cell names, two to compare or more for a trend. `equal-flips`: pairs of series of cells.
    `published`: figures of others by bit. `answer`: the test that decides, and its outcomes in words. `see`: a
    test of single flips of another spec that bears on the question, and what it shows in words. `model`: its id.
    """
    root = load_tree(path)
    nodes = {name: root.get(f"x-{name}") for name in (*LISTS, "published", "answer", "see")}
    found = {name: None if node is None else node.plain() for name, node in nodes.items()}
    model = root.get("model")
    return {**found, "model": None if model is None else model.plain()["id"]}


def render() -> str:
    """The index."""
    parts = [
        HEAD,
        "| spec | question | model | cells | prompts | n per cell | trials | found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    details = []
    for path in sorted(SPECS.glob("*.yaml")):
        plan = compile_plan(load_spec(path))
        said = notes(path)
        question = said["question"] or plan.spec.description or "see the file"
        page = PAGES / f"{path.stem}.md"
        found = f"[results](../{page.relative_to(SPECS.parent)})" if page.is_file() else "-"
        parts.append(
            f"| [{path.stem}]({path.name}) | {question} | `{plan.spec.model.id}` | {len(plan.cells)} | "
            f"{plan.requests:,} | {plan.trials_per_cell:,} | {len(plan):,} | {found} |"
        )
        if said["hypothesis"]:
            details.append(f"## {path.stem}\n\n{question}\n")
            details.append(f"- Hypothesis: {said['hypothesis']}\n- Decision: {said['decision']}")
            if said["guide"]:
                details.append(f"- In the guide: {said['guide']}")
            details.append("")
    return "\n".join([*parts, "", *details]).rstrip("\n") + "\n"


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if INDEX.read_text(encoding="utf-8") == text else "specs/README.md is not current")
    INDEX.write_text(text, encoding="utf-8")
