"""Speed of fault maps on a Llama-8B-shaped cache of 4,000 tokens: `python benches/maps.py [--json FILE]`.

Enumeration against two numpy ways, one core each, best of several runs:

- dense: one uniform number per bit, `random(bits) < rate`; measured on 1/64 of the cache and multiplied, since a whole
  one would take half an hour and 34 GB;
- sparse: `binomial` total, then distinct positions by drawing and `unique` until there are enough, unravelled into the
  same columns and sorted. The best that numpy offers; it is not reproducible by site, which is what a map is for.

Application against numpy's `bitwise_xor.at` on the same columns, and against a plain scatter, `cache[offsets] ^= bits`
with both computed beforehand and nothing checked (it would lose the second of two flips of a word): what memory allows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvspec import _native

LAYERS, HEADS, HEAD_SIZE, BITS, TOKENS = 32, 8, 128, 16, 4000
SHAPE = (LAYERS, 2, HEADS, TOKENS, HEAD_SIZE, BITS)
RATES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
DENSE_PART = 64
NAMES = ("layer", "kv", "head", "token", "elem", "bit")


def best(work: Callable[[], Any], seconds: float = 1.0) -> float:
    """Shortest time of a call, in seconds."""
    shortest, begin, runs = float("inf"), time.perf_counter(), 0
    while runs < 2 or (time.perf_counter() - begin < seconds and runs < 200):
        start = time.perf_counter()
        work()
        shortest, runs = min(shortest, time.perf_counter() - start), runs + 1
    return shortest


def dense(rate: float, generator: np.random.Generator) -> Any:
    """The flips of 1/64 of the cache, one draw per bit."""
    hit = generator.random(int(np.prod(SHAPE)) // DENSE_PART, dtype=np.float32) < rate
    return np.unravel_index(np.flatnonzero(hit), SHAPE)


def sparse(rate: float, generator: np.random.Generator) -> dict[str, Any]:
    """All flips: how many, then which."""
    bits = int(np.prod(SHAPE))
    total = int(generator.binomial(bits, rate))
    found = np.unique(generator.integers(0, bits, total))
    while len(found) < total:
        found = np.unique(np.concatenate([found, generator.integers(0, bits, total - len(found))]))
    columns = np.unravel_index(found, SHAPE)
    types = (np.uint16, np.uint8, np.uint16, np.uint32, np.uint16, np.uint8)
    return {name: column.astype(kind) for name, column, kind in zip(NAMES, columns, types, strict=True)}


def measure(rate: float, cache: Any) -> dict[str, float]:
    """All figures of one rate."""
    sampler = _native.Sampler(head_size=HEAD_SIZE, bits=BITS, heads=HEADS, rate=rate, mask=0xFFFF)
    # A part of the tokens at high rates, so that the columns fit into memory; reported per flip.
    tokens = TOKENS if rate < 5e-3 else TOKENS // 10
    grid: dict[str, Any] = {"key": (1, 2), "request": 0, "layers": (0, LAYERS), "tokens": (0, tokens)}
    columns = sampler.enumerate(**grid)
    flips = len(columns["bit"])
    ours = best(lambda: sampler.enumerate(**grid)) * TOKENS / tokens
    generator = np.random.default_rng(0)
    slow = best(lambda: dense(rate, generator), 0.0) * DENSE_PART
    total = best(lambda: sparse(rate, generator)) if rate < 5e-3 else float("nan")
    shape = (1, *SHAPE[:-1])
    strides = [0, *(int(np.prod(SHAPE[i + 1 : 5])) for i in range(5))]
    canonical = best(lambda: _native.apply_map(cache, columns, shape=shape, strides=strides))
    # vLLM's order: [layer, K|V, token, head, element].
    paged = [0, strides[1], strides[2], HEAD_SIZE, HEADS * HEAD_SIZE, 1]
    other = best(lambda: _native.apply_map(cache, columns, shape=shape, strides=paged))
    view = cache.reshape(SHAPE[:-1])
    at = tuple(columns[name] for name in NAMES[:-1])
    bits = (np.uint16(1) << columns["bit"].astype(np.uint16)).astype(np.uint16)
    numpy_apply = best(lambda: np.bitwise_xor.at(view, at, bits))
    offsets = sum(columns[name].astype(np.int64) * stride for name, stride in zip(NAMES[:-1], strides[1:], strict=True))

    def scatter() -> None:
        cache[offsets] ^= bits

    return {
        "rate": rate,
        "flips": flips,
        "enumerate_ms": ours * 1e3,
        "dense_ms": slow * 1e3,
        "sparse_ms": total * 1e3,
        "times_dense": slow / ours,
        "times_sparse": total / ours,
        "apply_mflips_s": flips / canonical / 1e6,
        "apply_paged_mflips_s": flips / other / 1e6,
        "numpy_apply_mflips_s": flips / numpy_apply / 1e6,
        "plain_scatter_mflips_s": flips / best(scatter) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    cache = np.zeros(int(np.prod(SHAPE[:-1])), np.uint16)
    cache += 1  # so that every page is there
    print(f"{platform.machine()}, {cpu()}, numpy {np.__version__}, cache {cache.nbytes / 2**20:.0f} MiB, one core")
    columns = "x dense  x sparse   apply  paged  numpy  plain Mflips/s"
    print(f"    rate      flips  enumerate ms   dense ms  sparse ms  {columns}")
    rows = []
    for rate in RATES:
        row = measure(rate, cache)
        rows.append(row)
        print(
            f"{rate:8.0e} {row['flips']:10d} {row['enumerate_ms']:13.3f} {row['dense_ms']:10.0f} "
            f"{row['sparse_ms']:10.3f} {row['times_dense']:8.0f} {row['times_sparse']:9.2f} "
            f"{row['apply_mflips_s']:7.1f} {row['apply_paged_mflips_s']:6.1f} {row['numpy_apply_mflips_s']:6.1f} "
            f"{row['plain_scatter_mflips_s']:6.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": cpu(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
