"""Who may import whom (docs/design/architecture.md), read from the code itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kvspec"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "stats": set(),
    "spec": {"errors", "stats", "_native"},
    "bundled": {"errors"},
    "models": {"errors", "spec", "bundled"},
    "plan": {"errors", "stats", "spec", "models", "_native"},
    "records": {"errors"},
    "maps": {"errors", "stats", "spec", "models", "plan", "records", "_native"},
    "score": {"errors", "stats", "spec", "models", "plan", "records", "_native"},
    "report": {"errors", "score"},
    "engine": {"errors", "spec", "models", "bundled", "plan", "records", "_native"},
    "replay": {"errors", "spec", "models", "records", "maps", "engine"},
    "vllm": {"errors", "spec", "models", "plan", "engine"},
    "search": {"errors", "stats", "spec", "models", "plan", "records", "maps", "score", "engine"},
    "verify": {"errors", "spec", "models", "plan", "records", "maps", "engine", "_native"},
    "cli": {
        "errors",
        "spec",
        "bundled",
        "models",
        "plan",
        "engine",
        "records",
        "score",
        "report",
        "maps",
        "replay",
        "search",
        "verify",
        "_native",
    },
}
HEAVY = {"torch", "vllm", "transformers", "triton"}
MAY_BE_HEAVY = {"engine", "bundled"}


def modules() -> list[Path]:
    entry_points = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    return sorted(p for p in PACKAGE.rglob("*.py") if p not in entry_points)


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_pipeline(path: Path) -> None:
    me = owner(path)
    assert me in MAY_IMPORT, f"{me} has no place in the architecture"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "kvspec" and len(parts) > 1 and parts[1] not in ("__version__", me):
            assert parts[1] in MAY_IMPORT[me], f"{path.name} imports {name}"
        if parts[0] in HEAVY:
            assert me in MAY_BE_HEAVY, f"{path.name} imports {name}"


def test_every_part_of_the_table_exists() -> None:
    assert {owner(p) for p in modules()} == set(MAY_IMPORT)


def test_kernels_know_nothing_of_kvspec() -> None:
    for path in (ROOT / "kernels" / "kvspec_kernels").rglob("*.py"):
        assert not any(name.split(".")[0] == "kvspec" for name in imports(path)), path


def test_the_core_knows_neither_python_nor_unsafe() -> None:
    manifest = (ROOT / "rust" / "kvspec-core" / "Cargo.toml").read_text(encoding="utf-8")
    assert "pyo3" not in manifest
    assert 'unsafe_code = "forbid"' in (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    for crate in ("kvspec-core", "kvspec-py"):
        manifest = (ROOT / "rust" / crate / "Cargo.toml").read_text(encoding="utf-8")
        assert "workspace = true" in manifest.split("[lints]")[1]
