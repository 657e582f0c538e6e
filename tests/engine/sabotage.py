"""Injectors broken on purpose, for the tests of what must notice it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def leave_a_trace(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> None:
    """One of the flips of a read stays in the cache of one layer, and the counts do not tell.

    `when` says of an injector whether it does so now.
    """
    from kvspec.engine.vllm.cpu import CpuInjector

    original = CpuInjector._check_read
    shown: dict[int, Any] = {}

    def check(self: Any, layer: int, *, exposed: bool) -> None:
        words = self.cache.words[layer]
        if exposed:
            shown[layer] = words.copy()
        elif layer == 2 and when(self):
            first = np.flatnonzero(words != shown[layer])[:1]
            words[first] = shown[layer][first]
        original(self, layer, exposed=exposed)

    monkeypatch.setattr(CpuInjector, "_check_read", check)
