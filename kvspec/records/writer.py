"""A buffer in front of the store: few files, and never more than a few seconds of work at risk."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvspec.records.schema import Record

if TYPE_CHECKING:
    from kvspec.records.store import RunStore


class RecordWriter:
    """Collects records and writes them as one part per `rows` records or `seconds` seconds.

    Use it as a context manager: leaving it, also by an exception or Ctrl-C, writes what is buffered. The
    clock is looked at in `add` and `tick`; no thread runs. If a write fails, the buffer is kept.
    """

    def __init__(
        self,
        store: RunStore,
        *,
        rows: int = 4096,
        seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `store` every `rows` records or `seconds` seconds, whichever comes first."""
        self._store = store
        self._rows = rows
        self._seconds = seconds
        self._clock = clock
        self._buffer: list[Record] = []
        self._oldest_s = 0.0

    def __len__(self) -> int:
        """Records that are not on disk yet."""
        return len(self._buffer)

    def add(self, record: Record) -> None:
        """Take one record; write if the buffer is full or old."""
        if not self._buffer:
            self._oldest_s = self._clock()
        self._buffer.append(record)
        if len(self._buffer) >= self._rows:
            self.flush()
        else:
            self.tick()

    def tick(self) -> None:
        """Write if the oldest buffered record has waited long enough. Call it in idle loops."""
        if self._buffer and self._clock() - self._oldest_s >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write everything buffered as one part; returns when it is durable."""
        if self._buffer:
            self._store.append(self._buffer)
            self._buffer = []

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is buffered, whatever happened."""
        self.flush()
