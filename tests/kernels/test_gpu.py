"""What the interpreter cannot show: compiled kernels at real sizes, racing programs, and CUDA graphs.

On a GPU `device/` runs too, compiled: pytest -m gpu tests/kernels
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_rig import Fault, Geometry, Request, Rig, applied, random_fault, random_key, random_where, with_op
from numpy.typing import NDArray

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LLAMA = Geometry(128, 8, 16)
SMOL = Geometry(64, 3, 16)


@pytest.mark.parametrize("geometry", [LLAMA, SMOL, Geometry(128, 8, 8), Geometry(128, 8, 4)], ids=str)
@pytest.mark.parametrize(
    ("hits_per_row", "level"), [(0.001, "token"), (0.1, "token"), (1.5, "token"), (20, "head"), (100, "dense")]
)
def test_prefill(geometry, hits_per_row, level):
    """A long prompt beside short ones: thousands of cells race for the list and for the words of the cache."""
    mask = (1 << geometry.bits) - 1
    fault = Fault(geometry, hits_per_row / (geometry.head_size * geometry.bits), mask)
    assert fault.sampler().level == level
    rig = Rig(geometry, layers=2, blocks=160, tuning=None, max_rows=4096)
    requests = [Request(i, 0, count, fault, i, 0, (i, 99)) for i, count in enumerate((1500, 257, 1, 64))]
    rig.enter(requests)
    assert rig.check_write() > 0


@pytest.mark.parametrize("seed", range(8))
def test_mixed_batch(seed):
    """Every request with a fault, a selector and a length of its own."""
    rng = np.random.default_rng(seed)
    geometry = [LLAMA, SMOL, Geometry(96, 5, 8), Geometry(64, 2, 32)][seed % 4]
    rig = Rig(
        geometry,
        layers=3,
        blocks=400,
        slots=48,
        tuning=None,
        max_rows=4096,
        layout=["flash", "packed", "padded"][seed % 3],
    )
    requests = []
    for slot in rng.permutation(48)[:40].tolist():
        fault = replace(random_fault(rng, geometry), where=random_where(rng, 3, geometry.heads))
        count = int(rng.choice([1, 1, 2, 40, 100]))
        requests.append(
            Request(
                slot,
                int(rng.integers(0, 50)),
                count,
                fault,
                request=int(rng.integers(2**32)),
                prompt_len=int(rng.integers(0, 60)),
                write_key=random_key(rng),
            )
        )
    rig.enter(requests)
    assert rig.check_write() > 0


@pytest.mark.parametrize("op", ["flip", "set0", "set1"])
@pytest.mark.parametrize("hits_per_row", [0.001, 0.05, 1.5])
def test_reads_of_long_contexts(hits_per_row, op):
    """Decode steps over long contexts: each layer shows exactly Rust's faults, and nothing is left after it."""
    fault = Fault(LLAMA, hits_per_row / 2048, 0xFFFF, burst_len=3, page_tokens=7, page_rate=0.7, op=op)
    rig = Rig(LLAMA, layers=3, blocks=400, tuning=None, read_tokens=400 * 16, stuck_reads=op != "flip")
    requests = [
        Request(i, count - 1, 1, fault, i, count - 1, None, (i, 5)) for i, count in enumerate((2000, 333, 17, 1200))
    ]
    rig.enter(requests)
    before, codes = rig.snapshot(), rig.all_codes(read=True)
    rig.begin(writes=False, reads=True)
    shown = 0
    for layer in range(rig.layers):
        rig.injector.reads(layer, rig.block_table)
        shown += rig.check(before, codes, [layer], read=True)
    rig.injector.reads(rig.layers, rig.block_table)
    assert all((a == b).all() for a, b in zip(before, rig.snapshot(), strict=True))
    assert sum(rig.tallies(4)) == sum(rig.tallies(2)) == shown > 0
    assert not rig.injector.kept.any()


