"""The sampling specification in plain Python integers: slow, written from docs/sampling.md alone, for tests.

It shares no code and no shortcuts with the Rust core, so that an error has to be made twice to go unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import comb, floor

ROW, PAGE, DENSE, PICK, TOKEN, READ = range(6)
WORD = 1 << 32

Key = tuple[int, int]
Block = tuple[int, int, int, int]


def philox(counter: Block, key: Key) -> Block:
    """One block of Philox4x32-10."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q % WORD, (p >> 32) ^ d ^ k1, p % WORD
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return a, b, c, d


def exact_thresholds(units: int, probability: float) -> list[int]:
    """Section 3 from its definition, in exact rationals; only for small `units`."""
    p = Fraction(probability)
    tail, table = Fraction(1), []
    for k in range(units):
        tail -= comb(units, k) * p**k * (1 - p) ** (units - k)
        rounded = floor(tail * 2**64 + Fraction(1, 2))
        if rounded == 0:
            break
        table.append(2**64 - rounded)
    return table


@dataclass(frozen=True)
class Reference:
    """A fault model on a geometry; `table` and `page_threshold` come from the implementation under test."""

    head_size: int
    bits: int
    heads: int
    planes: int
    first_plane: int
    rate: float
    per: str
    mask: int
    burst_len: int
    page_tokens: int
    table: list[int]
    page_threshold: int | None

    @property
    def places(self) -> list[int]:
        return [bit for bit in range(self.bits) if self.mask >> bit & 1]

    @property
    def row_bits(self) -> int:
        return self.head_size * len(self.places)

    @property
    def units(self) -> tuple[int, int]:
        """Units of a row and alternatives of a unit."""
        m = len(self.places)
        return {"bit": (self.row_bits, 1), "element": (self.head_size, m), "row": (1, self.row_bits)}[self.per]

    @property
    def level(self) -> str:
        n, _ = self.units
        if float(self.planes * self.heads * n) * self.rate <= 32.0:
            return "token"
        return "head" if float(n) * self.rate <= 32.0 else "dense"

    def flips(self, key: Key, request: int, layer: int, token: int) -> Iterator[tuple[int, int, int, int]]:
        """(kv, head, elem, bit) of every flip of one token in one layer, ascending."""
        planes = range(self.first_plane, self.first_plane + self.planes)
        n, sub = self.units
        anchors: dict[tuple[int, int], set[int]] = {(kv, head): set() for kv in planes for head in range(self.heads)}
        if self.level == "token":
            cell = Cell(key, token, layer << 16 | self.first_plane << 15, request)
            for anchor in self._sparse(cell, TOKEN, self.planes * self.heads * n, sub):
                row, q = divmod(anchor, self.row_bits)
                anchors[self.first_plane + row // self.heads, row % self.heads].add(q)
        else:
            for kv, head in anchors:
                cell = Cell(key, token, layer << 16 | kv << 15 | head, request)
                drawn = self._sparse(cell, ROW, n, sub) if self.level == "head" else self._dense(cell, n, sub)
                anchors[kv, head].update(drawn)
        for (kv, head), starts in anchors.items():
            if not self._page_hit(key, request, layer, token, kv):
                continue
            covered = {q for start in starts for q in range(start, min(start + self.burst_len, self.row_bits))}
            for q in sorted(covered):
                elem, number = divmod(q, len(self.places))
                yield kv, head, elem, self.places[number]

    def _sparse(self, cell: Cell, domain: int, units: int, sub: int) -> Iterator[int]:
        count = sum(cell.draw(domain, 0) >= t for t in self.table)
        chosen: set[int] = set()
        for s in range(count):
            j = units - count + s
            t, a = divmod(bounded(cell.draw(domain, s + 1), (j + 1) * sub), sub)
            if t in chosen:
                t = j
            chosen.add(t)
            yield t * sub + a

    def _dense(self, cell: Cell, units: int, sub: int) -> Iterator[int]:
        for u in range(units):
            if self.table and cell.draw(DENSE, u) >= self.table[0]:
                yield u * sub + bounded(cell.draw(PICK, u), sub)

    def _page_hit(self, key: Key, request: int, layer: int, token: int, kv: int) -> bool:
        if not self.page_tokens:
            return True
        if self.page_threshold is None:
            return False
        page = Cell(key, token // self.page_tokens, layer << 16 | kv << 15, request)
        return page.draw(PAGE, 0) >= self.page_threshold


@dataclass(frozen=True)
class Cell:
    """The draws of one cell."""

    key: Key
    word0: int
    word1: int
    word2: int

    def draw(self, domain: int, index: int) -> int:
        words = philox((self.word0, self.word1, self.word2, domain << 24 | index >> 1), self.key)
        high, low = words[2 * (index & 1)], words[2 * (index & 1) + 1]
        return high << 32 | low


def bounded(draw: int, bound: int) -> int:
    """floor(draw * bound / 2^64)"""
    return draw * bound >> 64
