"""What the GPU tools work out from what an engine gave them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvspec import _native
from kvspec.engine.session import ON_NO_BACKEND, QUANTIZED, STORAGE_DTYPES, Shape, _settings
from kvspec.errors import EngineError
from kvspec.spec.model import STORAGE_FORMATS, EngineSpec, ModelSpec
from tools import gpu_session
from tools.gpu.floor import _difference
from tools.gpu.variants import compared


@pytest.mark.parametrize("storage", ["int8_per_token_head", "int4_per_token_head"])
def test_codes_are_compared_one_by_one(storage: str) -> None:
    rows = np.random.default_rng(5).normal(size=(2, 16, 3, 64)).astype(np.float32)
    held = rows.copy()
    scales = _native.quantize(storage, held.reshape(-1, 64)).reshape(2, 16, 3)
    native = _native.encode(storage, held, scales).astype(np.uint8)
    assert compared(storage, rows, native, scales) == {
        "codes": 6144, "codes_equal": 6144, "codes_most_apart": 0,
        "scales": 96, "scales_equal": 96, "scales_most_apart": 0,
    }  # fmt: skip
    mask = (1 << _native.format_bits(storage)) - 1
    native[0, 1, 2, 3] = (native[0, 1, 2, 3] + 1) & mask  # next to the highest code lies the lowest
    native[1, 0, 0, 0] = (native[1, 0, 0, 0] - 2) & mask
    scales[1, 2, 0] = np.nextafter(scales[1, 2, 0], np.float32(9))
    found = compared(storage, rows, native, scales)
    assert (found["codes_equal"], found["codes_most_apart"]) == (6142, 2)
    assert (found["scales_equal"], found["scales_most_apart"]) == (95, 1)


def test_an_answer_of_stock_vllm_differs_where_it_leaves_the_one_alone() -> None:
    def answer(*tokens: int) -> Any:
        likely = [{1: SimpleNamespace(logprob=-0.25), 2: SimpleNamespace(logprob=-1.5)} for _ in tokens]
        return SimpleNamespace(token_ids=tokens, logprobs=likely)

    assert _difference(answer(1, 2, 3), answer(1, 2, 3)) is None
    assert _difference(answer(1, 2, 3), answer(1, 7, 3)) == {"token": 1, "margin": 1.25}


def test_settings_of_the_floor_share_the_gpus(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    seen: dict[str, str] = {}

    def part(*_: Any, name: str, extra: dict[str, str]) -> dict[str, Any]:
        seen[name] = extra["CUDA_VISIBLE_DEVICES"]
        return {}

    monkeypatch.setattr(gpu_session, "part", part)
    gpu_session.floor(tmp_path, tmp_path, 60, gpu_session.FLOOR[:3])
    assert sorted(seen.values()) == ["2", "2", "5"]


def test_every_format_is_native_on_a_gpu_or_refused_by_name() -> None:
    def settings(storage: str) -> dict[str, Any]:
        return _settings(ModelSpec("m"), "m", EngineSpec(), storage, Shape(64, 4, None), "cuda")

    assert set(STORAGE_FORMATS) == {*STORAGE_DTYPES, *QUANTIZED, *ON_NO_BACKEND}
    for storage in QUANTIZED:
        assert settings(storage)["kv_cache_dtype"] == storage
    with pytest.raises(EngineError, match=r"fp8_e5m2 cache is not injected on a GPU: FLASH_ATTN") as error:
        settings("fp8_e5m2")
    assert error.value.diagnostics[0].code == "KVS401"


def test_variants_are_compared_in_the_trials_that_they_share(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"flips": {"a": 3, "b": 1}, "token_ids": {"a": [1], "b": [2]}},
        {"flips": {"a": 3, "b": 2, "scales": 9}, "token_ids": {"a": [7], "b": [2], "scales": [5]}},
        {"process": {"exit": 1}},
    ]
    monkeypatch.setattr(gpu_session, "part", lambda *_, name, **__: found[int(name[-1])])
    same, other, failed = gpu_session.variants(tmp_path, tmp_path, 60, [{"n": n} for n in range(3)]).values()
    assert same == {"flips_as_first": [2, 2], "outputs_as_first": [2, 2]}
    assert other == {"flips_as_first": [1, 2], "outputs_as_first": [1, 2]}
    assert failed == {"process": {"exit": 1}}
