"""Watch a service under load from a process of its own: how soon /livez answers, and the memory of its processes.

Every probe opens a connection of its own, as a kubelet's does, and so waits where requests wait to be accepted.
"""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import httpx
import psutil

PROBE_S = 0.05
TIMEOUT_S = 30


@dataclass
class Watched:
    """livez_ms: of each answer. unanswered: probes without an answer. memory_mib: resident, over time."""

    livez_ms: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    unanswered: int = 0

    @property
    def livez_p99_ms(self) -> float:
        ordered = sorted(self.livez_ms)
        return ordered[int(0.99 * len(ordered))]


@contextmanager
def watching(pid: int, url: str) -> Iterator[Watched]:
    """What is seen between the block's beginning and its end; complete after the block."""
    watched = Watched()
    here, there = multiprocessing.Pipe()
    watcher = multiprocessing.get_context("spawn").Process(target=_watch, args=(pid, url, there))
    watcher.start()
    try:
        yield watched
    finally:
        here.send("stop")
        seen: Watched = here.recv()
        watched.livez_ms, watched.memory_mib, watched.unanswered = seen.livez_ms, seen.memory_mib, seen.unanswered
        watcher.join()


def _watch(pid: int, url: str, stop: Connection) -> None:
    watched = Watched()
    service = psutil.Process(pid)
    with httpx.Client(timeout=TIMEOUT_S) as client:
        while not stop.poll(PROBE_S):
            watched.memory_mib.append(_resident_mib(service))
            started = time.perf_counter()
            try:
                client.get(f"{url}/livez", headers={"Connection": "close"}).raise_for_status()
                watched.livez_ms.append(1000 * (time.perf_counter() - started))
            except httpx.HTTPError:
                watched.unanswered += 1
    stop.send(watched)


def _resident_mib(service: psutil.Process) -> float:
    total = 0
    for process in [service, *service.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
