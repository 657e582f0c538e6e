"""What stock vLLM stores on a GPU is what kvspec emulates on a CPU: codes and scales of the same K and V.

fp8_e4m3 is equal for every bf16 value. Of int8 and int4 a compiled kernel divides with another last bit than IEEE's
(`div.full` of PTX: two units in the last place), which moves a scale by as much, and a code by one step where its
quotient lies at a tie, or a zero point, and the codes of its row with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvspec import _native

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
BLOCK, HEADS, DIM = 16, 2, 64
ULPS = 2
MARGIN = 2.0**-12
"""How near to a tie two roundings may differ: four times what a quotient of 127 may be off."""
Write = Callable[..., None]


def every_bf16() -> torch.Tensor:
    """`[tokens, H, D]`: all 65,536 of them, subnormals, both zeros, infinities and NaN included."""
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return codes.view(torch.bfloat16).view(-1, HEADS, DIM)


def cuda_write(*args: torch.Tensor) -> None:
    """That of FLASH_ATTN."""
    from vllm._custom_ops import reshape_and_cache_flash

    one = torch.ones((), device=DEVICE)
    reshape_and_cache_flash(*args, "fp8_e4m3", one, one)


def triton_write(*args: torch.Tensor) -> None:
    """That of TRITON_ATTN."""
    from vllm.v1.attention.ops.triton_reshape_and_cache_flash import triton_reshape_and_cache_flash

    one = torch.ones((), device=DEVICE)
    triton_reshape_and_cache_flash(*args, "fp8_e4m3", one, one)


@pytest.mark.parametrize("kind", ["numbers", "NaN"])
@pytest.mark.parametrize("write", [cuda_write, triton_write], ids=["FLASH_ATTN", "TRITON_ATTN"])
def test_every_bf16_value_becomes_the_fp8_code_of_the_emulation(write: Write, kind: str) -> None:
    rows = every_bf16()
    tokens = len(rows)
    key, value = rows.to(DEVICE), rows.flip(0).to(DEVICE)
    cache = torch.zeros(tokens // BLOCK, 2, BLOCK, HEADS, DIM, dtype=torch.uint8, device=DEVICE)
    write(key, value, *cache.unbind(1), torch.arange(tokens, device=DEVICE))
    native = cache.transpose(0, 1).reshape(2, tokens, HEADS, DIM).cpu().numpy()
    for plane, given in zip(native, (rows, rows.flip(0)), strict=True):
        held = given.float().contiguous().numpy()
        wanted = np.isnan(held) if kind == "NaN" else ~np.isnan(held)
        _native.quantize("fp8_e4m3", held.reshape(-1, DIM))
        expected = _native.encode("fp8_e4m3", held)
        assert len(np.unique(expected[wanted])) == (1 if kind == "NaN" else 254)
        np.testing.assert_array_equal(plane[wanted], expected[wanted])


def rows_of_every_kind() -> torch.Tensor:
    """bf16 `[512, H, D]`: random rows from 1e-30 to 1e30, with outliers, of one sign, subnormal, all zero (of either
    sign), and with quotients that are ties."""
    random = torch.Generator().manual_seed(11)
    rows = torch.randn(512, HEADS, DIM, generator=random) * torch.logspace(-30, 30, 512)[:, None, None]
    rows[256:] = torch.randn(256, HEADS, DIM, generator=random) * torch.logspace(-2, 2, 256)[:, None, None]
    rows[:100, :, 7] *= 30
    rows[100:120] = rows[100:120].abs()
    rows[120:140] = -rows[120:140].abs()
    rows[140], rows[141], rows[142] = 0.0, -0.0, 1e-39
    rows[143] = torch.linspace(-127, 127, DIM).mul(2).round() / 2
    rows[144] = torch.arange(DIM) % 31 / 2 - 7.5
    rows[145, :, 3] = float(torch.finfo(torch.bfloat16).smallest_normal)
    return rows.to(torch.bfloat16)


def quantized(
    storage_format: str, key: torch.Tensor, value: torch.Tensor
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes `[2, tokens, H, D]` and scales `[2, tokens, H]` as the Triton backend stores them; of int4 behind its
    rotation, which the engine takes from vLLM."""
    from vllm.v1.attention.ops import int4_per_token_head as int4
    from vllm.v1.attention.ops import triton_reshape_and_cache_flash as int8
    from vllm.v1.kv_cache_interface import KVQuantMode

    tokens = len(key)
    packed = storage_format == "int4_per_token_head"
    shape = (tokens // BLOCK, BLOCK, HEADS, DIM // 2 if packed else DIM)
    codes = [torch.zeros(shape, dtype=torch.uint8 if packed else torch.int8, device=DEVICE) for _ in range(2)]
    scales = [torch.zeros(shape[:-1], device=DEVICE) for _ in range(2)]
    caches = dict(zip(("key_cache", "value_cache", "k_scale_cache", "v_scale_cache"), codes + scales, strict=True))
    given = {"key": key.to(DEVICE), "value": value.to(DEVICE), **caches}
    given["slot_mapping"] = torch.arange(tokens, device=DEVICE)
    if packed:
        int4._run_reshape_kernel(int4._reshape_cache_int4_kernel, **given, packing_factor=2)
        codes = [torch.stack([both & 15, both >> 4], dim=-1) for both in codes]
    else:
        mode = KVQuantMode.INT8_PER_TOKEN_HEAD
        int8.triton_reshape_and_cache_flash_per_token_head_quant(**given, kv_quant_mode=mode)
    found = torch.stack([plane.reshape(tokens, HEADS, DIM) for plane in codes]).cpu().numpy().view(np.uint8)
    return found, torch.stack([plane.reshape(tokens, HEADS) for plane in scales]).cpu().numpy()


@pytest.mark.parametrize("storage_format", ["int8_per_token_head", "int4_per_token_head"])
def test_integers_and_their_scales_are_those_of_the_emulation(storage_format: str) -> None:
    rows = rows_of_every_kind()
    key, value = rows, -rows.flip(0)
    native, native_scales = quantized(storage_format, key, value)
    held = torch.stack([key, value]).float()
    codes = np.empty(held.shape, np.uint8)
    scales = _native.quantize(storage_format, held.clone().reshape(-1, DIM).numpy(), codes.reshape(-1, DIM))
    agree(storage_format, held.numpy(), (codes, scales.reshape(held.shape[:-1])), (native, native_scales))


def agree(
    storage_format: str,
    rows: NDArray[np.float32],
    expected: tuple[NDArray[np.uint8], NDArray[np.float32]],
    native: tuple[NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    """Codes `[..., D]` and scales `[...]` of float32 `rows` from both sides are equal, or differ as said above."""
    packed = storage_format == "int4_per_token_head"
    (codes, scale_bits), (found, found_bits) = (
        (side[0], side[1].view(np.uint32).astype(int)) for side in (expected, native)
    )
    unit = 16 if packed else 1  # int4 keeps its zero point in the low four bits
    assert abs(scale_bits // unit - found_bits // unit).max() <= (1 if packed else ULPS)
    scales = (scale_bits // unit * unit).astype(np.uint32).view(np.float32).astype(float)[..., None]
    exact = rows / scales
    zeros, found_zeros = ((bits % unit)[..., None] for bits in (scale_bits, found_bits))
    if packed:
        exact_zeros = np.clip(-rows.astype(float).min(-1, keepdims=True) / scales, 0, 15)
        for zero in (zeros, found_zeros):
            assert (abs(zero - exact_zeros) <= 0.5 + MARGIN).all()
        sides = [(codes.astype(int), exact + zeros), (found.astype(int), exact + found_zeros)]
    else:
        sides = [(side.view(np.int8).astype(int), exact) for side in (codes, found)]
    low, high = (0, 15) if packed else (-128, 127)
    for side, quotient in sides:
        assert (abs(side - np.clip(quotient, low, high)) <= 0.5 + MARGIN).all()
    same = np.broadcast_to(zeros == found_zeros, codes.shape)
    tie = abs(abs(exact % 1) - 0.5) <= MARGIN
    np.testing.assert_array_equal(found[same & ~tie], codes[same & ~tie])
    assert (same & ~tie).mean() > 0.9
