"""vLLM's core from outside: when it hangs, and whose processes are ended; with vLLM: test_serve_process.py."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import pytest

from beholder.engine import vllm_core
from beholder.engine.vllm_core import Core

pytest.importorskip("vllm")
pytestmark = pytest.mark.anyio

LIMIT_S = 0.2


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    monkeypatch.setattr(vllm_core, "CHECK_S", 0.01)
    return Core()


async def stalls(core: Core, within_s: float) -> bool:
    try:
        await asyncio.wait_for(core.stalled(LIMIT_S), within_s)
    except TimeoutError:
        return False
    return True


async def test_samples_without_a_step_are_a_stall(core: Core) -> None:
    assert not await stalls(core, 3 * LIMIT_S), "it has none"
    with core.holding_sample():
        assert not await stalls(core, LIMIT_S / 2)
        assert await stalls(core, 10)


async def test_samples_that_are_given_up_one_after_the_other_are_a_stall(core: Core) -> None:
    async def ask() -> None:
        while True:
            with core.holding_sample():
                await asyncio.sleep(LIMIT_S / 4)
            await asyncio.sleep(0)

    asking = asyncio.create_task(ask())
    assert await stalls(core, 10)
    asking.cancel()


async def test_slow_steps_are_none(core: Core) -> None:
    async def step() -> None:
        while True:
            await asyncio.sleep(LIMIT_S / 2)
            core.on_step()

    stepping = asyncio.create_task(step())
    with core.holding_sample():
        assert not await stalls(core, 5 * LIMIT_S)
        stepping.cancel()
        assert await stalls(core, 10)


@pytest.fixture
def start() -> Iterator[Callable[[], BaseProcess]]:
    started: list[BaseProcess] = []

    def start() -> BaseProcess:
        started.append(multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("end", [Core.terminate, Core.kill])
@pytest.mark.parametrize("loaded", [False, True])
def test_another_engines_processes_live_on(
    start: Callable[[], BaseProcess], end: Callable[[Core], None], loaded: bool
) -> None:
    others = [start()]
    core = Core()
    own = start()
    if loaded:
        core.loaded()
        others.append(start())
    end(core)
    own.join(10)
    assert own.exitcode
    assert all(other.is_alive() for other in others)
