# ruff: noqa: N803 - compile-time arguments are upper case, as everywhere in Triton
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from kernel_golden import DOCUMENT
from kernel_rig import DEVICE
from kvspec_kernels.philox import bounded, draw, join, philox, read_key

from kvspec import _native


@triton.jit
def words_kernel(in_ptr, out_ptr, N: tl.constexpr):
    """in: [6, N] counter and key; out: [4, N]."""
    i = tl.arange(0, N)
    c0 = tl.load(in_ptr + i).to(tl.uint32, bitcast=True)
    c1 = tl.load(in_ptr + N + i).to(tl.uint32, bitcast=True)
    c2 = tl.load(in_ptr + 2 * N + i).to(tl.uint32, bitcast=True)
    c3 = tl.load(in_ptr + 3 * N + i).to(tl.uint32, bitcast=True)
    k0 = tl.load(in_ptr + 4 * N + i).to(tl.uint32, bitcast=True)
    k1 = tl.load(in_ptr + 5 * N + i).to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + i, w0.to(tl.int32, bitcast=True))
    tl.store(out_ptr + N + i, w1.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 2 * N + i, w2.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 3 * N + i, w3.to(tl.int32, bitcast=True))


@triton.jit
def draws_kernel(in_ptr, bounds_ptr, draws_ptr, bounded_ptr, DOMAIN: tl.constexpr, N: tl.constexpr):
    """Draws 0 .. N - 1 of one cell (in: 5 words), and each bounded."""
    c0 = tl.load(in_ptr).to(tl.uint32, bitcast=True)
    c1 = tl.load(in_ptr + 1).to(tl.uint32, bitcast=True)
    c2 = tl.load(in_ptr + 2).to(tl.uint32, bitcast=True)
    k0 = tl.load(in_ptr + 3).to(tl.uint32, bitcast=True)
    k1 = tl.load(in_ptr + 4).to(tl.uint32, bitcast=True)
    i = tl.arange(0, N)
    number = draw(c0, c1, c2, k0, k1, DOMAIN, i)
    tl.store(draws_ptr + i, number.to(tl.int64, bitcast=True))
    tl.store(bounded_ptr + i, bounded(number, tl.load(bounds_ptr + i)))


@triton.jit
def read_key_kernel(in_ptr, out_ptr, N: tl.constexpr):
    """in: [4, N] master, request, step; out: [2, N]."""
    i = tl.arange(0, N)
    master0 = tl.load(in_ptr + i).to(tl.uint32, bitcast=True)
    master1 = tl.load(in_ptr + N + i).to(tl.uint32, bitcast=True)
    request = tl.load(in_ptr + 2 * N + i).to(tl.uint32, bitcast=True)
    step = tl.load(in_ptr + 3 * N + i).to(tl.uint32, bitcast=True)
    key0, key1 = read_key(master0, master1, request, step)
    tl.store(out_ptr + i, key0.to(tl.int32, bitcast=True))
    tl.store(out_ptr + N + i, key1.to(tl.int32, bitcast=True))


@triton.jit
def join_kernel(out_ptr):
    high = tl.load(out_ptr).to(tl.uint32)
    tl.store(out_ptr, join(high, high ^ 1).to(tl.int64, bitcast=True))


def device_words(values) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.uint32).view(np.int32).copy()).to(DEVICE)


def run_philox(counters, keys):
    n = triton.next_power_of_2(len(counters))
    columns = np.zeros((6, n), np.uint32)
    columns[:4, : len(counters)] = np.array(counters, np.uint32).T
    columns[4:, : len(keys)] = np.array(keys, np.uint32).T
    out = torch.zeros(4, n, dtype=torch.int32, device=DEVICE)
    words_kernel[(1,)](device_words(columns), out, N=n)
    return [tuple(w) for w in out.cpu().numpy().view(np.uint32).T[: len(counters)].tolist()]


def test_published_answers():
    rows = DOCUMENT["philox4x32_10"]
    counters, keys, words = ([[int(x, 16) for x in row[name]] for row in rows] for name in ("counter", "key", "out"))
    assert run_philox(counters, keys) == [tuple(w) for w in words]


def test_blocks_equal_rust():
    rng = np.random.default_rng(1)
    counters, keys = rng.integers(0, 2**32, (64, 4)).tolist(), rng.integers(0, 2**32, (64, 2)).tolist()
    expected = [_native.philox(tuple(c), tuple(k)) for c, k in zip(counters, keys, strict=True)]
    assert run_philox(counters, keys) == expected


@pytest.mark.parametrize("domain", range(6))
def test_draws_and_bounded_numbers(domain):
    rng = np.random.default_rng(domain)
    n, words = 64, rng.integers(0, 2**32, 5).tolist()
    bounds = np.concatenate([[1, 2, 3, 2**31 - 1], rng.integers(1, 2**31, n - 4)]).astype(np.int32)
    draws, numbers = torch.zeros(n, dtype=torch.int64, device=DEVICE), torch.zeros(n, dtype=torch.int32, device=DEVICE)
    draws_kernel[(1,)](device_words(words), torch.from_numpy(bounds).to(DEVICE), draws, numbers, DOMAIN=domain, N=n)
    for d in range(n):
        block = _native.philox((*words[:3], domain << 24 | d >> 1), tuple(words[3:]))
        high, low = block[2 * (d & 1) :][:2]
        expected = high << 32 | low
        assert int(draws.cpu().numpy().view(np.uint64)[d]) == expected
        assert int(numbers[d]) == expected * int(bounds[d]) >> 64


def test_read_keys():
    row = DOCUMENT["keys"][0]
    master = tuple(int(x, 16) for x in row["read_master"])
    steps = [int(step) for step in row["read_key_of_step"]]
    keys = [tuple(int(x, 16) for x in key) for key in row["read_key_of_step"].values()]
    assert keys == [_native.read_key(master, row["request"], step) for step in steps]
    n = triton.next_power_of_2(len(steps))
    columns = np.zeros((4, n), np.uint32)
    columns[:, : len(steps)] = [
        [master[0]] * len(steps),
        [master[1]] * len(steps),
        [row["request"]] * len(steps),
        steps,
    ]
    out = torch.zeros(2, n, dtype=torch.int32, device=DEVICE)
    read_key_kernel[(1,)](device_words(columns), out, N=n)
    assert [tuple(k) for k in out.cpu().numpy().view(np.uint32).T[: len(steps)].tolist()] == keys


def test_join_keeps_all_64_bits():
    out = torch.tensor([0xFFFFFFFE], dtype=torch.int64, device=DEVICE)
    join_kernel[(1,)](out)
    assert int(out.cpu().numpy().view(np.uint64)[0]) == 0xFFFFFFFE_FFFFFFFF
