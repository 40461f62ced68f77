"""Waiting for several coroutines at once, and threads that do not wait for each other long."""

import asyncio
import sys
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeVar

Result = TypeVar("Result")
_SWITCH_S: Final = 0.0005


def share_interpreter() -> None:
    """Threads of this process take turns sooner.

    Preparing a sample is Python in a thread. After each operation on a socket or a tensor the event loop, or the thread
    of the model's forward, waits for its turn, by default up to 5 ms.
    """
    sys.setswitchinterval(_SWITCH_S)


async def all_or_none(coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in order, or the first error; on an error the others are cancelled and awaited, so nothing goes on
    for nobody."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
