"""The start-up canary must stop a broken injector. Each test breaks one thing on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvspec.errors import EngineError

SPEC: dict[str, Any] = {
    "prompts": {"inline": ["The capital of France is"]},
    "generation": {"max_tokens": 2},
    "faults": [{"name": "F", "model": "random", "site": "KV_WRITE", "rate": {"per_bit": 1e-3}}],
    "trials": 1,
}


def layer_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.cpu import CpuInjector as Injector

    original = Injector._after_write

    def shifted(self: Any, layer: int, written: Any) -> None:
        faults = self._writes
        self._writes = None if faults is None else _Shifted(faults, len(self.layers))
        original(self, layer, written)
        self._writes = faults

    monkeypatch.setattr(Injector, "_after_write", shifted)


class _Shifted:
    """Step faults whose layers are off by one."""

    def __init__(self, faults: Any, layers: int) -> None:
        self._faults, self._layers = faults, layers

    def layer_len(self, layer: int) -> int:
        return int(self._faults.layer_len((layer + 1) % self._layers))

    def inject(self, layer: int, *args: Any, **kwargs: Any) -> None:
        self._faults.inject((layer + 1) % self._layers, *args, **kwargs)


def dropped_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm import cpu as injector

    class Dropping:
        def __init__(self, faults: Any) -> None:
            self._faults = faults

        def __getattr__(self, name: str) -> Any:
            return getattr(self._faults, name)

        def __len__(self) -> int:
            return len(self._faults)

        def layer_len(self, layer: int) -> int:
            return 0 if layer == 1 else int(self._faults.layer_len(layer))

    original = injector.CpuInjector._begin_step

    def begin(self: Any, *args: Any) -> None:
        original(self, *args)
        if self._writes is not None:
            self._writes = Dropping(self._writes)

    monkeypatch.setattr(injector.CpuInjector, "_begin_step", begin)


def transposed_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm import cpu as injector

    original = injector.probe

    def swapped(*args: Any) -> Any:
        layout = original(*args)
        offsets = layout.offsets.copy()
        offsets[:, [0, 1]] = offsets[:, [1, 0]]
        return type(layout)(np.ascontiguousarray(offsets), layout.block_stride)

    monkeypatch.setattr(injector, "probe", swapped)


def wrong_format(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from kvspec.engine.vllm import storage

    monkeypatch.setitem(storage.TORCH_DTYPES, "bf16", torch.float16)


def scales_of_another_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm import cpu as injector

    original = injector._store_rows

    def shifted(store: Any, rows: Any, slots: Any) -> None:
        original(store, np.roll(rows, 1, axis=1) if rows.ndim == 3 else rows, slots)

    monkeypatch.setattr(injector, "_store_rows", shifted)


def wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.table import TableData

    original = TableData.build

    def build(self: Any, geometry: Any) -> Any:
        self.write_key[:, 0] ^= 1
        return original(self, geometry)

    monkeypatch.setattr(TableData, "build", build)


def rows_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvspec.engine.vllm.step import Requests, Step

    original = Requests.step

    def shifted(self: Any, *args: Any) -> Step:
        step = original(self, *args)
        return Step(step.row, step.entry, np.ascontiguousarray(step.start + np.uint32(1)), step.count)

    monkeypatch.setattr(Requests, "step", shifted)


@pytest.mark.parametrize(
    "sabotage", [layer_off_by_one, dropped_flips, transposed_layout, wrong_format, wrong_key, rows_off_by_one]
)
def test_the_canary_stops_a_broken_injector(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    gpt2: Path,
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(EngineError) as caught:
        run({**SPEC, "model": {"id": str(gpt2)}})
    assert caught.value.diagnostics[0].code == "KVS403"


def test_scales_at_wrong_places_are_found(gpt2: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scales_of_another_token(monkeypatch)
    with pytest.raises(EngineError) as caught:
        run({**SPEC, "model": {"id": str(gpt2), "kv_cache_dtype": "int8_per_token_head"}})
    assert caught.value.diagnostics[0].code == "KVS403"


def test_an_honest_injector_passes(gpt2: Path, run: Callable[..., Any]) -> None:
    assert run({**SPEC, "model": {"id": str(gpt2)}})
