"""Processed images of samples that wait for their batch: their memory, and the bound on it.

A picture in tiles takes tens of megabytes once it is processed, many times its pixels.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from beholder.modeling.inputs import Picture

MAX_BYTES: Final = 2**30


class QueuedPictures:
    """`room` waits while they take more than `max_bytes`; what is processed together then may go beyond."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._holders: Counter[int] = Counter()
        self._freed = asyncio.Event()

    @contextmanager
    def holding(self, pictures: "Sequence[Picture]") -> Iterator[None]:
        """Until the end of the block. A picture that several have counts once."""
        self._count(pictures, 1)
        try:
            yield
        finally:
            self._count(pictures, -1)
            self._freed.set()

    def _count(self, pictures: "Sequence[Picture]", change: int) -> None:
        for picture in pictures:
            before = self._holders[id(picture)]
            after = self._holders[id(picture)] = before + change
            self._bytes += picture.bytes * (bool(after) - bool(before))
            if not after:
                del self._holders[id(picture)]

    async def room(self) -> None:
        await asyncio.sleep(0)  # those that were processed just now count from their next turn on
        while self._bytes > self._max_bytes:
            self._freed.clear()
            await self._freed.wait()
