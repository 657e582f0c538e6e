"""The read-back against the injector on a cache of our own: no engine runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from kvspec import _native
from kvspec.engine.events import SITE_COLUMNS, TYPES, Columns, EventData, Request
from kvspec.engine.vllm.readback import ReadBack, together
from kvspec.engine.vllm.step import Step
from kvspec.engine.vllm.storage import Rows, Written, rounded
from kvspec.models import Geometry
from kvspec.spec.model import GenerationSpec

SHAPE = Geometry(2, 2, 16)
BLOCK, BLOCKS = 8, 12
OFFSETS = np.random.default_rng(0).permutation(2 * BLOCK * 2 * 16).astype(np.int64).reshape(2, BLOCK, 2, 16)


PROMPT = 11


def listed(count: int, bits: int, seed: int, reads: int = 0, scales: int = 0) -> Columns:
    """Distinct sites in canonical order, every op among them; `reads` more in the read events of the prompt and of
    five tokens, of which not all are made; of both, `scales` more are of scales."""
    generator = np.random.default_rng(seed)
    tops = (1, 1, SHAPE.layers, 2, 2, 20, 16, bits, 1)
    of_scales = (1, 1, SHAPE.layers, 2, 2, 20, 1, 32, 1)
    counts = [count, reads, scales if count else 0, scales if reads else 0]
    parts = []
    for number, size in enumerate(counts):
        part = np.stack([generator.integers(0, top, size) for top in (of_scales if number > 1 else tops)], 1)
        part[:, 8] = number > 1
        if number % 2:
            part[:, 1] = generator.integers(PROMPT, PROMPT + 6, size)
            part[:, 5] %= part[:, 1]
        parts.append(part)
    sites = np.unique(np.concatenate(parts), axis=0)
    columns = [*sites.T[:8], generator.integers(0, 3, len(sites)), sites.T[8]]
    return {name: c.astype(dtype) for name, c, dtype in zip(SITE_COLUMNS, columns, TYPES, strict=True)}


class Cache:
    """Two requests in blocks of a float32 container, as the CPU engine has it."""

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.words = [np.zeros(BLOCKS * OFFSETS.size, np.uint32) for _ in range(SHAPE.layers)]
        self.scaled = _native.format_scaled(storage)
        self.codes = np.zeros((SHAPE.layers, BLOCKS, 2, BLOCK, 2, 16), np.uint8)
        self.scales = np.zeros((SHAPE.layers, BLOCKS, 2, BLOCK, 2), np.uint32)
        self.blocks = np.array([[7, 2, 9], [4, 11, 1]], np.int32)
        self.generator = torch.Generator().manual_seed(3)

    def at(self, rows: Any, tokens: Any) -> Any:
        return self.blocks[rows, tokens // BLOCK] * OFFSETS.size + OFFSETS[:, tokens % BLOCK].transpose(0, 2, 3, 1)

    def write(self, layer: int, rows: Any, tokens: Any) -> Written:
        """Random K and V, stored as the backend would."""
        made = [rounded(torch.randn(len(rows), 2, 16, generator=self.generator), self.storage) for _ in range(2)]
        held = Rows.of(*made)
        self.words[layer][self.at(rows, tokens)] = held.values.permute(0, 2, 3, 1).contiguous().numpy().view(np.uint32)
        where = self.blocks[rows, tokens // BLOCK], slice(None), tokens % BLOCK
        for name, state in self.state(layer).items():
            state[where] = getattr(held, name).swapaxes(0, 1)
        return Written(held, torch.zeros(len(rows), dtype=torch.int64))

    def state(self, layer: int) -> dict[str, Any]:
        """Codes and scales, of formats that have them."""
        return {"codes": self.codes[layer], "scales": self.scales[layer]} if self.scaled else {}

    def read(self, layer: int, rows: Any, tokens: Any) -> Rows:
        found = torch.from_numpy(self.words[layer][self.at(rows, tokens)].view(np.float32)).permute(0, 3, 1, 2)
        where = self.blocks[rows, tokens // BLOCK], slice(None), tokens % BLOCK
        return Rows(found, **{name: x[where].swapaxes(0, 1) for name, x in self.state(layer).items()})

    def read_heads(self, layer: int, heads: slice, rows: Any, tokens: Any) -> Rows:
        """What a tensor-parallel rank sees."""
        return self.read(layer, rows, tokens).of_heads(heads)


STEPS = [((0, 1), (0, 0), (5, 11)), ((0, 1), (5, 11), (6, 1)), ((1,), (12,), (1,)), ((0, 1), (11, 13), (1, 1))]
"""(rows, starts, counts): prompts in chunks, then tokens one by one. Row i is entry i + 1."""


def run(
    storage: str,
    sabotage: Any = None,
    *,
    reads: int = 0,
    restart: bool = False,
    when: str = "written",
    ranks: list[ReadBack] | None = None,
    scales: int = 0,
    strike: Any = None,
) -> tuple[ReadBack, list[Request], Any]:
    """The watch of the whole model, what was listed, what the injector counted. `sabotage` changes the cache once it is
    `written`, while it is `exposed` to attention, or `after` that. `ranks` gets the watches of two tensor-parallel
    ranks, each with a head of its own and nothing else. `strike` is a sabotage of codes and scales."""
    bits = _native.format_bits(storage)
    events = [listed(0, bits, 0), listed(400, bits, 1, reads, scales), listed(50, bits, 2, reads, scales)]
    requests = [Request([1] * PROMPT, GenerationSpec(), 0, columns) for columns in events]
    data = EventData.of(storage, requests)
    table, watch = data.build(SHAPE), ReadBack(storage, data.starts, data.columns, data.prompt_len, record=True)
    cache, counted = Cache(storage), np.zeros(3, np.int64)
    if ranks is not None:
        ranks += [watch.of_heads(slice(head, head + 1)) for head in range(2)]
    for rows, starts, counts in [STEPS[0], *STEPS] if restart else STEPS:
        step = Step(*(np.array(c, np.uint32) for c in (rows, [r + 1 for r in rows], starts, counts)))
        columns = {"entry": step.entry, "row": step.row, "start": step.start, "count": step.count}
        writes, transient = table.write_step(**columns), table.read_step(**columns)
        index = np.repeat(np.arange(len(rows)), counts)
        tokens = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        for layer in range(SHAPE.layers):
            at = cache.at(np.array(rows)[index], tokens)
            how: dict[str, Any] = {
                "block_table": cache.blocks,
                "offsets": OFFSETS,
                "block_stride": OFFSETS.size,
                "format": storage,
                **cache.state(layer),
            }
            words, read = cache.words[layer], partial(cache.read, layer)

            def reached(moment: str, words: Any = words, at: Any = at, layer: int = layer) -> None:
                if sabotage is not None and moment == when:
                    sabotage(words, at)
                if strike is not None and moment == when:
                    strike(**{name: state[cache.blocks[1, 0]] for name, state in cache.state(layer).items()})

            written = cache.write(layer, np.array(rows)[index], tokens)
            writes.inject(layer, words, **how)
            reached("written")
            watch.check(layer, step, written, read)
            heads = [(rank, slice(head, head + 1)) for head, rank in enumerate(ranks or ())]
            for rank, mine in heads:
                part = Written(written.rows.of_heads(mine), written.slots)
                rank.check(layer, step, part, partial(cache.read_heads, layer, mine))
            for exposed in (True, False):
                if exposed:
                    transient.inject(layer, words, **how)
                else:
                    transient.restore(words, format=storage, **cache.state(layer))
                reached("exposed" if exposed else "after")
                watch.check_read(layer, step, read, exposed=exposed)
                for rank, mine in heads:
                    rank.check_read(layer, step, partial(cache.read_heads, layer, mine), exposed=exposed)
        for faults in (writes, transient):
            np.add.at(counted, step.entry.astype(np.int64), faults.landed.astype(np.int64))
        assert strike is not None or np.array_equal(transient.exposed, transient.restored)
    return watch, requests, counted


@pytest.mark.parametrize("reads", [0, 400])
@pytest.mark.parametrize("storage", ["bf16", "fp16", "fp8_e4m3", "int8_per_token_head"])
def test_what_is_listed_is_found(storage: str, reads: int) -> None:
    watch, requests, counted = run(storage, reads=reads)
    written = [0, 12, 14]
    planned = [r.planned(w) for r, w in zip(requests, written, strict=True)]
    assert planned[1] > 100 + reads / 4
    assert watch.landed.tolist() == planned == counted.tolist()
    assert watch.mismatches.tolist() == [0, 0, 0]
    changes = watch.result()["changes"]
    assert set(changes) == {1, 2}
    names = ("step", "layer", "kv", "head", "token", "elem")
    for entry in (1, 2):
        found = set(zip(*(changes[entry][n].tolist() for n in names), strict=True))
        assert found <= set(zip(*(requests[entry].events[n].tolist() for n in names), strict=True))
        assert (len(np.unique(changes[entry]["step"])) > 1) == bool(reads)
        values = changes[entry]["before_value"][changes[entry]["step"] == 0].astype(np.uint32).view(np.float32)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("reads", [0, 400])
@pytest.mark.parametrize("storage", ["int8_per_token_head", "int4_per_token_head"])
def test_scales_are_found_beside_values(storage: str, reads: int) -> None:
    ranks: list[ReadBack] = []
    watch, requests, counted = run(storage, reads=reads, scales=120, ranks=ranks)
    planned = [r.planned(w) for r, w in zip(requests, [0, 12, 14], strict=True)]
    assert watch.landed.tolist() == planned == counted.tolist()
    assert sum(rank.landed for rank in ranks).tolist() == planned  # type: ignore[union-attr]
    assert watch.mismatches.tolist() == [0, 0, 0]
    names = ("step", "layer", "kv", "head", "token", "elem", "target")
    for entry, changes in watch.result()["changes"].items():
        events = requests[entry].events
        assert set(changes["target"]) == {0, 1}
        found = set(zip(*(changes[n].tolist() for n in names), strict=True))
        assert found <= set(zip(*(events[n].tolist() for n in names), strict=True))
        scales = changes["target"] == 1
        assert (changes["before"][scales] == changes["before_value"][scales]).all()
        assert (changes["before"][scales] != changes["after"][scales]).all()
        # a request that is never written has no event
        assert entry > 0


@pytest.mark.parametrize("when", ["written", "exposed", "after"])
@pytest.mark.parametrize("what", ["codes", "scales"])
def test_one_stray_bit_of_a_state_is_found(what: str, when: str) -> None:
    def flip_one(**state: Any) -> None:
        state[what][1, 0, 1] ^= 1

    watch, _, _ = run("int8_per_token_head", reads=400, when=when, scales=20, strike=flip_one)
    sound, _, _ = run("int8_per_token_head", reads=400, scales=20)
    assert sound.mismatches.sum() == 0
    assert watch.mismatches.sum() > 0


@pytest.mark.parametrize("reads", [0, 400])
@pytest.mark.parametrize("storage", ["bf16", "int8_per_token_head"])
def test_what_ranks_find_in_their_heads_adds_up_to_the_whole(storage: str, reads: int) -> None:
    ranks: list[ReadBack] = []
    watch, _, _ = run(storage, reads=reads, ranks=ranks)
    parts, whole = [rank.result() for rank in ranks], watch.result()
    assert all((part["landed"][1:] > 0).all() for part in parts)
    assert [part["changes"][1]["head"].min() for part in parts] == [0, 1]
    assert [part["changes"][1]["head"].max() for part in parts] == [0, 1]
    found = together(parts)
    assert found["checked"] == whole["checked"]
    for name in ("landed", "mismatches"):
        assert found[name].tolist() == whole[name].tolist()
    assert set(found["changes"]) == set(whole["changes"])
    for entry, columns in whole["changes"].items():
        assert {n: c.tolist() for n, c in found["changes"][entry].items()} == {
            n: c.tolist() for n, c in columns.items()
        }


def test_a_stray_bit_is_found_by_the_rank_that_holds_its_head() -> None:
    def flip_one(words: Any, at: Any) -> None:
        words[at[1, 0, 3, -1]] ^= 1 << 30

    ranks: list[ReadBack] = []
    run("bf16", flip_one, ranks=ranks)
    held = [int(rank.mismatches.sum()) for rank in ranks]
    assert sorted(held) == [0, SHAPE.layers * len(STEPS)]


@pytest.mark.parametrize("when", ["written", "exposed", "after"])
@pytest.mark.parametrize("storage", ["bf16", "int8_per_token_head"])
def test_one_stray_bit_is_found(storage: str, when: str) -> None:
    def flip_one(words: Any, at: Any) -> None:
        words[at[1, 0, 3, -1]] ^= 1 << 30

    watch, _, _ = run(storage, flip_one, reads=400, when=when)
    # What attention was shown and was not taken back is wrong before it and after it.
    expected = SHAPE.layers * len(STEPS) * (2 if when == "exposed" else 1)
    if storage == "bf16":
        assert watch.mismatches.sum() == expected
    else:
        assert watch.mismatches.sum() > expected  # no value of the format: found again by every later read


def test_reads_that_were_not_put_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, _, _ = run("bf16", reads=400)
    assert sound.mismatches.sum() == 0

    class Forgetful(ReadBack):
        def check_read(self, layer: int, step: Step, read: Any, *, exposed: bool) -> None:
            # as if the injector had left the flips: what was exposed is read again
            self.kept = read(*self._at(step)) if exposed else self.kept
            super().check_read(layer, step, (lambda *_: self.kept), exposed=exposed)

        def _at(self, step: Step) -> tuple[Any, Any]:
            seen = self._seen(step)
            return seen.row, seen.token

    monkeypatch.setitem(globals(), "ReadBack", Forgetful)
    watch, _, _ = run("bf16", reads=400)
    assert watch.mismatches.sum() > 100
    assert watch.landed.tolist() == sound.landed.tolist()


def test_a_value_that_the_format_cannot_hold_is_found() -> None:
    def lower_half(words: Any, at: Any) -> None:
        words[at[0, 1, 2, 0]] |= 1

    watch, _, _ = run("bf16", lower_half)
    assert watch.mismatches.sum() == SHAPE.layers * len(STEPS)


def test_a_request_that_starts_over_is_counted_anew() -> None:
    once, _, _ = run("bf16")
    again, _, _ = run("bf16", restart=True)
    assert again.landed.tolist() == once.landed.tolist()
    changes = [w.result()["changes"][1]["token"] for w in (once, again)]
    assert abs(len(changes[0]) - len(changes[1])) < len(changes[0]) / 5
