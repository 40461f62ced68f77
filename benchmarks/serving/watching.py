"""Watch a service under load from a process of its own: how soon /livez answers, and the memory of its processes.

Every probe opens a connection of its own, as a kubelet's does, and so waits where requests wait to be accepted.
"""

import itertools
import multiprocessing
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import httpx
import psutil

PROBE_S = 0.05
TIMEOUT_S = 30


@dataclass(frozen=True)
class Probe:
    """Until its answer, or until it was given up; `sent` by time.perf_counter(), which processes of a machine share."""

    sent: float
    milliseconds: float


@dataclass
class Watched:
    """unanswered: probes without an answer. memory_mib: resident, over time."""

    probes: list[Probe] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    unanswered: int = 0

    def livez_ms(self, share: float, since: float, until: float) -> float:
        """What a probe takes at most at so large a share of the moments between: the next is sent only after a slow
        one, so those count for as long as they took."""
        times = sorted(probe.milliseconds for probe in self.probes if since <= probe.sent < until)
        moments = list(itertools.accumulate(1000 * PROBE_S + milliseconds for milliseconds in times))
        return times[bisect(moments, share * moments[-1])]


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
        watched.probes, watched.memory_mib, watched.unanswered = seen.probes, seen.memory_mib, seen.unanswered
        watcher.join()


def _watch(pid: int, url: str, stop: Connection) -> None:
    watched = Watched()
    service = psutil.Process(pid)
    with httpx.Client(timeout=TIMEOUT_S) as client:
        while not stop.poll(PROBE_S):
            watched.memory_mib.append(_resident_mib(service))
            sent = time.perf_counter()
            try:
                client.get(f"{url}/livez", headers={"Connection": "close"}).raise_for_status()
            except httpx.HTTPError:
                watched.unanswered += 1
            watched.probes.append(Probe(sent, 1000 * (time.perf_counter() - sent)))
    stop.send(watched)


def _resident_mib(service: psutil.Process) -> float:
    total = 0
    for process in [service, *service.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
