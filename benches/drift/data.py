"""Seeded inputs for the drift benchmarks: pairs of outputs that are identical, edited, half diverged or unrelated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("identical", "1 % edits", "half diverged", "unrelated")
LETTERS = np.frombuffer(b"etaoinshrdlcumwfgypbvk", np.uint8)
VOCAB = 32_000


def prose(rng: np.random.Generator, chars: int) -> str:
    """Text of made-up words with the frequencies of Zipf's law."""
    words = [rng.choice(LETTERS, int(n)).tobytes().decode() for n in rng.integers(2, 10, 4000)]
    weights = 1.0 / np.arange(1, len(words) + 1)
    chosen = rng.choice(len(words), chars // 2, p=weights / weights.sum())
    out, size = [], 0
    for word in chosen:
        out.append(words[word])
        size += len(out[-1]) + 1
        if size > chars:
            break
    return " ".join(out)


def edit(rng: np.random.Generator, values: NDArray[np.generic], count: int, items: NDArray[np.generic]) -> list:
    """A copy with `count` random substitutions, deletions and insertions."""
    out = values.tolist()
    for position in sorted(rng.integers(0, len(out), count).tolist(), reverse=True):
        kind, item = int(rng.integers(3)), rng.choice(items).item()
        out[position : position + (kind != 2)] = [item] if kind != 1 else []
    return out


def faulty_row(rng: np.random.Generator, kind: str, golden: NDArray, other: NDArray, items: NDArray) -> list:
    """One faulty output. Where it diverges, its length differs from the golden one by up to 10 %."""
    size = len(golden)
    length = int(size * rng.uniform(0.9, 1.1))
    if kind == "identical":
        return golden.tolist()
    if kind == "1 % edits":
        return edit(rng, golden, max(1, size // 100), items)
    keep = size // 2 if kind == "half diverged" else 0
    return golden[:keep].tolist() + other[: length - keep].tolist()


def texts(pairs: int, chars: int, kind: str, seed: int = 1) -> tuple[list[str], list[str]]:
    """Golden and faulty texts, ASCII."""
    rng = np.random.default_rng(seed)
    blob = np.frombuffer(prose(rng, max(2_000_000, 8 * chars)).encode(), np.uint8)
    golden, faulty = [], []
    for _ in range(pairs):
        start, elsewhere = rng.integers(0, len(blob) - 2 * chars, 2)
        row = blob[start : start + chars]
        other = blob[elsewhere : elsewhere + 2 * chars]
        golden.append(row.tobytes().decode())
        faulty.append(bytes(faulty_row(rng, kind, row, other, LETTERS)).decode())
    return golden, faulty


def tokens(pairs: int, length: int, kind: str, seed: int = 1) -> tuple[list[NDArray], list[NDArray]]:
    """Golden and faulty token ids, one int32 array per output."""
    rng = np.random.default_rng(seed)
    items = np.arange(VOCAB)
    golden = list(rng.integers(0, VOCAB, (pairs, length), dtype=np.int32))
    faulty = [
        np.array(faulty_row(rng, kind, row, rng.integers(0, VOCAB, 2 * length), items), np.int32) for row in golden
    ]
    return golden, faulty
