"""Planned flips of a finished trial, enumerated from its key over the tokens that it really wrote.

This is the other side of the proof of injection: it shares neither the step logic nor the address arithmetic with
what counts the landed flips in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kvspec import _native
from kvspec.engine.table import TableData, native_selector
from kvspec.models import Geometry
from kvspec.plan.events import read_events, shown_events


class PlannedFlips:
    """Counts the flips that entries of a trial table must have received."""

    def __init__(self, table: TableData, geometry: Geometry) -> None:
        self._table = table
        self._layers = (0, geometry.layers)
        self._samplers = table.samplers(geometry)
        self._selectors = [native_selector(where) for where in table.selectors]

    def count_all(self, entries: Sequence[int], written: Sequence[int]) -> list[int]:
        """`count` of several entries, on all cores: at dense rates it takes longer than the requests did on a GPU."""
        if len(entries) < 2:
            return [self.count(entry, tokens) for entry, tokens in zip(entries, written, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.count, entries, written))

    def count(self, entry: int, written: int) -> int:
        """Flips of an entry whose request wrote positions `0 .. written - 1`; those of reads once per read event."""
        table = self._table
        if not table.faulty[entry]:
            return 0
        fault = int(table.fault[entry])
        site, where = table.sites[fault], table.selectors[fault]
        request, prompt = int(table.request[entry]), int(table.prompt_len[entry])
        draws = []
        if site != "KV_READ":
            draws.append((_key(table.write_key[entry]), written))
        if site != "KV_WRITE":
            master = _key(table.read_master[entry])
            events = shown_events(where, read_events(prompt, written))
            draws += [(_native.read_key(master, request, step), step) for step in events]
        return sum(
            self._samplers[fault].count(
                key=key,
                request=request,
                layers=self._layers,
                tokens=(0, tokens),
                prompt_len=prompt,
                selector=self._selectors[fault],
            )
            for key, tokens in draws
        )


def _key(words: NDArray[np.uint32]) -> tuple[int, int]:
    return int(words[0]), int(words[1])
