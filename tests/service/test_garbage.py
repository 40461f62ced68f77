"""Garbage is collected while nothing is in flight, and not while something is."""

import asyncio
import gc
import weakref

import pytest

from beholder import garbage
from tests.service.stand_in import Serve, StandInEngine, until

pytestmark = pytest.mark.anyio


class Cyclic:
    def __init__(self) -> None:
        self.own = self


async def test_it_waits_until_nothing_is_in_flight(
    serve: Serve, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "WORTHWHILE", 1000)
    before = gc.get_threshold()
    try:
        async with serve() as client:
            assert gc.get_threshold() == garbage.THRESHOLDS
            engine.gate.clear()
            request = asyncio.ensure_future(client.post("/score", json={"prompt": "p", "response": "r"}))
            await until(lambda: engine.active)
            cyclic = [weakref.ref(Cyclic()) for _ in range(2000)]
            await asyncio.sleep(0.5)
            assert all(found() for found in cyclic)
            engine.gate.set()
            assert (await request).status_code == 200
            await until(lambda: not any(found() for found in cyclic))
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
