"""Fixtures of the engine tests: tiny models once per session, and a runner of small campaigns."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="engine tests need the `cpu` extra")

HERE = Path(__file__).parent


def _load_tiny() -> Any:
    # pytest's importlib mode puts no test folder on sys.path.
    spec = importlib.util.spec_from_file_location("kvspec_tests_tiny", HERE / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session", autouse=True)
def frozen_imports() -> None:
    """vLLM collects garbage eight times per engine, each time through all that importing it left: seconds per engine.

    That heap holds no engine, so it is set aside for good; what engines leave behind is collected as before.
    """
    import vllm.v1.engine.llm_engine  # noqa: F401

    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None  # vLLM would take it back when an engine ends


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _load_tiny().make_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _load_tiny().make_llama(tmp_path_factory.mktemp("llama"))


class Listener:
    """An observer that remembers, and can interrupt."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.records: list[Any] = []
        self.warnings: list[Any] = []
        self._interrupt_after = interrupt_after

    def phase(self, text: str) -> None: ...

    def warn(self, warning: Any) -> None:
        self.warnings.append(warning)

    def start(self, total: int, done: int) -> None: ...

    def shrink(self, total: int) -> None: ...

    def step(self) -> None: ...

    def trial(self, record: Any, identical: bool | None) -> None:
        self.records.append(record)
        if len(self.records) == self._interrupt_after:
            raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Run a spec given as data; the records by trial id."""
    from kvspec.engine.campaign import run_campaign
    from kvspec.plan import compile_plan
    from kvspec.records import RunStore
    from kvspec.spec import load_spec

    count = iter(range(1000))

    def run_spec(
        spec: dict[str, Any], *, out: Path | None = None, listener: Listener | None = None, **settings: Any
    ) -> dict[str, dict[str, Any]]:
        import json

        number = next(count)
        path = tmp_path / f"spec{number}.yaml"
        data = {"kvspec": 1, "name": "test", **spec, "engine": {**spec.get("engine", {}), **settings}}
        path.write_text(json.dumps(data), encoding="utf-8")  # JSON is YAML
        folder = out or tmp_path / f"run{number}"
        run_campaign(compile_plan(load_spec(path)), folder, listener or Listener())
        return {row["trial_id"]: row for row in RunStore.open(folder).table().to_pylist()}

    return run_spec


@pytest.fixture
def listener() -> type[Listener]:
    return Listener
