"""What the engine needs, looked up without importing it: the first thing that every engine command asks."""

from __future__ import annotations

import importlib.util

from kvspec.errors import PrerequisiteError


def require_vllm() -> None:
    """Raise `PrerequisiteError` (KVS901) where torch or vLLM is missing, before anything else is done."""
    for package in ("torch", "vllm"):
        if not _installed(package):
            raise PrerequisiteError.one(
                "KVS901",
                f"the engine needs the package `{package}`, which is not installed",
                hint="run with the `cpu` extra: `uv run --extra cpu kvspec ...`",
            )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False
