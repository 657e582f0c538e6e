"""Launches that every step or layer makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_INTEGER = {2: torch.int16, 4: torch.int32}


class Repeated:
    """A kernel that every step launches. Triton looks at each argument of a launch, which costs the host several times
    what the launch does; here it looks once per key, and the compiled kernel is called with addresses from then on."""

    def __init__(self, kernel: Any, *, bits: bool = False) -> None:
        """`bits`: floating-point tensors among the first arguments are taken as integers of their width."""
        self._kernel = kernel
        self._bits = bits
        self._compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(
        self,
        key: Any,
        grid: tuple[int, int, int],
        first: Sequence[Any],
        last: Sequence[Any],
        *,
        num_warps: int = 4,
        **constants: Any,
    ) -> None:
        """Launch with the arguments `first`, `last` and the compile-time `constants`, in the order of the kernel.

        `key` stands for everything but the addresses in `first`: types, numbers, all of `last`, the constants.
        """
        if self.again(key, grid, first):
            return
        first = [_as_bits(x) if self._bits else x for x in first]
        compiled = self._kernel[grid](*first, *last, **constants, num_warps=num_warps)
        if compiled is not None and key not in self._compiled:  # the interpreter compiles nothing
            fixed = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in last]
            self._compiled[key] = compiled, (*fixed, *constants.values())

    def again(self, key: Any, grid: tuple[int, int, int], first: Sequence[Any]) -> bool:
        """Launch as the call with this key did; `False` if there was none, or its kernel does not fit `first`."""
        known = self._compiled.get(key)
        if known is None:
            return False
        at, bits = [], 0
        for x in first:
            if isinstance(x, torch.Tensor):
                at.append(x.data_ptr())
                bits |= at[-1]
            else:
                at.append(x)
        # Triton compiles for addresses that are multiples of 16
        if bits % 16:
            return False
        compiled, rest = known
        compiled[grid](*at, *rest)
        return True


def _as_bits(x: Any) -> Any:
    return x.view(_INTEGER[x.element_size()]) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
