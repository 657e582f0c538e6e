"""vLLM's own int8 and int4 cache writes, run by Triton's interpreter: the oracle of `test_storage.py`.

A process of its own, because TRITON_INTERPRET and Triton itself must be there before vLLM looks for a driver.
Usage: TRITON_INTERPRET=1 python stock_quantizers.py rows.npy out.npz, with rows float32 `[rows, D]`.
"""

from __future__ import annotations

import sys
import types

import numpy as np
import torch
import triton
import triton.language

stub = types.ModuleType("vllm.triton_utils")
stub.triton = triton  # type: ignore[attr-defined]
stub.tl = triton.language  # type: ignore[attr-defined]
stub.HAS_TRITON = True  # type: ignore[attr-defined]
sys.modules["vllm.triton_utils"] = stub

from vllm.v1.attention.ops import int4_per_token_head as int4  # noqa: E402
from vllm.v1.attention.ops import triton_reshape_and_cache_flash as int8  # noqa: E402
from vllm.v1.kv_cache_interface import KVQuantMode  # noqa: E402

rows = torch.from_numpy(np.load(sys.argv[1]))
n, dim = rows.shape
key = rows.view(n, 1, dim)
slots = torch.arange(n)


def caches(width: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "key_cache": torch.zeros(1, n, 1, width, dtype=dtype),
        "value_cache": torch.zeros(1, n, 1, width, dtype=dtype),
        "k_scale_cache": torch.zeros(1, n, 1),
        "v_scale_cache": torch.zeros(1, n, 1),
    }


wide = caches(dim, torch.int8)
int8.triton_reshape_and_cache_flash_per_token_head_quant(
    key, -key, **wide, slot_mapping=slots, kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD
)
packed = caches(dim // 2, torch.uint8)
# Behind the rotation, which the engine takes from vLLM.
int4._run_reshape_kernel(
    int4._reshape_cache_int4_kernel, key=key, value=-key, **packed, slot_mapping=slots, packing_factor=2
)
pairs = packed["key_cache"].view(n, dim // 2)
np.savez(
    sys.argv[2],
    int8=wide["key_cache"].view(n, dim).numpy().view(np.uint8).astype(np.uint32),
    int8_value=wide["value_cache"].view(n, dim).numpy().view(np.uint8).astype(np.uint32),
    int8_scale=wide["k_scale_cache"].view(n).numpy(),
    int4=torch.stack([pairs & 15, pairs >> 4], dim=-1).view(n, dim).numpy().astype(np.uint32),
    int4_scale=packed["k_scale_cache"].view(n).numpy(),
)
