"""Several engines on this machine, each in a process of its own: for models so small that one leaves cores idle.

The input's records are dealt out in runs: of N engines the first scores the first run and every Nth after it, and so
on. Each reads the input itself and sends back a run at a time; they are taken in turn, so in order. An engine that is
ahead waits for the others as soon as its pipe is full.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from beholder.errors import BeholderError, ConfigurationError, EngineUnavailable
from beholder.offline.backends import EngineBackend, drive, engine_scorer, plain
from beholder.offline.scoring import Job, Position
from beholder.offline.tasks import Scored, Task, read_task
from beholder.records.sources import read_rows
from beholder.settings import Settings, load_settings

RUN: Final = 32
"""Records, so that engines keep step; their results fill an eighth of a pipe."""

_Message = list[Scored] | str
"""A run's results (none: there are no more), or why the engine failed. The first is empty and says that it is ready."""


@dataclass(frozen=True, slots=True)
class _Engine:
    process: BaseProcess
    results: Connection

    def receive(self) -> list[Scored]:
        """The next message. Raises EngineUnavailable."""
        try:
            message: _Message = self.results.recv()
        except EOFError:
            self.process.join()
            raise EngineUnavailable(f"an engine's process ended with status {self.process.exitcode}") from None
        if isinstance(message, str):
            raise EngineUnavailable(f"an engine failed: {message}")
        return message


def gpu_of(share: int) -> str | None:
    """What CUDA calls the GPU that an engine takes, of those that this process may see; None where there is none."""
    import torch

    if not (count := torch.cuda.device_count()):
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[share % count].strip()


class EnginesBackend(EngineBackend):
    """`engines` of them, each as EngineBackend has one; in flight are the job's `in_flight` for each."""

    def __init__(self, settings: Settings, engines: int) -> None:
        super().__init__(settings)
        if settings.chosen_engine == "vllm":
            raise ConfigurationError("vLLM uses the whole machine: give --engines with --engine transformers")
        self._engines = engines

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        with self._started(job, position) as engines:
            for engine in cycle(engines):
                scored = engine.receive()
                if not scored:
                    return
                for record in scored:
                    accept(record)

    @contextmanager
    def _started(self, job: Job, position: Position) -> Iterator[Sequence[_Engine]]:
        """All engines, once they are loaded; they end with the block. Raises EngineUnavailable."""
        engines: list[_Engine] = []
        try:
            for share in range(self._engines):
                engines.append(self._start(job, position, share))
            for engine in engines:
                engine.receive()
            yield engines
        finally:
            for engine in engines:
                engine.process.terminate()
                engine.results.close()
            for engine in engines:
                engine.process.join()

    def _start(self, job: Job, position: Position, share: int) -> _Engine:
        context = multiprocessing.get_context("spawn")
        results, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_serve,
            args=(plain(self._settings), job, position, share, self._engines, sender),
            daemon=True,
        )
        process.start()
        sender.close()  # the process has it; when it ends, so do the results
        return _Engine(process, results)


def _serve(
    settings: dict[str, Any],
    job: Job,
    position: Position,
    share: int,
    engines: int,
    sender: Connection,
) -> None:
    """The main function of an engine's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it comes to the process that asks too, which ends this
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // engines)))
    if (gpu := gpu_of(share)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it is first used: counting asks the driver alone
    with suppress(BrokenPipeError):  # who asks has gone
        try:
            asyncio.run(_score(load_settings(settings), job, position, share, engines, sender))
        except BeholderError as error:
            sender.send(str(error))


async def _score(
    settings: Settings, job: Job, position: Position, share: int, engines: int, sender: Connection
) -> None:
    run: list[Scored] = []

    def accept(scored: Scored) -> None:
        run.append(scored)
        if len(run) == RUN:
            sender.send(run)
            run.clear()

    async with engine_scorer(settings) as scorer:
        sender.send([])
        await drive(_share(job, position, share, engines), scorer, job.in_flight, accept)
    if run:
        sender.send(run)
    sender.send([])


def _share(job: Job, position: Position, share: int, engines: int) -> Iterator[Task]:
    rows = enumerate(read_rows(job.input, position.offset, position.number))
    return (read_task(row, job.image_root) for index, row in rows if index // RUN % engines == share)
