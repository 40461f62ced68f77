"""Waiting for several coroutines at once."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


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
