"""Records in, records with scores out, in the same order, a bounded number in flight."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from itertools import islice
from typing import Final

from beholder.offline.scorers import RecordScorer
from beholder.offline.tasks import Outcome, Scored, Task

_TOGETHER: Final = 8  # records that are read and prepared at a time: a change of threads costs as much as a small image

_Chunk = tuple[list[Task], asyncio.Task[list[tuple[Outcome, ...]]]]


async def scored_in_order(tasks: Iterable[Task], scorer: RecordScorer, in_flight: int) -> AsyncGenerator[Scored, None]:
    """At most `in_flight` responses are being scored, or wait for a record before theirs; but always some records.

    Raises what `scorer` raises; what is in flight is cancelled then, and when the iterator is closed.
    """
    waiting: deque[_Chunk] = deque()
    held = 0
    try:
        async for chunk in _chunks(tasks):
            while waiting and (waiting[0][1].done() or held + _size(chunk) > in_flight):
                held -= _size(waiting[0][0])
                for scored in await _first(waiting):
                    yield scored
            waiting.append((chunk, asyncio.create_task(scorer.score(chunk))))
            held += _size(chunk)
        while waiting:
            for scored in await _first(waiting):
                yield scored
    finally:
        for _, scoring in waiting:
            scoring.cancel()
        await asyncio.gather(*(scoring for _, scoring in waiting), return_exceptions=True)


def _size(chunk: list[Task]) -> int:
    return sum(max(1, len(task.responses)) for task in chunk)


async def _chunks(tasks: Iterable[Task]) -> AsyncIterator[list[Task]]:
    """Read in a thread: rows of Parquet may hold images."""
    remaining = iter(tasks)
    while chunk := await asyncio.to_thread(lambda: list(islice(remaining, _TOGETHER))):
        yield chunk


async def _first(waiting: deque[_Chunk]) -> list[Scored]:
    chunk, scoring = waiting[0]
    outcomes = await scoring
    waiting.popleft()
    return list(map(Scored.of, chunk, outcomes))
