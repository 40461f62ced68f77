"""Calls that come one by one and are worked off together, in a thread."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from beholder.errors import EngineError, EngineUnavailable, own_copy

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Item, Result]):
    """`run` is called with the items that came while it was busy, at most `most`, never twice at a time.

    It returns for each item its result, or the exception that its caller gets. Of what it raises each caller gets an
    error of its own (`own_copy`). Before each call `room` is awaited.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        most: int,
        name: str,
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._run = run
        self._room = room
        self._most = most
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False

    async def submit(self, item: Item) -> Result:
        """The item's result. Raises EngineUnavailable once stopped."""
        if self._stopped:
            raise EngineUnavailable("the engine is not running")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, result))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())  # begins once what is ready to run now has submitted too
        return await result

    async def stop(self) -> None:
        """Fail what waits; what is under way in the thread ends by itself."""
        self._stopped = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._fail(self._waiting, EngineUnavailable("the engine is stopping"))
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while self._waiting:
            if self._room is not None:
                await self._room()
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(item, result) for item, result in batch if not result.done()]
            await self._answer(batch)

    async def _answer(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            answers = await self._answers([item for item, _ in batch])
        except asyncio.CancelledError:
            self._fail(batch, EngineUnavailable("the engine is stopping"))
            raise
        for (_, result), answer in zip(batch, answers, strict=True):
            if result.done():
                continue
            if isinstance(answer, Exception):
                result.set_exception(answer)
            else:
                result.set_result(answer)

    async def _answers(self, items: list[Item]) -> Sequence[Result | Exception]:
        """Knows no futures: an error's traceback holds this frame, which would be a cycle."""
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
            if len(answers) != len(items):
                raise EngineError(f"there are {len(answers)} results for {len(items)} calls")
        except Exception as error:
            return [own_copy(error) for _ in items]
        return answers

    @staticmethod
    def _fail(batch: "Sequence[tuple[Item, asyncio.Future[Result]]]", error: Exception) -> None:
        for _, result in batch:
            if not result.done():
                result.set_exception(error)
