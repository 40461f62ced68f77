"""vLLM's core as the process sees it that started it: whether it still computes, and how to end it.

A core that hangs in a driver or a collective lives on, so vLLM reports nothing; while it loads it heeds no SIGTERM.
"""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Final

CHECK_S: Final = 0.5


class Core:
    """To be made before the core is started: its processes are the children from then until `loaded`. So engines load
    one after the other."""

    def __init__(self) -> None:
        self._others = set(multiprocessing.active_children())
        self._own: list[BaseProcess] | None = None
        self._steps = 0
        self._samples = 0

    def loaded(self) -> None:
        """What this process starts from now on is another engine's."""
        self._own = self._processes()

    def on_step(self) -> None:
        """The core has computed something."""
        self._steps += 1

    @contextmanager
    def holding_sample(self) -> Iterator[None]:
        """For as long as a sample is with the core."""
        self._samples += 1
        try:
            yield
        finally:
            self._samples -= 1

    async def stalled(self, limit_s: float) -> None:
        """Return once the core has had samples for `limit_s` seconds without a step.

        Time counts while there are samples, also when their requests give up one after the other, and not while this
        process was held up itself.
        """
        steps, waited_s = self._steps, 0.0
        while waited_s < limit_s:
            await asyncio.sleep(CHECK_S)
            if self._steps != steps:
                steps, waited_s = self._steps, 0.0
            elif self._samples:
                waited_s += CHECK_S

    def terminate(self) -> None:
        """Ask it to leave."""
        for process in self._processes():
            process.terminate()

    def kill(self) -> None:
        """End it with its workers at once."""
        for process in self._processes():
            _kill_tree(process)

    def _processes(self) -> list[BaseProcess]:
        living = multiprocessing.active_children()
        return [each for each in living if (each not in self._others if self._own is None else each in self._own)]


def _kill_tree(process: BaseProcess) -> None:
    from vllm.utils.system_utils import kill_process_tree  # a process of vLLM's is there, so vLLM is imported

    if process.pid is not None:
        kill_process_tree(process.pid)