def test_neighbours_in_a_word_do_not_lose_flips():
    """Four tokens' rows per word: programs of different cells change the same words at the same time."""
    geometry = Geometry(1, 1, 8)
    fault = Fault(geometry, 1.0, 0xFF, "row")
    rig = Rig(geometry, layers=1, blocks=300, tuning=None, max_rows=4096, read_tokens=1)
    rig.enter([Request(0, 0, 4000, fault, 0, 0, (1, 2))])
    assert rig.check_write() == 8000


class Captured:
    """Store, reads and undo of all layers as one CUDA graph, over buffers of its own."""

    ROWS = 16
    WIDTH = 8

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        heads, dim = rig.geometry.heads, rig.geometry.head_size
        self.key, self.value = (
            torch.zeros(rig.layers, self.ROWS, heads, dim, dtype=torch.int16, device="cuda") for _ in range(2)
        )
        self.slot_mapping = torch.full((self.ROWS,), -1, dtype=torch.int64, device="cuda")
        self.block_table = torch.zeros(8, self.WIDTH, dtype=torch.int32, device="cuda")
        self.seen = [whole.clone() for whole, _, _ in rig.storage]
        """Each layer's cache as its attention would read it."""
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.forward()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.forward()

    def forward(self) -> None:
        injector = self.rig.injector
        for layer, (whole, key_cache, value_cache) in enumerate(self.rig.storage):
            injector.store(layer, self.key[layer], self.value[layer], key_cache, value_cache, self.slot_mapping)
            injector.reads(layer, self.block_table)
            self.seen[layer].copy_(whole)
        injector.reads(self.rig.layers, self.block_table)

    def fill(self, rng: np.random.Generator) -> None:
        """The inputs of the batch that the rig holds, with fresh K and V."""
        rows = len(self.rig.slot_mapping)
        self.slot_mapping.fill_(-1)
        self.slot_mapping[:rows] = self.rig.slot_mapping
        table = self.rig.block_table
        self.block_table[: table.shape[0], : table.shape[1]] = table
        for tensor in (self.key, self.value):
            tensor.copy_(torch.from_numpy(rng.integers(-(2**15), 2**15, tuple(tensor.shape)).astype(np.int16)))

    def expected(
        self, before: list[list[NDArray[np.uint32]]], layer: int, *, faulty: bool, read: bool
    ) -> list[NDArray[np.uint32]]:
        out, row = [], 0
        written = torch.stack([self.key[layer], self.value[layer]], dim=1).cpu().numpy().view(np.uint16)
        for codes, r in zip(before[layer], self.rig.requests, strict=True):
            now = codes.copy()
            now[r.start : r.end] = written[row : row + r.count]
            row += r.count
            op = "flip" if r.fault is None else r.fault.op
            if faulty:
                now[r.start : r.end] = applied(now[r.start : r.end], self.rig.masks(r, layer), op)
            if read:
                now = applied(now, self.rig.masks(r, layer, read=True), op)
            out.append(now)
        return out

    def check(self, before: list[list[NDArray[np.uint32]]], *, faulty: bool = True) -> None:
        """What attention saw, and what was left, in every layer."""
        rig, stored = self.rig, self.rig.storage
        for layer in range(rig.layers):
            for read, caches in ((faulty, [(x, *x.unbind(1)) for x in self.seen]), (False, stored)):
                rig.storage = caches
                wanted = self.expected(before, layer, faulty=faulty, read=read)
                for i, r in enumerate(rig.requests):
                    np.testing.assert_array_equal(rig.codes(i, layer, 0, r.end), wanted[i])
                rig.storage = stored


