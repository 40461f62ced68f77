"""A least-recently-used cache whose bound is in bytes, since its entries differ in size by orders of magnitude."""

from collections import OrderedDict
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ByteBoundedCache(Generic[Key, Value]):
    """Not thread-safe. An entry larger than the whole bound is not kept, and costs no other its place."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep `value`, which takes `size` bytes, in place of the least recently used entries."""
        if (previous := self._entries.pop(key, None)) is not None:
            self.bytes -= previous[1]
        if size > self.max_bytes:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (_, oldest_size) = self._entries.popitem(last=False)
            self.bytes -= oldest_size
