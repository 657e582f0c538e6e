"""Thrift's compact protocol, the part that Parquet uses, read with limits.

pyarrow's own metadata objects are not for strangers' files: some of their properties end the process on an unknown
enum value. Nothing reaches pyarrow before this reader has seen it.
"""

from __future__ import annotations

from typing import Any

Struct = dict[int, Any]
"""Fields by number; numbers as int, text as bytes, lists as list, structs as dict."""

MAX_VALUES = 2_000_000
"""Values of one struct, all levels together."""
_MAX_DEPTH = 16
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)


class ThriftError(ValueError):
    """The bytes are no struct, or one over a limit."""


class Reader:
    """Reads structs from a buffer, one after the other."""

    def __init__(self, data: bytes | memoryview, at: int = 0, end: int | None = None) -> None:
        """Read `data` from `at`, never beyond `end`."""
        self._data = data
        self.at = at
        """Position behind the last struct."""
        self._end = len(data) if end is None else min(end, len(data))
        self._left = MAX_VALUES

    def struct(self, depth: int = 0) -> Struct:
        """The next struct. Raises `ThriftError`."""
        if depth > _MAX_DEPTH:
            raise ThriftError("nested too deeply")
        found: Struct = {}
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._zigzag()
            if number in found:
                raise ThriftError(f"field {number} appears twice")
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ThriftError("too many values")
        if kind in _NUMBERS:
            return self._zigzag()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        raise ThriftError(f"unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        length, kind = head >> 4, head & 15
        if length == 15:
            length = self._varint()
        # Each value takes a byte at least.
        if length > self._end - self.at or depth >= _MAX_DEPTH:
            raise ThriftError("a list is longer than the data")
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _take(self, length: int) -> bytes:
        if length > self._end - self.at:
            raise ThriftError("text is longer than the data")
        self.at += length
        return bytes(self._data[self.at - length : self.at])

    def _byte(self) -> int:
        if self.at >= self._end:
            raise ThriftError("the data ends early")
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                raise ThriftError("a number is too long")

    def _zigzag(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
