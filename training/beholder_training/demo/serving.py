"""Serve a checkpoint in a process of its own and rank scenes over HTTP, as a training loop would."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tqdm import tqdm

from beholder.client import Ranking, RewardClient
from beholder.errors import EngineUnavailable
from beholder_training.data import Record

CLIENTS = 8


@dataclass(frozen=True)
class Ranked:
    """`rankings` and `latencies` (seconds) in the records' order, and the `seconds` for all."""

    rankings: list[Ranking]
    latencies: list[float]
    seconds: float

    def top1(self, records: Sequence[Record]) -> float:
        """How often a response of the greatest quality came first."""
        hits = [
            r.qualities[ranking.best] == max(r.qualities) for r, ranking in zip(records, self.rankings, strict=True)
        ]
        return sum(hits) / len(hits)


@contextmanager
def served(checkpoint: Path, log: Path, timeout: float = 300) -> Iterator[str]:
    """The base URL of `beholder serve`, ready; it is stopped with SIGTERM afterwards.

    Raises EngineUnavailable, which names the log, when it does not become ready.
    """
    with service_process(checkpoint, log) as (process, url):
        wait_until_ready(process, url, log, timeout)
        yield url


@contextmanager
def service_process(checkpoint: Path, log: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """`beholder serve` on a free port, perhaps not ready yet, and its URL; stopped with SIGTERM afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "beholder.cli", "serve", str(checkpoint), "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def rank_all(url: str, records: Sequence[Record], images: Sequence[Record], label: str) -> Ranked:
    """Rank every record's responses; record i is shown with the pictures of images[i]."""
    started = time.perf_counter()
    with RewardClient(url) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def rank(record: Record, pictured: Record) -> tuple[Ranking, float]:
            sent = time.perf_counter()
            ranking = client.rank(record.prompt, pictured.images, record.responses)
            return ranking, time.perf_counter() - sent

        answers = list(tqdm(pool.map(rank, records, images), total=len(records), desc=label, unit="scene"))
    seconds = time.perf_counter() - started
    return Ranked([ranking for ranking, _ in answers], [latency for _, latency in answers], seconds)


def engine_name(url: str) -> str:
    """The engine that the service says it runs on."""
    with RewardClient(url) as client:
        (model,) = client.models()
    return model.engine


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float = 300) -> None:
    """Raises EngineUnavailable, which names the log, when it ends or takes longer than `timeout` seconds."""
    with tqdm(desc="starting the service", unit="s", bar_format="{desc}: {elapsed}") as bar:
        for _ in range(int(timeout * 2)):
            if process.poll() is not None:
                break
            try:
                if httpx.get(f"{url}/readyz").is_success:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.5)
            bar.update(0)
    raise EngineUnavailable(f"the service did not become ready: see {log}")


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
