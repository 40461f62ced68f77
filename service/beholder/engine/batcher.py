"""A queue whose entries are scored in batches of rows (rows.py), bounded by padded tokens.

No torch here: `run` scores rows of entries to be packed. The batch is made when the engine is free, so under load
batches grow by themselves; when idle, `patience_s` is how long the first entry waits for company.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from beholder.engine import Activity
from beholder.engine.rows import Entry, choose
from beholder.errors import EngineError, EngineUnavailable, own_copy

E = TypeVar("E", bound=Entry)
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[E, R]):
    entry: E
    result: "asyncio.Future[R]"


class Batcher(Generic[E, R]):
    """`run` is called in a thread of its own, which waits for no other work of the process, with the rows of a batch;
    it returns one result an entry, row by row, or the exception that the entry's caller gets.

    An exception of `run` fails the entries of that batch alone, each with an error of its own (`own_copy`); entries
    whose caller has gone are not computed.
    """

    def __init__(
        self,
        run: Callable[[list[list[E]]], Sequence[R | Exception]],
        max_tokens: int,
        patience_s: float = 0.002,
        activity: Activity | None = None,
    ) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "batch")
        self._activity = activity or Activity()
        self._max_tokens = max_tokens
        self._patience_s = patience_s
        self._waiting: list[_Waiting[E, R]] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.get_running_loop().create_task(self._work())

    @property
    def running(self) -> bool:
        return self._worker is not None and not self._worker.done()

    def enqueue(self, entry: E) -> "asyncio.Future[R]":
        """The entry's result: an error where `run` raised one for its batch, EngineUnavailable once stopped.

        Cancelled, it is not computed. Raises EngineUnavailable.
        """
        if not self.running:
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
        """Fail what still waits and end the worker; what is under way in the thread ends by itself."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        _fail(self._waiting, EngineUnavailable("the engine is stopping"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) == 1:
                await asyncio.sleep(self._patience_s)
            await self._score(self._take())  # a name would keep the last batch while nothing comes
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
        self._activity.waiting = len(self._waiting)
        if not batch:
            return
        self._activity.on_batch(len(batch))
        self._activity.running = len(batch)
        try:
            results = await self._results([[waiting.entry for waiting in row] for row in rows], len(batch))
        except asyncio.CancelledError:
            _fail(batch, EngineUnavailable("the engine is stopping"))
            raise
        finally:
            self._activity.running = 0
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                _fail([waiting], result)
            elif not waiting.result.done():
                waiting.result.set_result(result)

    async def _results(self, rows: list[list[E]], count: int) -> Sequence[R | Exception]:
        """Knows no futures: an error's traceback holds this frame, which would be a cycle."""
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, rows)
            if len(results) != count:
                raise EngineError(f"the engine gave {len(results)} results for a batch of {count}")
        except Exception as error:
            # Whatever a batch dies of must reach its callers and leave the worker alive for the others.
            return [own_copy(error) for _ in range(count)]
        return results


def _fail(batch: Sequence[_Waiting[Any, Any]], error: BaseException) -> None:
    for waiting in batch:
        if not waiting.result.done():
            waiting.result.set_exception(error)
