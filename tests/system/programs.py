"""Programs that pip does not install, and processes of the tests, ended by their own ids."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

START_S = 90


def program(name: str) -> str:
    """Its path; the test is skipped where it is missing, and fails in CI."""
    # Debian has nginx in /usr/sbin, which is not on every user's path.
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, timeout: float = START_S) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended with the block."""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Replica:
    """A `beholder serve` with the fake engine, on a port that it keeps when it is started again."""

    def __init__(self, checkpoint: Path, log: Path, engine_args: str, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        serve = [sys.executable, "-m", "beholder.cli", "serve", str(checkpoint), "--port", str(self.port)]
        self._command = [*serve, "--engine", "fake", "--engine-args", engine_args, *flags]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self._command, stdout=file, stderr=file)

    def wait_ready(self) -> None:
        wait_until(self._ready, f"replica {self.port} is ready")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return answers(f"{self.url}/readyz")


@contextmanager
def two_replicas(checkpoint: Path, folder: Path, engine_args: str, *flags: str) -> Iterator[list[Replica]]:
    """Both ready."""
    both = [Replica(checkpoint, folder / f"{number}.log", engine_args, *flags) for number in range(2)]
    try:
        for replica in both:
            replica.wait_ready()
        yield both
    finally:
        for replica in both:
            replica.close()