@pytest.mark.parametrize("stuck", [False, True], ids=["flips", "any op"])
def test_a_captured_graph_follows_the_tables(stuck):
    """Capture with nothing armed, then replay with other faults, batches and lengths, and as a dummy run."""
    rng = np.random.default_rng(3)
    rig = Rig(SMOL, layers=3, blocks=64, tuning=None, read_tokens=1024, stuck_reads=stuck)
    rig.enter([Request(0, 0, 1, read_master=(0, 0))])
    captured = Captured(rig)
    flips = 0
    for seed in range(6):
        requests = []
        for slot in rng.permutation(8)[: int(rng.integers(1, 5))].tolist():
            fault = random_fault(rng, SMOL)
            fault = fault if stuck else with_op(fault, "flip")
            where = random_where(rng, 3, SMOL.heads)
            start = int(rng.integers(0, 60))
            requests.append(
                Request(
                    slot,
                    start,
                    int(rng.integers(1, 4)),
                    replace(fault, where=where) if seed % 3 else None,
                    request=seed,
                    prompt_len=start + 1 + 2 * (seed % 2),  # every other batch: a forward of several events
                    write_key=random_key(rng),
                    read_master=random_key(rng),
                )
            )
        rig.enter(requests)
        captured.fill(rng)
        before = rig.all_codes(read=True)
        rig.begin(writes=True, reads=True)
        captured.graph.replay()
        captured.check(before)
        assert rig.tallies(4) == rig.tallies(2)
        flips += sum(rig.tallies(0)) + sum(rig.tallies(1))
        # a dummy run after the step
        rig.injector.end_step()
        before, tally = rig.all_codes(read=True), rig.table.tally.clone()
        captured.graph.replay()
        captured.check(before, faulty=False)
        assert torch.equal(tally, rig.table.tally)
    assert flips > 0
    assert not rig.injector.kept.any()


def test_a_captured_graph_of_explicit_events():
    rig = Rig(SMOL, layers=2, blocks=8, tuning=None)
    rig.enter([Request(1, 0, 4, read_master=(0, 0))])
    injector = rig.injector

    def forward() -> None:
        for layer in range(2):
            injector.write_events(layer, rig.slot_mapping)
            injector.read_events(layer, rig.block_table)
        injector.read_events(2, rig.block_table)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    for token in (0, 3):
        before = rig.codes(0, 1, 0, 4)
        columns = np.array([[1], [token], [token], [1], [2], [63], [0x8001], [0], [1]])
        injector.set_events(False, np.array([1]), columns)
        columns[1] = 0
        injector.set_events(True, np.array([1]), columns)
        graph.replay()
        before[token, 1, 2, 63] ^= 0x8001
        np.testing.assert_array_equal(rig.codes(0, 1, 0, 4), before)
        injector.end_step()
    graph.replay()
    np.testing.assert_array_equal(rig.codes(0, 1, 0, 4), before)
    assert [rig.tallies(c) for c in range(4)] == [[4], [4], [4], [0]]


def test_nothing_waits_for_the_host():
    """Calls of a step neither synchronise nor allocate device memory."""
    fault = Fault(SMOL, 1e-4, 0xFFFF)
    rig = Rig(SMOL, layers=2, tuning=None)
    rig.enter([Request(1, 0, 4, fault, 0, 4, (1, 1), (2, 2))])
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16, device="cuda")

    def step() -> None:
        rig.begin(writes=True, reads=True)
        for layer in range(2):
            rig.injector.writes(layer, rig.slot_mapping)
            rig.injector.reads(layer, rig.block_table)
        rig.injector.reads(2, rig.block_table)
        rig.injector.find_nonfinite(logits, rig.batch_slot, rig.seq_lens)
        rig.injector.end_step()

    step()
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nonfinite_in_a_large_batch(dtype):
    rng = np.random.default_rng(0)
    fault = Fault(SMOL, 1e-4, 0xFFFF)
    rig = Rig(SMOL, slots=256, blocks=300, tuning=None)
    rig.enter([Request(slot, 10, 1, fault, 0, 5, (1, 1)) for slot in rng.permutation(256).tolist()])
    logits = torch.zeros(256, 128256, dtype=dtype, device="cuda")
    bad = rng.permutation(256)[:40]
    for row in bad.tolist():
        logits[row, int(rng.integers(128256))] = float(rng.choice([np.nan, np.inf, -np.inf]))
    rig.injector.find_nonfinite(logits, rig.batch_slot, rig.seq_lens)
    found = rig.table.nonfinite.cpu().numpy()
    expected = np.full(256, 2**31 - 1)
    expected[[rig.requests[row].slot for row in bad]] = 6
    np.testing.assert_array_equal(found, expected)
