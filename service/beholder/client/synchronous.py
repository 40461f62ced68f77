"""The client for code without an event loop: it drives the asynchronous one on a thread of its own."""

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack

import httpx

from beholder.client.answers import Best, ModelCard, Ranking, Score
from beholder.client.asynchronous import AsyncRewardClient, CandidateSets, Samples
from beholder.client.inputs import ImageInput, Prompt
from beholder.errors import BeholderError, EngineUnavailable

Result = TypeVar("Result")
_forked: Final[list["_LoopThread"]] = []
"""Loops of a parent process: a child that closed one would take its parent's sockets out of the parent's selector."""


class Options(TypedDict, total=False):
    """The keyword arguments of AsyncRewardClient."""

    api_key: str | None
    fingerprint: str | None
    model: str | None
    deadline_s: float
    attempt_s: float | None
    max_concurrency: int
    retries: int | None
    transport: httpx.AsyncBaseTransport | None


class RewardClient:
    """AsyncRewardClient with its arguments and methods, without await. Iterables are read in the caller's thread.

    Works within a running event loop (which waits meanwhile), from several threads, and in a forked process, which gets
    connections of its own. Copied and pickled as AsyncRewardClient is.
    """

    def __init__(self, base_urls: str | Sequence[str], **options: Unpack[Options]) -> None:
        self._client = AsyncRewardClient(base_urls, **options)
        self._thread: _LoopThread | None = None
        self._finalizer: weakref.finalize[..., RewardClient] | None = None
        self._starting = threading.Lock()

    def __reduce__(self) -> tuple["partial[Self]", tuple[Any, ...]]:
        make, arguments = self._client.__reduce__()
        return partial(type(self), **make.keywords), arguments

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens new ones. A call that another thread is in raises
        EngineUnavailable there."""
        with self._starting:
            thread, self._thread = self._thread, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if thread is not None and thread.pid == os.getpid():
            thread.stop(self._client.aclose)

    def models(self) -> list[ModelCard]:
        """What the service has, its first model first; with several URLs, what the first that answers has. Nothing is
        pinned, and no pin is checked. Raises BeholderError."""
        return self._run(self._client.models())

    def score(self, prompt: Prompt, images: Sequence[ImageInput], response: str) -> Score:
        """The reward of one response. Raises BeholderError."""
        return self._run(self._client.score(prompt, images, response))

    def rank(self, prompt: Prompt, images: Sequence[ImageInput], responses: Sequence[str]) -> Ranking:
        """The rewards of all responses and their order. Raises BeholderError."""
        return self._run(self._client.rank(prompt, images, responses))

    def best_of(self, prompt: Prompt, images: Sequence[ImageInput], responses: Sequence[str]) -> Best:
        """The response with the greatest reward. Raises BeholderError."""
        return self._run(self._client.best_of(prompt, images, responses))

    def score_many(self, samples: Samples, *, progress: bool = False) -> list[Score]:
        """The reward of each sample, in order. The first error is raised, and the rest is cancelled."""
        return self._run(self._client.score_many(list(samples), progress=progress))

    def try_score_many(self, samples: Samples, *, progress: bool = False) -> list[Score | BeholderError]:
        """The reward of each sample, in order, with its error in its place where it failed."""
        return self._run(self._client.try_score_many(list(samples), progress=progress))

    def rank_many(self, sets: CandidateSets, *, progress: bool = False) -> list[Ranking]:
        """The ranking of each set, in order. The first error is raised, and the rest is cancelled."""
        return self._run(self._client.rank_many(list(sets), progress=progress))

    def _run(self, call: Coroutine[Any, Any, Result]) -> Result:
        thread = self._thread
        if thread is None or thread.pid != os.getpid():
            thread = self._start()
        return thread.run(call)

    def _start(self) -> "_LoopThread":
        with self._starting:
            if self._thread is not None and self._thread.pid != os.getpid():
                _forked.append(self._thread)
                self._thread = None
            if self._thread is None:
                self._thread = thread = _LoopThread()
                self._finalizer = weakref.finalize(self, thread.abandon, self._client.aclose)
                self._finalizer.atexit = False
            return self._thread


class _LoopThread:
    """An event loop that runs on a daemon thread of the process `pid`, until it is stopped."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._stopped = False
        self._submitting = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="beholder-client", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        """The call's result. Raises EngineUnavailable when `stop` comes before it."""
        with self._submitting:
            if self._stopped:
                call.close()
                raise _closed()
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise _closed() from None
        finally:
            future.cancel()  # on Ctrl-C nothing goes on for nobody

    def stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """End all calls, then `close` what they used, then the loop and its thread."""
        with self._submitting:
            self._stopped = True  # what was submitted before is a task by the time that `_end` runs
        asyncio.run_coroutine_threadsafe(self._end(close), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def abandon(self, close: Callable[[], Awaitable[None]]) -> None:
        """`stop` for a client that is collected before it was closed; without waiting, since any thread may collect."""

        async def leave() -> None:
            await self._end(close)
            self._loop.stop()

        if self.pid != os.getpid():  # of a fork, in which nobody will release the lock
            return
        with self._submitting:
            if not self._stopped:
                self._stopped = True
                asyncio.run_coroutine_threadsafe(leave(), self._loop)

    def _turn(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _end(self, close: Callable[[], Awaitable[None]]) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await close()
        await self._loop.shutdown_default_executor()


def _closed() -> EngineUnavailable:
    return EngineUnavailable("the client was closed by another thread before the answer came: ask again")
