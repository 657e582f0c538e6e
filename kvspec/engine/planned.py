"""Planned flips of a finished trial, enumerated from its key over the tokens that it really wrote.

This is the other side of the proof of injection: it shares neither the step logic nor the address arithmetic with
what counts the landed flips in the cache.
"""

from __future__ import annotations

from kvspec.engine.table import TableData, native_selector
from kvspec.models import Geometry


class PlannedFlips:
    """Counts the flips that entries of a trial table must have received."""

    def __init__(self, table: TableData, geometry: Geometry) -> None:
        self._table = table
        self._layers = (0, geometry.layers)
        self._samplers = table.samplers(geometry)
        self._selectors = [native_selector(where) for where in table.selectors]

    def count(self, entry: int, written: int) -> int:
        """Flips in positions `0 .. written - 1` of an entry's request."""
        table = self._table
        if not table.faulty[entry]:
            return 0
        fault = int(table.fault[entry])
        low, high = table.write_key[entry]
        return self._samplers[fault].count(
            key=(int(low), int(high)),
            request=int(table.request[entry]),
            layers=self._layers,
            tokens=(0, written),
            prompt_len=int(table.prompt_len[entry]),
            selector=self._selectors[fault],
        )
