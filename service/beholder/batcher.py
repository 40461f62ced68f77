"""A queue whose entries are scored in batches that share prefixes, of rows of like length, bounded by padded tokens.

No torch here: an entry is a token sequence with a key (what it may share: its images), and `run` scores rows of entries
to be packed. The batch is made when the engine is free, so under load batches grow by themselves; when idle,
`patience_s` is how long the first entry waits for company.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from beholder.engine import Activity
from beholder.errors import EngineError, EngineUnavailable

WINDOW: Final = 256
"""Entries that wait longest, of which a batch is made: enough to find rows of one length."""


class Entry(Protocol):
    """What is queued. Entries of one key whose sequences begin alike can be computed together."""

    @property
    def key(self) -> Hashable: ...

    @property
    def sequence(self) -> list[int]: ...


E = TypeVar("E", bound=Entry)
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[E, R]):
    entry: E
    result: "asyncio.Future[R]"


class Batcher(Generic[E, R]):
    """`run` is called in a thread with the rows of a batch; it returns one result an entry, row by row.

    An exception of `run` fails the entries of that batch alone; entries whose caller has gone are not computed.
    """

    def __init__(
        self,
        run: Callable[[list[list[E]]], list[R]],
        max_tokens: int,
        patience_s: float = 0.002,
        activity: Activity | None = None,
    ) -> None:
        self._run = run
        self._activity = activity or Activity()
        self._max_tokens = max_tokens
        self._patience_s = patience_s
        self._waiting: list[_Waiting[E, R]] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.get_running_loop().create_task(self._work())

    def enqueue(self, entry: E) -> "asyncio.Future[R]":
        """The entry's result: what `run` raised for its batch, EngineUnavailable once stopped. Cancelled, it is not
        computed. Raises EngineUnavailable."""
        if self._worker is None or self._worker.done():
            raise EngineUnavailable("the engine is not running")
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._activity.waiting = len(self._waiting)
        self._arrived.set()
        return waiting.result

    async def submit(self, entry: E) -> R:
        """`enqueue`, awaited."""
        return await self.enqueue(entry)

    async def stop(self) -> None:
        """Fail what still waits and end the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        _fail(self._waiting, EngineUnavailable("the engine is stopping"))
        self._waiting.clear()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) == 1:
                await asyncio.sleep(self._patience_s)
            rows = self._take()
            self._activity.waiting, self._activity.running = len(self._waiting), sum(map(len, rows))
            await self._score(rows)
            self._activity.running = 0
            if not self._waiting:
                self._arrived.clear()

    def _take(self) -> list[list[_Waiting[E, R]]]:
        """Remove the next batch from the queue; its rows."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.result.done()]
        rows = choose([waiting.entry for waiting in self._waiting], self._max_tokens)
        batch = [[self._waiting[index] for index in row] for row in rows]
        taken = {index for row in rows for index in row}
        self._waiting = [waiting for index, waiting in enumerate(self._waiting) if index not in taken]
        return batch

    async def _score(self, rows: list[list[_Waiting[E, R]]]) -> None:
        batch = [waiting for row in rows for waiting in row]
        if not batch:
            return
        self._activity.on_batch(len(batch))
        try:
            results = await asyncio.to_thread(self._run, [[waiting.entry for waiting in row] for row in rows])
            if len(results) != len(batch):
                raise EngineError(f"the engine gave {len(results)} results for a batch of {len(batch)}")
        except asyncio.CancelledError:
            _fail(batch, EngineUnavailable("the engine is stopping"))
            raise
        except Exception as error:
            # Whatever a batch dies of must reach its callers and leave the worker alive for the others.
            _fail(batch, error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.result.done():
                waiting.result.set_result(result)


def _fail(batch: Sequence[_Waiting[Any, Any]], error: BaseException) -> None:
    for waiting in batch:
        if not waiting.result.done():
            waiting.result.set_exception(error)


@dataclass(slots=True)
class _Row:
    """Entries (by index) to be packed behind the prefix that they share with the first; `length` is then the row's."""

    first: list[int]
    members: list[int]
    length: int


def choose(entries: Sequence[Entry], max_tokens: int) -> list[list[int]]:
    """The rows (indices) of the next batch: the oldest entry's, then those that are nearest to it in length.

    Entries stand in one row where they share the key and at least half of their tokens. The padded size (rows times
    the longest row) stays within `max_tokens`; the oldest entry is taken whatever its size. Only the `WINDOW` oldest
    entries compete, and the oldest always wins: one that is unlike all others waits for at most so many batches.
    """
    rows = _rows(entries[:WINDOW], max_tokens)
    if not rows:
        return []
    oldest = next(row for row in rows if 0 in row.members)
    batch, longest = [oldest], oldest.length
    for row in sorted(rows, key=lambda row: (abs(row.length - oldest.length), min(row.members))):
        padded = max(longest, row.length)
        if row is not oldest and padded * (len(batch) + 1) <= max_tokens:
            batch.append(row)
            longest = padded
    return [row.members for row in batch]


def _rows(entries: Sequence[Entry], max_tokens: int) -> list[_Row]:
    """All entries in rows of at most `max_tokens`; in lexical order those that begin alike stand beside each other."""
    numbers: dict[Hashable, int] = {}
    keys = [numbers.setdefault(entry.key, len(numbers)) for entry in entries]
    rows: dict[int, list[_Row]] = {key: [] for key in keys}
    for index in sorted(range(len(entries)), key=lambda index: (keys[index], entries[index].sequence)):
        sequence, of_key = entries[index].sequence, rows[keys[index]]
        if of_key:
            shared = _common(of_key[-1].first, sequence)
            length = of_key[-1].length + len(sequence) - shared
            if shared * 2 >= len(sequence) and length <= max_tokens:
                of_key[-1].members.append(index)
                of_key[-1].length = length
                continue
        of_key.append(_Row(sequence, [index], len(sequence)))
    return [row for of_key in rows.values() for row in of_key]


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with; by halves, since comparing slices is quicker than comparing tokens."""
    known, limit = 0, min(len(first), len(second))
    while known < limit:
        middle = (known + limit + 1) // 2
        if first[known:middle] == second[known:middle]:
            known = middle
        else:
            limit = middle - 1
    return known
