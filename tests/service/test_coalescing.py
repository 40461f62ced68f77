"""Calls that come together are worked off together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from beholder.engine.coalescing import Coalescer
from beholder.errors import EngineUnavailable

pytestmark = pytest.mark.anyio


class Squares:
    """Answers once it may; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.called = threading.Event()
        self.may = threading.Event()
        self.coalescer: Coalescer[int, int] = Coalescer(self.run, 3, "squares")

    def run(self, items: Sequence[int]) -> list[int | Exception]:
        self.calls.append(list(items))
        self.called.set()
        self.may.wait(10)
        if 13 in items:
            raise RuntimeError("13")
        return [ValueError(str(item)) if item < 0 else item**2 for item in items]


async def test_what_comes_while_it_is_busy_goes_together() -> None:
    squares = Squares()
    first = asyncio.ensure_future(squares.coalescer.submit(1))
    await asyncio.to_thread(squares.called.wait, 10)
    rest = [asyncio.ensure_future(squares.coalescer.submit(number)) for number in (2, 3, 4, 5)]
    await asyncio.sleep(0)
    rest[1].cancel()
    squares.may.set()
    assert await first == 1
    assert [await rest[0], await rest[2], await rest[3]] == [4, 16, 25]
    assert rest[1].cancelled()
    assert squares.calls == [[1], [2, 4], [5]]
    await squares.coalescer.stop()


async def test_a_wrong_number_of_results_is_an_error_of_that_call() -> None:
    short: Coalescer[int, int] = Coalescer(lambda items: [item**2 for item in items if item != 13], 3, "short")
    found = await asyncio.gather(*map(short.submit, (2, 13)), return_exceptions=True)
    assert [str(error) for error in found] == ["there are 1 results for 2 calls"] * 2
    assert await short.submit(5) == 25
    await short.stop()


async def test_an_error_is_one_callers_or_the_whole_calls() -> None:
    squares = Squares()
    squares.may.set()
    found = await asyncio.gather(*map(squares.coalescer.submit, (2, -3, 4)), return_exceptions=True)
    assert [found[0], found[2]] == [4, 16]
    assert isinstance(found[1], ValueError)
    found = await asyncio.gather(*map(squares.coalescer.submit, (2, 13)), return_exceptions=True)
    assert all(isinstance(error, RuntimeError) and isinstance(error.__cause__, RuntimeError) for error in found)
    assert found[0] is not found[1]
    assert await squares.coalescer.submit(5) == 25
    await squares.coalescer.stop()


async def test_stopping_fails_what_waits() -> None:
    squares = Squares()
    waiting = [asyncio.ensure_future(squares.coalescer.submit(number)) for number in range(5)]
    await asyncio.to_thread(squares.called.wait, 10)
    await squares.coalescer.stop()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in found] == [EngineUnavailable] * 5
    with pytest.raises(EngineUnavailable):
        await squares.coalescer.submit(1)
    squares.may.set()
