"""Storage formats of the engine: what they round to, and attention over a rotated cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.session import Session, Shape
from kvspec.engine.vllm.storage import TORCH_DTYPES, Rows, rounded
from kvspec.spec.model import EngineSpec, GenerationSpec, ModelSpec

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tuple[NDArray[np.float32], Any]:
    """Rows, and what vLLM's own kernels store for them."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(60, 64)).astype(np.float32) * np.exp(random.normal(size=(60, 1)) * 3).astype(np.float32)
    rows[:20, 7] *= 30  # an outlier, as keys have
    rows[20] = 0
    rows[21] = np.abs(rows[21])
    rows[22] = 1e-9
    rows[23, :] = np.linspace(-127, 128, 64).round() / 2
    folder = tmp_path_factory.mktemp("stock")
    np.save(folder / "rows.npy", rows)
    command = [sys.executable, str(HERE / "stock_quantizers.py"), str(folder / "rows.npy"), str(folder / "out.npz")]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return rows, np.load(folder / "out.npz")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_integers_are_quantized_as_vllm_does(stock: tuple[NDArray[np.float32], Any], bits: str) -> None:
    rows, theirs = stock
    held = rows.copy()
    storage = f"{bits}_per_token_head"
    scales = _native.quantize(storage, held)
    assert (scales.view(np.uint32) == theirs[f"{bits}_scale"].view(np.uint32)).all()
    codes = _native.encode(storage, held, scales)
    assert (codes == theirs[bits]).all()
    assert len(np.unique(codes)) > (200 if bits == "int8" else 15)
    if bits == "int8":
        negative = -rows
        assert (_native.encode(storage, negative, _native.quantize(storage, negative)) == theirs["int8_value"]).all()


@pytest.mark.parametrize("storage", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_is_rounded_as_torch_does(storage: str) -> None:
    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[storage]
    rows = torch.randn(400, 2, 64) * torch.exp(torch.randn(400, 2, 64) * 4)
    rows = rows.clamp(-440, 440)  # beyond the range torch and vLLM differ: vLLM saturates
    held = rounded(rows, storage)
    assert held.codes is None
    assert held.scales is None
    assert torch.equal(held.values, rows.to(dtype).to(torch.float32))


PROMPTS = [list(range(3, 60)), list(range(80, 90))]


def test_a_rotated_cache_gives_the_same_attention(gpt2: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the rounding, nothing is left of int4 but its rotation.
    monkeypatch.setattr(_native, "quantize", lambda _, rows, codes: np.ones(len(rows), dtype=np.float32))
    generation = GenerationSpec(max_tokens=20)
    for folder in (gpt2, llama):
        texts = []
        for hooked in (True, False):
            model, shape = ModelSpec(str(folder)), Shape(120, len(PROMPTS), None)
            engine = EngineSpec(kv_cache_gib=0.1)
            with Session(model, str(folder), engine, "int4_per_token_head", shape, hooked=hooked) as session:
                texts.append([f.token_ids for f in session.generate(PROMPTS, generation, 0)])
        assert texts[0] == texts[1]


@pytest.mark.parametrize("storage_format", TORCH_DTYPES)
def test_codes_of_a_device_are_its_bits(storage_format: str) -> None:
    """Also of NaN: float32 hardware quiets those of fp16 that signal, which read-back took for stray flips."""
    codes = np.arange(1 << 16, dtype=np.uint32)
    values = torch.from_numpy(codes.astype(np.uint16).view(np.int16)).view(TORCH_DTYPES[storage_format])
    stored, lost = Rows(values).stored(storage_format)
    np.testing.assert_array_equal(stored, codes)
    assert not lost.any()
