"""Stand-ins for engines in processes of their own: they import neither torch nor vLLM, so they start at once."""

from __future__ import annotations

import os
import time
from typing import Any, Self

from kvspec.engine.session import Finished
from kvspec.errors import EngineError
from kvspec.models import Geometry
from tests.run_folders import FINGERPRINT

SMALL = Geometry(layers=2, kv_heads=1, head_size=32)


class Engine:
    """The least that a fleet needs. Answers follow from the keys of a trial."""

    geometry = SMALL

    def __init__(self, trouble: str = "", tokens: int = 1, seconds: float = 0.0, slots: int = 300) -> None:
        if trouble == "at the start":
            raise EngineError.one("KVS402", "this cache is not known", expected="another one")
        self._trouble, self._tokens, self._seconds, self._slots = trouble, tokens, seconds, slots
        self._running: list[int] = []
        self._keys: Any = None
        self.submitted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def pending(self) -> int:
        return len(self._running)

    def rpc(self, method: str, table: Any) -> None:
        assert method == "kvspec_load"
        self._keys = table.write_key

    def submit(self, entry: int, *_: object) -> None:
        self._running.append(entry)
        self.submitted += 1

    def step(self) -> list[Finished]:
        time.sleep(self._seconds)
        if self._trouble == "in a step":
            raise ValueError("out of luck")
        if self._trouble == "hangs at 7" and 7 in self._running[: self._slots]:
            time.sleep(600)
        ended, self._running = self._running[: self._slots], self._running[self._slots :]
        return [Finished(entry, [self._token(entry)] * self._tokens, "", "length") for entry in ended]

    def _token(self, entry: int) -> int:
        return entry if self._keys is None else int(self._keys[entry][0])

    def tally(self, entries: list[int]) -> dict[str, list[int]]:
        names = ("landed", "changed", "exposed", "restored")
        counts = {name: [2 * self._token(entry) for entry in entries] for name in names}
        return {
            **counts,
            "written": [7] * len(entries),
            "preemptions": [0] * len(entries),
            "nonfinite_at": [-1] * len(entries),
        }


def seen(engine: Any, *names: str) -> tuple[Any, ...]:
    """Process, number of requests so far, and environment variables of an engine."""
    return (os.getpid(), engine.submitted, *(os.environ.get(name) for name in names))


def checked(*_: object) -> dict[str, Any]:
    """A fingerprint."""
    return FINGERPRINT
